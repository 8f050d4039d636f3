"""Make the tables and the plot from the benchmark's results."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stages.core.errors import StageError
from stages.core.files import write_text
from stages.plot import BLUE, ORANGE
from tools.shared.report import format_table

Result = dict[str, Any]
Results = dict[str, dict[str, list[Result]]]  # by part and name; one result for each seed

TITLES = {
    "page": "the course page's script",
    "mnist_convnet": "keras-io's `mnist_convnet`",
    "default": "`params.yaml`",
}
SIZE = 60_000  # MNIST's training images


def take_median(results: list[Result], *keys: str) -> float:
    """Return the median over seeds of one value; `keys` lead to it through nested dictionaries."""
    values: list[float] = []
    for result in results:
        value: Any = result
        for key in keys:
            value = value[key]
        values.append(value)
    return median(values)


def insert_tables(path: Path, tables: Mapping[str, str], mark: str = "benchmark") -> None:
    """Replace tables in a Markdown page, or in the pages of a folder.

    Each table is between two comments. The first one is `mark` and the table's name.

    Raises StageError if no page has the comments of one of the tables.
    """
    pages = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for name, table in tables.items():
        first, last = f"<!-- {mark}: {name} -->\n", "<!-- end -->\n"
        for page, text in texts.items():
            before, start, rest = text.partition(first)
            _, end, after = rest.partition(last)
            if start and end:
                texts[page] = before + first + table.rstrip("\n") + "\n" + last + after
                break
        else:
            raise StageError(
                f"{path}: has no place for the table {name!r}; expected the lines "
                f"{first.strip()} and {last.strip()}"
            )
    for page, text in texts.items():
        write_text(page, text)


def tabulate_recipes(results: Results) -> str:
    """Return the accuracy, time and memory of each recipe and each reference script."""
    found = results["recipes"]
    page = found.get("page")

    def format_seconds(name: str, key: str) -> str:
        seconds = take_median(found[name], key)
        ratio = f" ({seconds / take_median(page, key):.2f})" if page else ""
        return f"{seconds:.1f}{ratio}"

    unit = "s (ratio)" if page else "s"
    rows = []
    for name, by_seed in found.items():
        accuracies = [100 * result["accuracy"] for result in by_seed]
        deviation = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        speed = take_median(by_seed, "images") / take_median(by_seed, "training")
        rows.append(
            {
                "": TITLES.get(name, f"recipe `{name}`"),
                "test accuracy, %": f"{mean(accuracies):.2f}{deviation}",
                f"training, {unit}": format_seconds(name, "training"),
                f"total, {unit}": format_seconds(name, "total"),
                "images per second": f"{speed:,.0f}",
                "peak memory, MiB": f"{take_median(by_seed, 'mebibytes'):,.0f}",
            }
        )
    return format_table(rows)


def tabulate_stages(results: Results) -> str:
    """Return the time and memory of each stage, in a first `dvc repro` with params.yaml."""
    found = results["recipes"].get("default")
    if not found:
        return ""
    rows = [
        {
            "stage": f"`{stage}`",
            "seconds": f"{take_median(found, 'stages', stage, 'seconds'):.1f}",
            "peak memory, MiB": f"{take_median(found, 'stages', stage, 'mebibytes'):,.0f}",
        }
        for stage in found[0]["stages"]
    ]
    in_stages = [sum(stage["seconds"] for stage in result["stages"].values()) for result in found]
    rest = median(result["total"] - inside for result, inside in zip(found, in_stages, strict=True))
    rows.append({"stage": "DVC itself", "seconds": f"{rest:.1f}", "peak memory, MiB": ""})
    return format_table(rows)


def tabulate_costs(results: Results) -> str:
    """Return the costs of a run besides training, with params.yaml."""
    default = results["recipes"].get("default")
    if not default:
        return ""
    rest = median(result["total"] - result["training"] for result in default)
    ratio = take_median(default, "nothing") / take_median(default, "status")
    alone = take_median(default, "plot")
    costs = {
        "a first `dvc repro` after the download, without the training": f"{rest:.1f} s",
        "`dvc repro` with nothing to do, compared with `dvc status`": f"{ratio:.2f} times",
        "`dvc repro` of `plot` alone": f"{alone:.1f} s",
    }
    return format_table([{"": what, "measured": value} for what, value in costs.items()])


def tabulate_growth(results: Results) -> str:
    """Return time and anonymous memory by the size of the training set.

    Below the table, say whether the time is linear and how much the memory grows.
    """
    found = results["growth"]
    rows = []
    for by_seed in found.values():
        seconds = take_median(by_seed, "training")
        row = {
            "training images": f"{by_seed[0]['images']:,}",
            "training for an epoch, s": f"{seconds:.1f}",
            "images per second": f"{take_median(by_seed, 'seen') / seconds:,.0f}",
        }
        for stage in by_seed[0]["stages"]:
            values = (
                take_median(by_seed, "stages", stage, key) for key in ("seconds", "anonymous")
            )
            row[f"`{stage}`, s; MiB"] = "{:.1f}; {:,.0f}".format(*values)
        rows.append(row)
    lines = []
    for what, keys in TIMES.items():
        (slope, start), deviation = find_best_line(found, *keys)
        lines.append(
            f"- {what}: {start:.1f} s plus {slope * SIZE:.2f} s for every {SIZE:,} images; the "
            f"measured times differ from that line by at most {deviation:.0%}.\n"
        )
    small, *_, large = found.values()
    ratios = (
        f"`{stage}` {take_median(large, *keys) / take_median(small, *keys):.2f}"
        for stage in small[0]["stages"]
        for keys in [("stages", stage, "anonymous")]
    )
    lines.append(
        f"- peak anonymous memory with {large[0]['images']:,} training images, divided by that "
        f"with {small[0]['images']:,}: {', '.join(ratios)}.\n"
    )
    return format_table(rows) + "\n\n" + "".join(lines)


def tabulate_workers(results: Results) -> str:
    """Return the time of a training step by replicas and workers, and the bytes that it sends."""
    found = results["workers"]
    rows = []
    for name, by_turn in found.items():
        alone = found[f"{name.partition(' on ')[0]} on 1 worker"]
        milliseconds = [1000 * turn["seconds"] for turn in by_turn]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(by_turn, alone, strict=True)]
        rows.append(
            {
                "": name,
                "a step, ms": f"{median(milliseconds):.1f} {format_range(milliseconds, 1)}",
                "compared with 1 worker": f"{median(ratios):.2f} {format_range(ratios, 2)}",
                "sent by a worker in a step, kB": f"{take_median(by_turn, 'bytes') / 1000:,.0f}",
            }
        )
    count = by_turn[0]["weights"]
    return format_table(rows) + f"\n\nThe network of `params.yaml` has {count:,} weights.\n"


def format_range(values: list[float], digits: int) -> str:
    """Return the smallest and the largest value in parentheses."""
    return f"({min(values):.{digits}f} to {max(values):.{digits}f})"


def tabulate_networks(results: Results) -> str:
    """Return how long a step must take on one machine for several machines to be faster.

    With W machines, a step of t seconds takes t / W, and the exchange of the gradients of P weights
    e + (W - 1) * 32 * P / b: e without a network, as measured, and the rest for the bits that a
    worker sends at b bits per second. That is less than t if t > W / (W - 1) * e + W * 32 * P / b.
    """
    rows = []
    for workers in (2, 4):
        by_turn = results["workers"][f"4 replicas on {workers} workers"]
        for weights in by_turn[0]["exchanges"]:
            exchange = 1000 * take_median(by_turn, "exchanges", weights)
            row = {
                "machines": str(workers),
                "weights": f"{int(weights):,}",
                "exchange without a network, ms": f"{exchange:.1f}",
            }
            for gigabits in (1, 10):
                network = workers * 32 * int(weights) / (gigabits * 1e9) * 1000
                least = workers / (workers - 1) * exchange + network
                row[f"least step at {gigabits} Gbit/s, ms"] = f"{least:,.0f}"
            rows.append(row)
    return format_table(rows)


TIMES: dict[str, tuple[str, ...]] = {
    "`preprocess`": ("stages", "preprocess", "seconds"),
    "training for an epoch": ("training",),
}


def tabulate_sweep(results: Results) -> str:
    """Return the time of several runs, one after another and in parallel."""
    found = results["sweep"]
    first = take_median(next(iter(found.values())), "seconds")
    rows = []
    for name, by_seed in found.items():
        seconds = take_median(by_seed, "seconds")
        rows.append(
            {
                "": name,
                "runs": f"{by_seed[0]['runs']}",
                "total, s": f"{seconds:.1f}",
                "runs per hour (ratio)": f"{3600 * by_seed[0]['runs'] / seconds:.0f} "
                f"({first / seconds:.2f})",
            }
        )
    return format_table(rows)


def find_best_line(found: dict[str, list[Result]], *keys: str) -> tuple[list[float], float]:
    """Return slope and intercept of the best line through the medians, and its largest error.

    The line minimises the squares of the relative errors, so that small training sets count as much
    as large ones. The largest error is relative too.
    """
    images = np.array([by_seed[0]["images"] for by_seed in found.values()])
    values = np.array([take_median(by_seed, *keys) for by_seed in found.values()])
    line = np.polyfit(images, values, 1, w=1 / values)
    return line.tolist(), float(np.abs(np.polyval(line, images) / values - 1).max())


def plot_growth(results: Results) -> Figure:
    """Plot time and memory by the size of the training set. The best lines are dashed."""
    found = results["growth"]
    thousands = [by_seed[0]["images"] / 1000 for by_seed in found.values()]
    figure = Figure(figsize=(8.4, 3.6))
    time, memory = figure.subplots(1, 2)
    for colour, (what, keys) in zip((BLUE, ORANGE), TIMES.items(), strict=True):
        values = [take_median(by_seed, *keys) for by_seed in found.values()]
        time.plot(thousands, values, "o", color=colour, label=what.replace("`", ""))
        (slope, start), _ = find_best_line(found, *keys)
        time.plot(thousands, [start + slope * 1000 * n for n in thousands], "--", color=colour)
    for stage, marker in zip(next(iter(found.values()))[0]["stages"], cycle("osD^v"), strict=False):
        keys = ("stages", stage, "anonymous")
        values = [take_median(by_seed, *keys) for by_seed in found.values()]
        memory.plot(thousands, values, f"{marker}-")
        end, beside = (thousands[-1], values[-1]), (9, -3)
        memory.annotate(stage, end, xytext=beside, textcoords="offset points")
    time.legend()
    for axes, title in ((time, "seconds"), (memory, "peak anonymous memory, MiB")):
        axes.set(xlabel="thousand training images", title=title, xlim=(0, None), ylim=(0, None))
    figure.suptitle("Time and memory by the size of the training set")
    return figure
