"""Make the tables and the plot from the benchmark's results.

Results are a table with a row for each measurement, and columns such as `train_seconds`: what was
recorded, by the name of the command or the stage.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.core.errors import StageError
from stages.core.files import write_text
from stages.core.paths import GRAPH
from stages.core.settings import read_yaml
from stages.plot import BLUE, ORANGE
from tools.shared.report import format_table

TITLES = {
    "page": "the course page's script",
    "mnist_convnet": "keras-io's `mnist_convnet`",
    "default": "`params.yaml`",
}
SIZE = 60_000  # MNIST's training images
TIMES = {"`preprocess`": "preprocess_seconds", "training for an epoch": "training_seconds"}
RUNS = 6  # of each sweep
# What a run of params.yaml costs besides training.
COSTS = {
    "a first `dvc repro` after the download, without the training": (
        "first_seconds - training_seconds",
        "{:.1f} s",
    ),
    "`dvc repro` with nothing to do, compared with `dvc status`": (
        "nothing_seconds / status_seconds",
        "{:.2f} times",
    ),
    "`dvc repro` of `plot` alone": ("alone_seconds", "{:.1f} s"),
}


def select_part(results: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the results of a part, with the columns that it has."""
    return results[results["part"] == part].dropna(axis="columns", how="all")


def take_medians(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median of each column over the seeds, a row for each name."""
    return runs.groupby("name", sort=False).median(numeric_only=True)


def fill(rows: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Return a table with a line for each row. Each column is a format string with its values.

    A value that is missing is left out, with the sign or the parentheses around it.
    """
    lines = [
        {
            title: re.sub(r" ± nan| \(nan\)", "", text.format(name=name, **row))
            for title, text in columns.items()
        }
        for name, row in rows.iterrows()
    ]
    return format_table(lines)


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return the processor and the versions, as the end of a sentence."""
    library = machine["libraries"]
    tensorflow = library.get("tensorflow-cpu") or library.get("tensorflow")
    return (
        f"on {machine['cores']} cores of {machine['processor']}, with TensorFlow {tensorflow}, "
        f"Keras {library['keras']}, DVC {version('dvc')} and Python {machine['python']}"
    )


def insert_tables(path: Path, tables: Mapping[str, str], mark: str = "benchmark") -> None:
    """Replace tables in a Markdown page, or in the pages of a folder.

    Each table is between two comments. The first one is `mark` and the table's name.

    Raises StageError if no page has the comments of one of the tables.
    """
    pages = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for name, table in tables.items():
        first, last = f"<!-- {mark}: {name} -->\n", "<!-- end -->\n"
        page = next((page for page in pages if last in texts[page].partition(first)[2]), None)
        if not page:
            raise StageError(
                f"{path}: has no place for the table {name!r}; expected the lines "
                f"{first.strip()} and {last.strip()}"
            )
        before, _, rest = texts[page].partition(first)
        texts[page] = before + first + table.rstrip("\n") + "\n" + last + rest.partition(last)[2]
    for page, text in texts.items():
        write_text(page, text)


def tabulate_recipes(runs: pd.DataFrame) -> str:
    """Return the accuracy, time and memory of each recipe and each reference script."""
    rows = take_medians(runs)
    page = rows.reindex(["page"]).iloc[0]
    percent = (100 * runs["metrics_test_accuracy"]).groupby(runs["name"], sort=False)
    rows = rows.assign(
        title=[TITLES.get(str(name), f"recipe `{name}`") for name in rows.index],
        accuracy=percent.mean(),
        deviation=percent.std(),
        training_ratio=rows["training_seconds"] / page["training_seconds"],
        total_ratio=rows["first_seconds"] / page["first_seconds"],
        speed=rows["training_images"] / rows["training_seconds"],
        memory=rows.filter(["train_mebibytes", "first_mebibytes"]).bfill(axis="columns").iloc[:, 0],
    )
    columns = {
        "": "{title}",
        "test accuracy, %": "{accuracy:.2f} ± {deviation:.2f}",
        "training, s (ratio)": "{training_seconds:.1f} ({training_ratio:.2f})",
        "total, s (ratio)": "{first_seconds:.1f} ({total_ratio:.2f})",
        "images per second": "{speed:,.0f}",
        "peak memory, MiB": "{memory:,.0f}",
    }
    return fill(rows, columns)


def tabulate_stages(runs: pd.DataFrame) -> str:
    """Return the time and memory of each stage, in a first `dvc repro` with params.yaml."""
    default = runs[runs["name"] == "default"]
    if default.empty:
        return ""
    stages = list(read_yaml(GRAPH)["stages"])
    seconds = default[[f"{stage}_seconds" for stage in stages]]
    medians = default.median(numeric_only=True)
    lines = [
        {
            "stage": f"`{stage}`",
            "seconds": f"{medians[f'{stage}_seconds']:.1f}",
            "peak memory, MiB": f"{medians[f'{stage}_mebibytes']:,.0f}",
        }
        for stage in stages
    ]
    rest = (default["first_seconds"] - seconds.sum(axis="columns")).median()
    lines.append({"stage": "DVC itself", "seconds": f"{rest:.1f}", "peak memory, MiB": ""})
    return format_table(lines)


def tabulate_costs(runs: pd.DataFrame) -> str:
    """Return the costs of a run besides training, with params.yaml."""
    default = runs[runs["name"] == "default"]
    if default.empty:
        return ""
    lines = []
    for what, (formula, text) in COSTS.items():
        value = pd.Series(default.eval(formula)).median()
        lines.append({"": what, "measured": text.format(value)})
    return format_table(lines)


def tabulate_growth(runs: pd.DataFrame) -> str:
    """Return time and anonymous memory by the size of the training set.

    Below the table, say whether the time is linear and how much the memory grows.
    """
    rows, stages = take_medians(runs), list(read_yaml(GRAPH)["stages"])
    rows["speed"] = rows["training_images"] / rows["training_seconds"]
    columns = {
        "training images": "{grown_images:,.0f}",
        "training for an epoch, s": "{training_seconds:.1f}",
        "images per second": "{speed:,.0f}",
    }
    for stage in stages:
        columns[f"`{stage}`, s; MiB"] = f"{{{stage}_seconds:.1f}}; {{{stage}_anonymous:,.0f}}"
    lines = []
    for what, key in TIMES.items():
        (slope, start), deviation = find_best_line(rows, key)
        lines.append(
            f"- {what}: {start:.1f} s plus {slope * SIZE:.2f} s for every {SIZE:,} images; the "
            f"measured times differ from that line by at most {deviation:.0%}.\n"
        )
    growth = rows.iloc[-1] / rows.iloc[0]
    ratios = (f"`{stage}` {growth[f'{stage}_anonymous']:.2f}" for stage in stages)
    small, *_, large = rows["grown_images"]
    lines.append(
        f"- peak anonymous memory with {large:,.0f} training images, divided by that with "
        f"{small:,.0f}: {', '.join(ratios)}.\n"
    )
    return fill(rows, columns) + "\n\n" + "".join(lines)


def find_best_line(medians: pd.DataFrame, key: str) -> tuple[list[float], float]:
    """Return slope and intercept of the best line by the size, and its largest error.

    The line minimises the squares of the relative errors, so that small training sets count as much
    as large ones. The largest error is relative too.
    """
    sizes, values = medians["grown_images"], medians[key]
    line = np.polyfit(sizes, values, 1, w=1 / values)
    return line.tolist(), float(np.abs(np.polyval(line, sizes) / values - 1).max())


def tabulate_workers(runs: pd.DataFrame) -> str:
    """Return the time of a training step by replicas and workers, and the bytes that it sends."""
    turns = {name: turns["steps_seconds"].to_numpy() for name, turns in runs.groupby("name")}
    rows = take_medians(runs)
    alone = [turns[f"{str(name).partition(' on ')[0]} on 1 worker"] for name in rows.index]
    rows["step"] = [format_range(1000 * turns[name], 1) for name in rows.index]
    ratios = zip(rows.index, alone, strict=True)
    rows["ratio"] = [format_range(turns[name] / one, 2) for name, one in ratios]
    rows["kilobytes"] = rows["steps_bytes"] / 1000
    columns = {
        "": "{name}",
        "a step, ms": "{step}",
        "compared with 1 worker": "{ratio}",
        "sent by a worker in a step, kB": "{kilobytes:,.0f}",
    }
    count = runs["steps_weights"].iloc[0]
    return fill(rows, columns) + f"\n\nThe network of `params.yaml` has {count:,.0f} weights.\n"


def format_range(values: Any, digits: int) -> str:
    """Return the median, and the smallest and the largest value in parentheses."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*np.quantile(values, [0.5, 0, 1]), d=digits)


def tabulate_networks(runs: pd.DataFrame) -> str:
    """Return how long a step must take on one machine for several machines to be faster.

    With W machines, a step of t seconds takes t / W, and the exchange of the gradients of P weights
    e + (W - 1) * 32 * P / b: e without a network, as measured, and the rest for the bits that a
    worker sends at b bits per second. That is less than t if t > W / (W - 1) * e + W * 32 * P / b.
    """
    medians = take_medians(runs).filter(like="exchanges_")
    rows = pd.DataFrame(
        {"machines": machines, "weights": int(str(key).split("_")[-1]), "exchange": 1000 * seconds}
        for machines in (2, 4)
        for key, seconds in medians.loc[f"4 replicas on {machines} workers"].items()
    )
    columns = {
        "machines": "{machines:.0f}",
        "weights": "{weights:,.0f}",
        "exchange without a network, ms": "{exchange:.1f}",
    }
    alone = rows["machines"] / (rows["machines"] - 1) * rows["exchange"]
    for gigabits in (1, 10):
        rows[f"least{gigabits}"] = alone + rows["machines"] * 32 * rows["weights"] / gigabits / 1e6
        columns[f"least step at {gigabits} Gbit/s, ms"] = f"{{least{gigabits}:,.0f}}"
    return fill(rows, columns)


def tabulate_sweep(runs: pd.DataFrame) -> str:
    """Return the time of several runs, one after another and in parallel."""
    rows = take_medians(runs)
    rows["hourly"] = 3600 * RUNS / rows["sweep_seconds"]
    rows["ratio"] = rows["hourly"] / rows["hourly"].iloc[0]
    columns = {"": "{name}", "runs": str(RUNS), "total, s": "{sweep_seconds:.1f}"}
    return fill(rows, columns | {"runs per hour (ratio)": "{hourly:.0f} ({ratio:.2f})"})


def plot_growth(runs: pd.DataFrame) -> Figure:
    """Plot time and memory by the size of the training set. The best lines are dashed."""
    medians = take_medians(runs)
    thousands = medians["grown_images"] / 1000
    figure = Figure(figsize=(8.4, 3.6))
    time, memory = figure.subplots(1, 2)
    for colour, (what, key) in zip((BLUE, ORANGE), TIMES.items(), strict=True):
        time.plot(thousands, medians[key], "o", color=colour, label=what.replace("`", ""))
        line, _ = find_best_line(medians, key)
        time.plot(thousands, np.polyval(line, medians["grown_images"]), "--", color=colour)
    for stage, marker in zip(read_yaml(GRAPH)["stages"], "osD^v", strict=False):
        memory.plot(thousands, medians[f"{stage}_anonymous"], f"{marker}-", label=stage)
    for axes, title in ((time, "seconds"), (memory, "peak anonymous memory, MiB")):
        axes.legend()
        axes.set(xlabel="thousand training images", title=title, xlim=(0, None), ylim=(0, None))
    figure.suptitle("Time and memory by the size of the training set")
    return figure


# The tables of each part, in the order of the report.
TABLES: dict[str, dict[str, Callable[[pd.DataFrame], str]]] = {
    "recipes": {
        "costs": tabulate_costs,
        "recipes": tabulate_recipes,
        "stages": tabulate_stages,
    },
    "growth": {"growth": tabulate_growth},
    "workers": {"workers": tabulate_workers, "networks": tabulate_networks},
    "sweep": {"sweep": tabulate_sweep},
}


def make_tables(results: pd.DataFrame, machine: Mapping[str, Any], seeds: int) -> dict[str, str]:
    """Return the Markdown of each table by name, and for each part where it was measured."""
    turns = {
        "recipes": f"Seconds and memory are the medians of {seeds} runs (2 for slow trainings), "
        "accuracies the mean and standard deviation.",
        "workers": f"Values are the medians of {seeds} turns, with the lowest and the highest.",
    }
    made = {}
    for part in dict.fromkeys(results["part"]):
        runs = select_part(results, part)
        repeated = turns.get(part) if seeds > 1 else None
        made[f"{part} machine"] = (
            f"Measured on commit {', '.join(sorted(set(runs['commit'])))}, "
            f"{describe_machine(machine)}. {repeated or 'Every value is from one run.'}\n"
        )
        made |= {name: text for name, make in TABLES[part].items() if (text := make(runs))}
    return made
