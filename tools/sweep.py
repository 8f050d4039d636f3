"""Run a grid of parameters, each combination with several seeds; compare the results.

Every run is a DVC experiment of the last commit, with the bytes that `dvc exp run` would give. What
has run before is not run again, so a grid can be interrupted or extended. -S has
DVC's syntax; values with commas between them are a grid. Prints a table that compares each
combination with the committed parameters, and writes it to reports/sweep.md and .csv, and a plot to
reports/sweep.png.

    python -m tools.sweep -S train.epochs=2,4,8 -S train.batch_size=64,128 --seeds 5 --jobs 2
    python -m tools.sweep -S train.epochs=2,4,8 --cluster tcp://host:8786

docs/sweeps.md says how to start a cluster.
"""

import argparse
import sys

import matplotlib
import pandas as pd

from stages import plot
from stages.core.errors import run
from stages.core.files import write_csv
from stages.core.paths import REPORTS
from tools.shared import table
from tools.shared.dask_cluster import add_place, parse_count, run_all
from tools.shared.report import publish, replace_report
from tools.shared.revision import name_experiment
from tools.shared.runs import expand_grid, make_combinations, require_commit

REPORT = REPORTS / "sweep.md"


def main() -> None:
    """Run what has not run yet, then compare."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="a key of params.yaml and its values; several -S make a grid",
    )
    parser.add_argument(
        "--seeds",
        type=parse_count,
        default=0,
        metavar="N",
        help="run each combination with N seeds (model.seed and train.seed), starting at 1",
    )
    add_place(parser)
    arguments = parser.parse_args()
    if not (arguments.set_param or arguments.seeds):
        parser.error("expected -S or --seeds")
    commit = require_commit()

    def name(overrides: tuple[str, ...], seed: int) -> str | None:
        """Give the committed parameters the names of tools.seeds, which then finds them."""
        return None if overrides else name_experiment(commit, seed)

    seeds = range(1, arguments.seeds + 1)
    grid = [(), *expand_grid(arguments.set_param)]
    combinations = make_combinations(grid, seeds, name=name)
    runs = [each for combination in combinations for each in combination.runs]
    results = run_all(runs, arguments.jobs, arguments.cluster, arguments.models)
    rows = table.compute_rows(combinations, results)
    with replace_report(REPORT.with_suffix(".csv")) as path:
        write_csv(path, table.list_values(combinations).join(pd.DataFrame(rows)))
    if figure := table.plot_accuracy(combinations, results):
        with matplotlib.rc_context(plot.STYLE), replace_report(REPORT.with_suffix(".png")) as path:
            plot.save(figure, path, 120)
    report = table.format_report(combinations, rows)
    publish(REPORT, report, ". `dvc exp show` lists the experiments")
    if failed := len({run.text for run in runs} - results.keys()):
        sys.exit(f"error: {failed} runs failed for the reasons above")


if __name__ == "__main__":
    run(main)
