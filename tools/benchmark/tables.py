"""The tables and the plot that are made of the benchmark's results."""

from statistics import mean, median, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stages.plot import BLUE, ORANGE

Result = dict[str, Any]
Results = dict[str, dict[str, list[Result]]]  # by part and name, one for each seed

TITLES = {
    "page": "the course page's script",
    "mnist_convnet": "keras-io's `mnist_convnet`",
    "default": "`params.yaml`",
}


def middle(results: list[Result], *keys: str) -> float:
    """Return the median over seeds of the value under `keys`, one in another."""
    values: list[float] = []
    for result in results:
        value: Any = result
        for key in keys:
            value = value[key]
        values.append(value)
    return median(values)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def recipes(results: Results) -> str:
    """Return what each recipe and reference reaches and takes."""
    found = results["recipes"]
    page = found.get("page")

    def against_page(name: str, key: str) -> str:
        seconds = middle(found[name], key)
        times = f" ({seconds / middle(page, key):.2f})" if page else ""
        return f"{seconds:.1f}{times}"

    rows = []
    for name, of_seeds in found.items():
        accuracies = [100 * result["accuracy"] for result in of_seeds]
        deviation = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        speed = middle(of_seeds, "images") / middle(of_seeds, "fit")
        rows.append(
            [
                TITLES.get(name, f"recipe `{name}`"),
                f"{mean(accuracies):.2f}{deviation}",
                against_page(name, "fit"),
                against_page(name, "all"),
                f"{speed:,.0f}",
                f"{middle(of_seeds, 'mebibytes'):,.0f}",
            ]
        )
    times = ", s (times the page's)" if page else ", s"
    return table(
        [
            "",
            "test accuracy, %",
            f"fitting{times}",
            f"in all{times}",
            "images a second",
            "peak memory, MiB",
        ],
        rows,
    )


def stages(results: Results) -> str:
    """Return what each stage of a cold `dvc repro` with params.yaml takes."""
    found = results["recipes"].get("default")
    if not found:
        return ""
    rows = [
        [
            f"`{stage}`",
            f"{middle(found, 'stages', stage, 'seconds'):.1f}",
            f"{middle(found, 'stages', stage, 'mebibytes'):,.0f}",
        ]
        for stage in found[0]["stages"]
    ]
    within = [sum(stage["seconds"] for stage in result["stages"].values()) for result in found]
    around = median(result["all"] - inside for result, inside in zip(found, within, strict=True))
    rows.append(["DVC itself", f"{around:.1f}", ""])
    return table(["stage", "seconds", "peak memory, MiB"], rows)


def costs(results: Results) -> str:
    """Return what there is beside training, each with its goal."""
    rows = []

    def add(what: str, value: float, unit: str, goal: str = "", missed: bool = False) -> None:
        rows.append([what, f"{value:.4g} {unit}", goal + (": missed" if missed else "")])

    def add_at_most(what: str, value: float, unit: str, most: float) -> None:
        add(what, value, unit, f"at most {most:g}", value > most)

    found = results.get("recipes", {})
    if default := found.get("default"):
        rest = median(result["all"] - result["fit"] for result in default)
        add_at_most("a cold `dvc repro` after the download, apart from fitting", rest, "s", 25)
        if page := found.get("page"):
            ratio = middle(default, "all") / middle(page, "all")
            add_at_most("all of it, against the course page's script", ratio, "times", 2.5)
        ratio = middle(default, "nothing") / middle(default, "status")
        add_at_most("`dvc repro` with nothing to do, against `dvc status`", ratio, "times", 1.2)
        add_at_most("`dvc repro` of `plot` alone", middle(default, "plot"), "s", 6)
        add_at_most("peak memory of `train`", middle(default, "mebibytes"), "MiB", 1536)
    fitting = results.get("fit", {})
    if loops := fitting.get("fit"):
        ratio = middle(loops, "fit") / middle(loops, "bare")
        add_at_most("`fit`, against a bare compiled loop", ratio, "times", 1.1)
    if pins := fitting.get("pins"):
        ratio = middle(pins, "pinned") / middle(pins, "like")
        add_at_most("fitting, against the same without determinism", ratio, "times", 1.05)
        ratio = middle(pins, "pinned") / middle(pins, "free")
        add("fitting, against nothing pinned, not even instruction set and threads", ratio, "times")
    for steps in results.get("step", {}).values():
        theirs = [name for name in steps[0] if name.startswith("PyTorch")]
        if theirs:
            speed = max(middle(steps, name, "images_a_second") for name in theirs)
            ratio = middle(steps, "project", "images_a_second") / speed
            what = "images a second of a step, against PyTorch at its fastest"
            add(what, ratio, "times", "at least 1", ratio < 1)
    return table(["", "measured", "goal"], rows) if rows else ""


def step(results: Results) -> str:
    """Return the speed of a training step, and its share of what the processor can do."""
    (found,) = results["step"].values()
    project = found[0]["project"]
    operations, peak = project["operations"], middle(found, "project", "peak")
    rows = []
    for name, values in found[0].items():
        speed = middle(found, name, "images_a_second")
        rows.append(
            [
                name.replace("PyTorch", f"PyTorch {values.get('version')}"),
                f"{speed:,.0f}",
                f"{speed * operations / 1e9:.0f}",
                f"{speed * operations / peak:.0%}",
            ]
        )
    return (
        table(["step of", "images a second", "GFLOP/s", "share of the peak"], rows)
        + f"\nBatches of {project['batch_size']}, {project['threads']} threads, "
        f"{operations / 1e6:.1f} million operations an image; the peak, {peak / 1e9:.0f} GFLOP/s, "
        "is that of products of large matrices, one on each thread, under the project's pins.\n"
    )


def growth(results: Results) -> str:
    """Return time and memory against the number of digits, and whether time is linear."""
    found = results["growth"]
    rows = []
    for of_seeds in found.values():
        fitting = middle(of_seeds, "fit")
        rows.append(
            [
                f"{of_seeds[0]['images']:,}",
                f"{middle(of_seeds, 'preprocess', 'seconds'):.1f}",
                f"{middle(of_seeds, 'preprocess', 'mebibytes'):,.0f}",
                f"{fitting:.1f}",
                f"{middle(of_seeds, 'seen') / fitting:,.0f}",
                f"{middle(of_seeds, 'train', 'mebibytes'):,.0f}",
            ]
        )
    columns = [
        "training digits",
        "`preprocess`, s",
        "its peak memory, MiB",
        "fitting an epoch, s",
        "images a second",
        "peak memory of `train`, MiB",
    ]
    lines = [
        f"{what}: {line[0] * 60_000:.2f} s for 60,000 digits more, {line[1]:.1f} s whatever their "
        f"number; no time is further than {deviation:.0%} from that line.\n"
        for what, keys in TIMES.items()
        for line, deviation in [straight_line(found, *keys)]
    ]
    return table(columns, rows) + "\n" + "".join(lines)


TIMES: dict[str, tuple[str, ...]] = {
    "`preprocess`": ("preprocess", "seconds"),
    "fitting an epoch": ("fit",),
}
PEAKS: dict[str, tuple[str, ...]] = {
    "`preprocess`": ("preprocess", "mebibytes"),
    "`train`": ("train", "mebibytes"),
}


def straight_line(found: dict[str, list[Result]], *keys: str) -> tuple[list[float], float]:
    """Return slope and intercept of the best line through the medians, and how far one is off it.

    Best by the squares of the relative distances, so that few digits count as much as many; the
    largest of those distances is the second result.
    """
    digits = np.array([of_seeds[0]["images"] for of_seeds in found.values()])
    values = np.array([middle(of_seeds, *keys) for of_seeds in found.values()])
    line = np.polyfit(digits, values, 1, w=1 / values)
    return line.tolist(), float(np.abs(np.polyval(line, digits) / values - 1).max())


def draw_growth(results: Results) -> Figure:
    """Return time and peak memory against the number of digits, the lines of the times dashed."""
    found = results["growth"]
    digits = [of_seeds[0]["images"] / 1000 for of_seeds in found.values()]
    figure = Figure(figsize=(8.4, 3.6))
    for axes, title, measures in zip(
        figure.subplots(1, 2), ("seconds", "peak memory, MiB"), (TIMES, PEAKS), strict=True
    ):
        for colour, (what, keys) in zip((BLUE, ORANGE), measures.items(), strict=True):
            values = [middle(of_seeds, *keys) for of_seeds in found.values()]
            axes.plot(digits, values, "o", color=colour, label=what.replace("`", ""))
            (slope, start), _ = straight_line(found, *keys)
            axes.plot(digits, [start + slope * 1000 * n for n in digits], "--", color=colour)
        axes.set(xlabel="thousand training digits", title=title, xlim=(0, None), ylim=(0, None))
        axes.legend()
    figure.suptitle("What more digits cost: measured, and the best straight line")
    return figure
