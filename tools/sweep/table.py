"""Compare the combinations of a sweep: a table, and a plot."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from stages.plot import BLUE, GREY, ORANGE
from tools.compare.revision import Result
from tools.compare.significance import adjust_p_values, compute_welch_p_value
from tools.sweep.runs import Combination

# What is compared, in the order of the columns, and the places of each figure. Validation is first,
# because combinations are chosen by it.
METRICS = {
    "validation.accuracy": 2,
    "validation.loss": 4,
    "test.accuracy": 2,
    "test.loss": 4,
}
TITLES = {
    "validation.accuracy": "validation, %",
    "validation.loss": "validation loss",
    "test.accuracy": "test, %",
    "test.loss": "test loss",
}
CHOOSING = ("validation.accuracy", "validation.loss")
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, too

Rows = list[dict[str, Any]]


def list_results(combination: Combination, results: Mapping[str, Result]) -> list[Result]:
    """Return the results of the runs of a combination that did not fail."""
    return [results[run.text] for run in combination.runs if run.text in results]


def compute_rows(combinations: Sequence[Combination], results: Mapping[str, Result]) -> Rows:
    """Return a row for each combination, which is compared with the first one.

    For each metric it has the mean and, over several seeds, the standard deviation. For validation
    it also has the difference from the first row, and its p-value: Welch's t-test, with Holm's
    correction for the number of rows that are compared.
    """
    base = list_results(combinations[0], results)
    rows: Rows = []
    for combination in combinations:
        found = list_results(combination, results)
        row: dict[str, Any] = {"overrides": combination.overrides, "runs": len(found)}
        for metric in METRICS:
            values = [result.metrics[metric] for result in found]
            row[metric] = mean(values) if values else None
            row[f"{metric} sd"] = stdev(values) if len(values) > 1 else None
            if metric in CHOOSING and combination is not combinations[0]:
                before = [result.metrics[metric] for result in base]
                both = bool(before and values)
                row[f"{metric} difference"] = mean(values) - mean(before) if both else None
                testable = min(len(before), len(values)) > 1
                row[f"{metric} p"] = compute_welch_p_value(before, values) if testable else None
        rows.append(row)
    for metric in CHOOSING:
        tested = [row for row in rows if row.get(f"{metric} p") is not None]
        adjusted = adjust_p_values([row[f"{metric} p"] for row in tested])
        for row, p_value in zip(tested, adjusted, strict=True):
            row[f"{metric} p"] = p_value
    return rows


def format_value(row: Mapping[str, Any], metric: str) -> str:
    """Return mean ± standard deviation; an accuracy in percent."""
    scale = 100 if metric.endswith("accuracy") else 1
    places, value, deviation = METRICS[metric], row[metric], row[f"{metric} sd"]
    if value is None:
        return "failed"
    spread = "" if deviation is None else f" ± {deviation * scale:.{places}f}"
    return f"{value * scale:.{places}f}{spread}"


def format_difference(row: Mapping[str, Any], metric: str) -> str:
    """Return the difference from the first row, with its p-value if there are several seeds."""
    scale = 100 if metric.endswith("accuracy") else 1
    difference, p_value = row.get(f"{metric} difference"), row.get(f"{metric} p")
    if difference is None:
        return ""
    shown = "" if p_value is None else f" (p = {p_value:.2g})"
    places = METRICS[metric]
    return f"{round(difference * scale, places) + 0.0:+.{places}f}{shown}"  # + 0.0: never "-0.00"


def find_best(rows: Rows) -> dict[str, Any] | None:
    """Return the row with the highest validation accuracy; of equal ones, the lowest loss."""
    complete = [row for row in rows if row["validation.accuracy"] is not None]
    return max(
        complete,
        key=lambda row: (row["validation.accuracy"], -row["validation.loss"]),
        default=None,
    )


def list_keys(combinations: Sequence[Combination]) -> list[str]:
    """Return the keys that the combinations set, in their order."""
    overrides = [text for combination in combinations for text in combination.overrides]
    return list(dict.fromkeys(text.partition("=")[0].lstrip("+") for text in overrides))


def format_report(combinations: Sequence[Combination], rows: Rows) -> str:
    """Return the table as Markdown, which also reads well as text, and how to read it."""
    keys = list_keys(combinations)
    lines = []
    for combination, row in zip(combinations, rows, strict=True):
        line = {key: str(combination.parameters.get(key)) for key in keys}
        for metric, title in TITLES.items():
            line[title] = format_value(row, metric)
            if metric in CHOOSING:
                title = "points" if metric.endswith("accuracy") else "difference"
                line[title] = format_difference(row, metric)
        lines.append(line)
    table = pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    seeds = max(row["runs"] for row in rows)
    text = (
        f"{table}\n\nThe first row is the committed parameters; the others are compared with it. "
    )
    if seeds > 1:
        tested = sum(row.get("validation.accuracy p") is not None for row in rows)
        text += (
            f"Mean ± standard deviation over {seeds} seeds. p: Welch's t-test, with Holm's "
            f"correction for {tested} combinations; below 0.05, a difference is significant."
        )
    else:
        text += "One run each: a difference can be chance. --seeds 5 shows how large chance is."
    short = [row for row in rows if row["runs"] < seeds]
    if short:
        text += f" {len(short)} rows have fewer runs, because some failed."
    if best := find_best(rows):
        chosen = ", ".join(best["overrides"]) or "the committed parameters"
        text += (
            f"\n\nBest by validation accuracy: {chosen}. Choose by validation: the test set is "
            "there to evaluate the choice, once."
        )
    return text + "\n"


def make_csv(combinations: Sequence[Combination], rows: Rows) -> pd.DataFrame:
    """Return the table with full precision: parameters, means, deviations and p-values."""
    keys = list_keys(combinations)
    return pd.DataFrame(
        {key: str(combination.parameters.get(key)) for key in keys}
        | {name: value for name, value in row.items() if name != "overrides"}
        for combination, row in zip(combinations, rows, strict=True)
    )


def plot_accuracy(
    combinations: Sequence[Combination], results: Mapping[str, Result]
) -> Figure | None:
    """Plot the validation accuracy against each parameter that has several values.

    A point is a run; a line joins the means of combinations that differ in this parameter alone.
    Returns None if no parameter has several values.
    """
    values = {
        key: list(dict.fromkeys(map(str, (each.parameters.get(key) for each in combinations))))
        for key in list_keys(combinations)
    }
    swept = [key for key, found in values.items() if len(found) > 1]
    if not swept:
        return None
    figure = Figure(figsize=(1.2 + 4.2 * len(swept), 4.2))
    panels = figure.subplots(1, len(swept), squeeze=False, sharey=True)[0]
    for key, axes in zip(swept, panels, strict=True):
        series: dict[tuple[str, ...], list[tuple[float, list[float]]]] = {}
        for combination in combinations:
            accuracies = [
                100 * result.metrics["validation.accuracy"]
                for result in list_results(combination, results)
            ]
            value = combination.parameters.get(key)
            place = float(values[key].index(str(value)))
            rest = tuple(
                f"{other}={combination.parameters.get(other)}" for other in swept if other != key
            )
            if accuracies:
                series.setdefault(rest, []).append((place, accuracies))
        few = len(series) <= len(COLOURS)
        colours = COLOURS if few else [GREY] * len(series)
        for colour, (rest, points) in zip(colours, series.items(), strict=False):
            points.sort()
            axes.plot(
                [place for place, _ in points],
                [mean(accuracies) for _, accuracies in points],
                "-",
                color=colour,
                label=", ".join(rest),
            )
            for place, accuracies in points:
                axes.plot([place] * len(accuracies), accuracies, "o", color=colour, alpha=0.6)
        axes.set_xticks(range(len(values[key])), values[key])
        axes.set(xlabel=key)
        if few and len(series) > 1:
            axes.legend(fontsize=8)
    panels[0].set(ylabel="validation accuracy, %")
    return figure
