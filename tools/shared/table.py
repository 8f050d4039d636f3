"""Compare the combinations of a sweep: a table, and a plot."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from stages.plot import BLUE, GREY, ORANGE
from tools.shared.report import align_tables, render
from tools.shared.revision import Result
from tools.shared.runs import Combination
from tools.shared.significance import adjust_p_values, compute_welch_p_value

METRICS = ("validation.accuracy", "validation.loss", "test.accuracy", "test.loss")
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, too

Row = Mapping[str, Any]


def list_results(combination: Combination, results: Mapping[str, Result]) -> list[Result]:
    """Return the results of the runs of a combination that did not fail."""
    return [results[run.text] for run in combination.runs if run.text in results]


def compute_rows(
    combinations: Sequence[Combination], results: Mapping[str, Result]
) -> list[dict[str, Any]]:
    """Return a row for each combination, which is compared with the first one.

    For each metric it has the mean and, over several seeds, the standard deviation. For validation,
    by which combinations are chosen, it also has the difference from the first row, and its
    p-value: Welch's t-test, with Holm's correction for the number of rows that are compared. A
    value that does not exist is None.
    """
    found = [list_results(combination, results) for combination in combinations]
    rows = pd.DataFrame({"runs": [len(each) for each in found]})
    for metric in METRICS:
        values = [[result.metrics[metric] for result in each] for each in found]
        rows[metric] = [pd.Series(each, dtype=float).mean() for each in values]
        rows[f"{metric} sd"] = [pd.Series(each, dtype=float).std() for each in values]
        if metric.startswith("validation."):
            p_values = {
                number: compute_welch_p_value(values[0], new)
                for number, new in enumerate(values)
                if number and min(len(values[0]), len(new)) > 1
            }
            rows[f"{metric} difference"] = (rows[metric] - rows[metric][0])[1:]
            rows[f"{metric} p"] = adjust_p_values(pd.Series(p_values, dtype=float))
    records: Any = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return list(records)


def format_value(row: Row, metric: str) -> str:
    """Return mean ± standard deviation; an accuracy in percent."""
    unit, places = (100, 2) if metric.endswith("accuracy") else (1, 4)
    if row[metric] is None:
        return "failed"
    deviation = row[f"{metric} sd"]
    spread = "" if deviation is None else f" ± {unit * deviation:.{places}f}"
    return f"{unit * row[metric]:.{places}f}{spread}"


def format_difference(row: Row, metric: str) -> str:
    """Return the difference from the first row, with its p-value if there are several seeds."""
    unit, places = (100, 2) if metric.endswith("accuracy") else (1, 4)
    difference, p_value = row[f"{metric} difference"], row[f"{metric} p"]
    if difference is None:
        return ""
    text = f"{round(unit * difference, places) + 0.0:+.{places}f}"  # + 0.0: never "-0.00"
    return text if p_value is None else f"{text} (p = {p_value:.2g})"


def list_values(combinations: Sequence[Combination]) -> pd.DataFrame:
    """Return a row for each combination: its value of every key that one of them sets, as text."""
    overrides = [text for combination in combinations for text in combination.overrides]
    keys = dict.fromkeys(text.partition("=")[0].lstrip("+") for text in overrides)
    return pd.DataFrame(
        [{key: str(each.parameters.get(key)) for key in keys} for each in combinations]
    )


def format_report(combinations: Sequence[Combination], rows: Sequence[Row]) -> str:
    """Return the table as Markdown, which also reads well as text, and how to read it."""
    table = pd.DataFrame(rows)
    ranked = table.dropna(subset="validation.accuracy").sort_values(
        ["validation.accuracy", "validation.loss"], ascending=[False, True], kind="stable"
    )
    best = combinations[ranked.index[0]].overrides if len(ranked) else None
    values = list_values(combinations)
    content = {
        "keys": list(values),
        "rows": [{**values.loc[number], **row} for number, row in enumerate(rows)],
        "seeds": table["runs"].max(),
        "tested": table["validation.accuracy p"].count(),
        "short": (table["runs"] < table["runs"].max()).sum(),
        "best": best if best is None else ", ".join(best) or "the committed parameters",
        "value": format_value,
        "difference": format_difference,
    }
    return align_tables(render("sweep.md.jinja", content))


def plot_accuracy(
    combinations: Sequence[Combination], results: Mapping[str, Result]
) -> Figure | None:
    """Plot the validation accuracy against each parameter that has several values.

    A point is a run; a line joins the means of combinations that differ in this parameter alone.
    Returns None if no parameter has several values.
    """
    points = list_values(combinations)
    points["accuracy"] = [
        [100 * result.metrics["validation.accuracy"] for result in list_results(each, results)]
        for each in combinations
    ]
    points = points.explode("accuracy").dropna().reset_index(drop=True)
    swept = [str(key) for key in points if key != "accuracy" and points[key].nunique() > 1]
    if not swept:
        return None
    figure = Figure(figsize=(1.2 + 4.2 * len(swept), 4.2))
    panels = figure.subplots(1, len(swept), squeeze=False, sharey=True)[0]
    for key, axes in zip(swept, panels, strict=True):
        others = [other for other in swept if other != key]
        labels = [", ".join(f"{n}={row[n]}" for n in others) for row in points.to_dict("records")]
        few = len(set(labels)) <= len(COLOURS)
        for number, (label, group) in enumerate(points.groupby(labels, sort=False)):
            colour = COLOURS[number] if few else GREY
            means = group.groupby(key, sort=False)["accuracy"].mean()
            axes.plot(means.index, means, "-", color=colour, label=label)
            axes.plot(group[key], group["accuracy"], "o", color=colour, alpha=0.6)
        axes.set(xlabel=key)
        if others and few:
            axes.legend(fontsize=8)
    panels[0].set(ylabel="validation accuracy, %")
    return figure
