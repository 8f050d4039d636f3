"""Measure every technique of docs/techniques.md, and write the tables and pictures.

benchmarks/techniques.yaml lists the runs. They are DVC experiments of the last commit, which
tools.sweep runs, so an interrupted measurement goes on where it stopped. Their names say what they
change, as in `dropout-0.3-seed1`.

    python -m benchmarks.techniques [--jobs 2 | --cluster tcp://host:8786]
"""

import argparse
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.tables import describe_machine, insert_tables
from dvc_verify.git import ask_git
from dvc_verify.lockfile import flatten
from stages import plot
from stages.core.errors import StageError, run
from stages.core.machine import collect_fingerprint
from stages.core.paths import HISTORY
from stages.core.settings import read_yaml
from tools.recipe import RECIPES
from tools.shared import table
from tools.shared.dask_cluster import add_place, run_all
from tools.shared.report import format_table
from tools.shared.revision import SEEDS, Result
from tools.shared.runs import Combination, make_combinations, require_commit
from tools.shared.significance import SIGNIFICANCE_LEVEL

DESCRIPTION = Path("benchmarks/techniques.yaml")
DOCS = Path("docs")
METRICS = {"accuracy, points": "validation.accuracy", "loss": "validation.loss"}


@dataclass(frozen=True)
class Table:
    """A table of the page, and its picture."""

    name: str
    base: tuple[str, ...]  # what every row changes, besides the recipe
    combinations: list[Combination]  # the first is what the others are compared with
    labels: list[str]  # of the rows
    metrics: tuple[str, ...]
    picture: Mapping[str, Any]


def read_tables(description: Mapping[str, Any]) -> list[Table]:
    """Return the tables with their runs, or raise StageError for values that are not allowed."""
    recipe = flatten(read_yaml(RECIPES / f"{description['recipe']}.yaml"))
    # As -S takes them: null, true, [1,2].
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in recipe.items()}
    recipe_overrides = tuple(f"{key}={text}".replace(" ", "") for key, text in texts.items())
    found = []
    for name, content in description["tables"].items():
        base = tuple(content.get("base", "").split())
        made = Table(name, base, [], [], content.get("metrics", ()), content.get("picture", {}))
        for row in ["", *content["rows"]]:
            fields = row if isinstance(row, Mapping) else {"set": row}
            changes = tuple(fields.get("set", "").split())
            keys = tuple(fields.get("seeds", SEEDS))
            overrides, seeds = (*base, *changes), range(1, description["seeds"] + 1)
            # Experiments are named after the keys without their sections, and the values.
            parts = [override.partition(".")[2] for override in overrides] or ["base"]
            parts += [f"{key.partition('.')[0]}-only" for key in keys if keys != SEEDS]
            prefix = re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-")

            def name_run(_: object, seed: int, prefix: str = prefix) -> str:
                return f"{prefix}-seed{seed}"

            made.combinations.extend(
                make_combinations([overrides], seeds, recipe_overrides, keys, name=name_run)
            )
            label = " ".join(f"`{change}`" for change in changes) or "base"
            made.labels.append(label if keys == SEEDS else f"only {' and '.join(keys)} varies")
        found.append(made)
    return found


def format_difference(
    label: str, row: Mapping[str, Any], metric: str, *, with_p_value: bool = False
) -> str:
    """Return the difference from the base, in parentheses if it is not significant."""
    if "train.loss=" in label and metric == "validation.loss":
        return "not comparable"
    if with_p_value:
        return table.format_difference(row, metric)
    shown = table.format_difference({**row, f"{metric} p": None}, metric)
    p_value = row.get(f"{metric} p")
    return shown if p_value is None or p_value < SIGNIFICANCE_LEVEL else f"({shown})"


def format_results(each: Table, results: Mapping[str, Result]) -> str:
    """Return a table of the page, and the link to its picture, as Markdown."""
    rows = table.compute_rows(each.combinations, results)
    lines = []
    for label, combination, row in zip(each.labels, each.combinations, rows, strict=True):
        line = {
            "": label,
            "accuracy, %": table.format_value(row, "validation.accuracy"),
            "difference, points": format_difference(label, row, "validation.accuracy"),
            "loss": table.format_value(row, "validation.loss"),
        }
        for metric in each.metrics:
            values = [run.metrics[metric] for run in table.list_results(combination, results)]
            line[metric.replace(".", " ").replace("_", " ")] = f"{mean(values):.3g}"
        lines.append(line)
    link = "\n\n![{title}]({file})\n".format(**each.picture) if each.picture else ""
    return format_table(lines) + link


def format_changes(
    tables: list[Table], results: Mapping[str, Result], *, with_p_value: bool
) -> str:
    """Return a table of all changes and their effects, or without p-values of the first ones."""
    lines = []
    for each in tables:
        rows = table.compute_rows(each.combinations, results)
        last = len(rows) if with_p_value else 2
        firsts = [
            results[combination.runs[0].text].metrics["validation.accuracy"]
            for combination in each.combinations
        ]
        for label, row, first in list(zip(each.labels, rows, firsts, strict=True))[1:last]:
            if label.startswith("`") or with_p_value:  # others change only the seeds
                line = {"change": " with ".join([label, *(f"`{base}`" for base in each.base)])}
                for title, metric in METRICS.items():
                    line[title] = format_difference(label, row, metric, with_p_value=with_p_value)
                if with_p_value:
                    line["seed 1"] = f"{100 * (first - firsts[0]):+.2f}"
                lines.append(line)
    return format_table(lines)


def draw(each: Table, results: Mapping[str, Result]) -> Figure:
    """Plot columns of the histories by epoch: a colour for each row, a line for each seed.

    Shorter runs are drawn over longer ones, with a dot at the end, since both may begin alike.
    """
    columns = each.picture["columns"]
    figure = Figure(figsize=(4.6 * len(columns), 4.0), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    style = {"linewidth": 1, "marker": "o", "markersize": 3, "markevery": [-1]}
    for colour, label, combination in zip(
        cycle(table.COLOURS), each.labels, each.combinations, strict=False
    ):
        for number, result in enumerate(table.list_results(combination, results)):
            text = ask_git("show", f"{result.commit}:./{HISTORY}")
            history = pd.read_csv(io.StringIO(text), index_col="epoch")
            style["label"] = None if number else label.replace("`", "")
            for axes, column in zip(panels, columns, strict=True):
                order = 2 + 1 / len(history)
                axes.plot(history[column], color=colour, zorder=order, **style)
    for axes, column in zip(panels, columns, strict=True):
        axes.set(xlabel="epoch", title=column.replace("val_", "validation ").replace("_", " "))
    lines, texts = panels[0].get_legend_handles_labels()
    figure.legend(lines, texts, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def main() -> None:
    """Run what has not run yet, then write tables and pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_place(parser)
    arguments = parser.parse_args()
    commit = require_commit()
    description = read_yaml(DESCRIPTION)
    tables = read_tables(description)
    runs = [each for one in tables for combination in one.combinations for each in combination.runs]
    results = run_all(runs, arguments.jobs, arguments.cluster, arguments.models)
    if failed := len({each.text for each in runs} - results.keys()):
        raise StageError(f"{failed} runs failed for the reasons above; the pages are unchanged")
    made = {each.name: format_results(each, results) for each in tables}
    made["summary"] = format_changes(tables, results, with_p_value=False)
    made["p-values"] = format_changes(tables, results, with_p_value=True)
    made["machine"] = (
        f"Measured on commit {commit[:7]}, with {description['seeds']} seeds a "
        f"row, {describe_machine(collect_fingerprint())}.\n"
    )
    insert_tables(DOCS, made, "techniques")
    with matplotlib.rc_context(plot.STYLE):
        for each in tables:
            if each.picture:
                plot.save(draw(each, results), DOCS / each.picture["file"], 120)
    count = len({each.text for each in runs})
    print(f"The tables and pictures have {count} runs; `git diff` shows what has changed.")


if __name__ == "__main__":
    run(main)
