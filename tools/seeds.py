"""Train the parameters of the last commit with several seeds, and report how the results vary.

Each seed is used as both `model.seed` and `train.seed`, and has its own DVC experiment of that
commit, as in tools.sweep. It is kept: `dvc exp show` lists it, and a later call does not train
it again. If two commits have such experiments, tools.compare compares them. Prints mean, standard
deviation and range of each metric, and writes the same to reports/seeds.md.

    python -m tools.seeds 5 [--per-class] [--jobs 2 | --cluster tcp://host:8786]
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from stages.core.errors import StageError, run
from stages.core.paths import REPORTS
from tools.shared.dask_cluster import add_place, parse_count, run_all
from tools.shared.report import align_tables, publish, render
from tools.shared.revision import Result, name_experiment
from tools.shared.runs import make_combinations, require_commit


def summarise(results: Sequence[Result], per_class: bool) -> dict[Any, dict[Any, float]]:
    """Return the mean, std, min and max of each metric.

    With `per_class`, the recall of each class is a metric too.
    """
    rows = pd.DataFrame([result.metrics for result in results])
    for name in results[0].classes if per_class else ():
        images = [each.predictions[each.predictions["actual"] == name] for each in results]
        recall = pd.Series([(each["predicted"] == name).mean() for each in images])
        rows[f"recall of {name}"] = recall.fillna(0.0)
    return rows.agg(["mean", "std", "min", "max"]).to_dict()


def main() -> None:
    """Train the seeds that have not been trained yet, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "count",
        type=partial(parse_count, above=1),  # a standard deviation needs two
        help="how many seeds, starting at 1; at least 2",
    )
    parser.add_argument("--per-class", action="store_true", help="also report each class")
    add_place(parser)
    arguments = parser.parse_args()
    commit = require_commit()
    seeds = range(1, arguments.count + 1)
    (combination,) = make_combinations(
        [()], seeds, name=lambda _, seed: name_experiment(commit, seed)
    )
    found = run_all(combination.runs, arguments.jobs, arguments.cluster, arguments.models)
    if missing := len(combination.runs) - len(found):
        raise StageError(f"{missing} seeds failed (see above); the results of the others are kept")
    metrics = summarise(list(found.values()), arguments.per_class)
    values = {"count": len(found), "commit": commit, "metrics": metrics}
    text = align_tables(render("seeds.md.jinja", values))
    publish(REPORTS / "seeds.md", text, ". `dvc exp show` lists the experiments")


if __name__ == "__main__":
    run(main)
