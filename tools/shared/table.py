"""Compare the combinations of a sweep: a table, and a plot."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from stages.plot import BLUE, GREY, ORANGE
from tools.shared.report import escape, format_table
from tools.shared.revision import Result
from tools.shared.runs import Combination
from tools.shared.significance import adjust_p_values, compute_welch_p_value

# What is compared: the titles of the columns with the value and the difference, the unit, and the
# places. Combinations are chosen by validation, so only there the difference is shown.
METRICS = {
    "validation.accuracy": ("validation, %", "points", 100, 2),
    "validation.loss": ("validation loss", "difference", 1, 4),
    "test.accuracy": ("test, %", "", 100, 2),
    "test.loss": ("test loss", "", 1, 4),
}
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
    rows: Rows = []
    for combination in combinations:
        found = list_results(combination, results)
        rows.append({"overrides": combination.overrides, "runs": len(found)})
        for metric in METRICS:
            values = [result.metrics[metric] for result in found]
            rows[-1][metric] = mean(values) if values else None
            rows[-1][f"{metric} sd"] = stdev(values) if len(values) > 1 else None
    before = list_results(combinations[0], results)
    for metric in [name for name, (_, title, *_) in METRICS.items() if title]:
        old, tested = [result.metrics[metric] for result in before], {}
        for number, combination in enumerate(combinations[1:], 1):
            new = [result.metrics[metric] for result in list_results(combination, results)]
            row = rows[number]
            row[f"{metric} difference"] = mean(new) - mean(old) if old and new else None
            row[f"{metric} p"] = None
            if min(len(old), len(new)) > 1:
                tested[number] = compute_welch_p_value(old, new)
        for number, p_value in zip(tested, adjust_p_values(list(tested.values())), strict=True):
            rows[number][f"{metric} p"] = p_value
    return rows


def format_value(row: Mapping[str, Any], metric: str) -> str:
    """Return mean ± standard deviation; an accuracy in percent."""
    *_, unit, places = METRICS[metric]
    value, deviation = row[metric], row[f"{metric} sd"]
    if value is None:
        return "failed"
    spread = "" if deviation is None else f" ± {deviation * unit:.{places}f}"
    return f"{value * unit:.{places}f}{spread}"


def format_difference(row: Mapping[str, Any], metric: str) -> str:
    """Return the difference from the first row, with its p-value if there are several seeds."""
    *_, unit, places = METRICS[metric]
    difference, p_value = row.get(f"{metric} difference"), row.get(f"{metric} p")
    if difference is None:
        return ""
    shown = "" if p_value is None else f" (p = {p_value:.2g})"
    return f"{round(difference * unit, places) + 0.0:+.{places}f}{shown}"  # + 0.0: never "-0.00"


def find_best(rows: Rows) -> dict[str, Any] | None:
    """Return the row with the highest validation accuracy; of equal ones, the lowest loss."""
    complete = [row for row in rows if row["validation.accuracy"] is not None]
    return max(
        complete,
        key=lambda row: (row["validation.accuracy"], -row["validation.loss"]),
        default=None,
    )


def list_values(combinations: Sequence[Combination]) -> list[dict[str, str]]:
    """Return for each combination its value of every key that one of them sets, as text."""
    overrides = [text for combination in combinations for text in combination.overrides]
    keys = dict.fromkeys(text.partition("=")[0].lstrip("+") for text in overrides)
    return [{key: str(each.parameters.get(key)) for key in keys} for each in combinations]


def format_report(combinations: Sequence[Combination], rows: Rows) -> str:
    """Return the table as Markdown, which also reads well as text, and how to read it."""
    lines = list_values(combinations)
    for line, row in zip(lines, rows, strict=True):
        for metric, (title, difference, *_) in METRICS.items():
            line[title] = format_value(row, metric)
            if difference:
                line[difference] = format_difference(row, metric)
    seeds = max(row["runs"] for row in rows)
    if seeds > 1:
        tested = sum(row.get("validation.accuracy p") is not None for row in rows)
        text = (
            f"Mean ± standard deviation over {seeds} seeds. p: Welch's t-test, with Holm's "
            f"correction for {tested} combinations; below 0.05, a difference is significant."
        )
    else:
        text = "One run each: a difference can be chance. --seeds 5 shows how large chance is."
    if short := sum(row["runs"] < seeds for row in rows):
        text += f" {short} rows have fewer runs, because some failed."
    if best := find_best(rows):
        chosen = ", ".join(best["overrides"]) or "the committed parameters"
        text += (
            f"\n\nBest by validation accuracy: {escape(chosen)}. Choose by validation: the test "
            "set is there to evaluate the choice, once."
        )
    return (
        f"{format_table(lines)}\n\nThe first row is the committed parameters; the others are "
        f"compared with it. {text}\n"
    )


def make_csv(combinations: Sequence[Combination], rows: Rows) -> pd.DataFrame:
    """Return the table with full precision: parameters, means, deviations and p-values."""
    both = zip(list_values(combinations), rows, strict=True)
    return pd.DataFrame(values | row for values, row in both).drop(columns="overrides")


def plot_accuracy(
    combinations: Sequence[Combination], results: Mapping[str, Result]
) -> Figure | None:
    """Plot the validation accuracy against each parameter that has several values.

    A point is a run; a line joins the means of combinations that differ in this parameter alone.
    Returns None if no parameter has several values.
    """
    points = pd.DataFrame(
        values | {"accuracy": 100 * result.metrics["validation.accuracy"]}
        for values, combination in zip(list_values(combinations), combinations, strict=True)
        for result in list_results(combination, results)
    )
    swept = [str(key) for key in points if key != "accuracy" and points[key].nunique() > 1]
    if not swept:
        return None
    figure = Figure(figsize=(1.2 + 4.2 * len(swept), 4.2))
    panels = figure.subplots(1, len(swept), squeeze=False, sharey=True)[0]
    for key, axes in zip(swept, panels, strict=True):
        others = [other for other in swept if other != key]
        labels = [
            ", ".join(f"{name}={row[name]}" for name in others) for _, row in points.iterrows()
        ]
        few = len(set(labels)) <= len(COLOURS)
        groups = points.groupby(labels, sort=False)
        for number, (label, group) in enumerate(groups):
            colour = COLOURS[number] if few else GREY
            means = group.groupby(key, sort=False)["accuracy"].mean()
            axes.plot(means.index, means, "-", color=colour, label=label)
            axes.plot(group[key], group["accuracy"], "o", color=colour, alpha=0.6)
        axes.set(xlabel=key)
        if others and few:
            axes.legend(fontsize=8)
    panels[0].set(ylabel="validation accuracy, %")
    return figure
