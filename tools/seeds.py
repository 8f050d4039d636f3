"""Train the parameters of the last commit with several seeds, and report how the results vary.

Each seed is used as both `model.seed` and `train.seed`, and has its own DVC experiment of that
commit, which tools.sweep runs. It is kept: `dvc exp show` lists it, and a later call does not train
it again. If two commits have such experiments, tools.compare compares them. Prints mean, standard
deviation and range of each metric, and writes the same to reports/seeds.md.

    python -m tools.seeds 5 [--per-class] [--jobs 2 | --cluster tcp://host:8786]
"""

import argparse
from functools import partial

import pandas as pd

from stages.core.errors import StageError, run
from stages.core.files import write_text
from stages.core.paths import REPORTS
from tools.shared.dask_cluster import add_place, parse_count, read_place, run_all
from tools.shared.report import format_table, replace_report
from tools.shared.revision import Result, name_experiment, resolve_commit
from tools.shared.runs import make_combinations, require_commit


def summarise(results: list[Result], per_class: bool) -> str:
    """Return the test accuracy and a table of all metrics, as Markdown.

    With `per_class`, the table also has the recall of each class.
    """
    rows = []
    for result in results:
        row = dict(result.metrics)
        if per_class:
            table = result.predictions
            recall = (table["actual"] == table["predicted"]).groupby(table["actual"]).mean()
            row |= {f"recall of {name}": recall.get(name, 0.0) for name in result.classes}
        rows.append(row)
    table = pd.DataFrame(rows).agg(["mean", "std", "min", "max"]).T
    titles = ("mean", "standard deviation", "lowest", "highest")
    lines = [
        {"metric": str(metric)}
        | {title: f"{value:.6f}" for title, value in zip(titles, values, strict=True)}
        for metric, values in table.iterrows()
    ]
    mean, deviation = table.loc["test.accuracy", ["mean", "std"]]
    return (
        f"Test accuracy {mean:.3%} ± {deviation:.3%} (standard deviation)\n\n"
        f"{format_table(lines, 'lrrrr')}\n"
    )


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
    require_commit()
    commit = resolve_commit("HEAD")
    (combination,) = make_combinations(
        [()],
        range(1, arguments.count + 1),
        name=lambda _, seed: name_experiment(commit, seed),
    )
    found = run_all(combination.runs, read_place(arguments))
    if missing := [each.label for each in combination.runs if each.text not in found]:
        raise StageError(
            f"{len(missing)} seeds failed (see above); the results of the others are kept"
        )
    results = [found[each.text] for each in combination.runs]
    text = f"# {len(results)} seeds of {commit[:7]}\n\n{summarise(results, arguments.per_class)}"
    report = REPORTS / "seeds.md"
    with replace_report(report) as path:
        write_text(path, text)
    print(f"\n{text}\nThis text is in {report}. `dvc exp show` lists the experiments.")


if __name__ == "__main__":
    run(main)
