"""Compare two revisions, and test whether their accuracies differ significantly.

A revision is a branch, tag, commit, experiment or `workspace` (the files as they are now). The
command reads results from git and DVC's cache; it trains nothing. It prints the verdict, the
parameters and metrics that differ, and the test images that were fixed or broken. The same text
goes to reports/compare.md, for a pull request. reports/compare.html is one file that also shows the
images. If tools.seeds trained both revisions with several seeds, the verdict compares the seeds.

Exit code 1: the second revision is significantly less accurate, or less accurate by more than
--max-drop.
Exit code 2: the two revisions cannot be compared, or the results of one do not belong to its code
and parameters.

    python -m tools.compare main [workspace] [--max-drop 0.001] [--per-class]
"""

import argparse
import base64
import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.core.errors import StageError, run
from stages.core.files import Floats, write_text
from stages.core.paths import REPORTS
from stages.core.terminal import print_line
from tools.shared import revision
from tools.shared.report import align_tables, escape, render, replace_report
from tools.shared.revision import WORKSPACE, Result
from tools.shared.significance import (
    SIGNIFICANCE_LEVEL,
    adjust_p_values,
    compare_runs,
    compare_seeds,
    compute_p_value,
)

LONGEST = 200  # characters of a parameter's value in both reports
LISTED = 10  # most fixed images in the Markdown report, and most broken ones
SHOWN = 100  # most fixed images in the HTML report, and most broken ones

# Words in the names of metrics. Any other metric gets neither "better" nor "worse".
HIGHER_IS_BETTER = {"accuracy", "precision", "recall", "f1", "auc", "score"}
LOWER_IS_BETTER = {"loss", "error", "mistakes"}

Rows = list[dict[str, Any]]


def compare_parameters(before: Mapping[str, Any], after: Mapping[str, Any]) -> Rows:
    """Return the parameters that differ, in the order of params.yaml, with both values as text."""

    def show(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key], default=str)[:LONGEST] if key in values else "none"

    missing = object()
    return [
        {"name": key, "before": show(before, key), "after": show(after, key)}
        for key in {**before, **after}
        if before.get(key, missing) != after.get(key, missing)
    ]


def compare_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> Rows:
    """Return all metrics, as text with all decimals, and their exact difference.

    The direction is better, worse, same, or empty if neither direction is better.
    """
    rows = []
    for key in {**before, **after}:
        old, new = (repr(side[key]) if key in side else "none" for side in (before, after))
        row = {"name": key, "before": old, "after": new, "difference": "", "direction": ""}
        if "none" not in (old, new):
            change = Decimal(new) - Decimal(old)  # exact, unlike the difference of two floats
            words = set(key.rpartition(".")[2].split("_"))
            sign = bool(words & HIGHER_IS_BETTER) - bool(words & LOWER_IS_BETTER)
            row["difference"] = f"{change:+f}" if change else "0"
            if not change:
                row["direction"] = "same"
            elif sign:
                row["direction"] = "better" if sign * change > 0 else "worse"
        rows.append(row)
    return rows


def pair_predictions(base: Result, head: Result) -> pd.DataFrame:
    """Return both predictions for each test image, and whether it was fixed or broken.

    The columns have names such as predicted_before. Raises StageError if the two results come from
    different test sets.
    """
    columns = ["index", "actual"]
    if base.test_files != head.test_files or not base.predictions[columns].equals(
        head.predictions[columns]
    ):
        old, new = (f"{len(side.predictions)} images of '{side.title}'" for side in (base, head))
        raise StageError(
            f"{base.name} and {head.name} have different test sets, so their predictions cannot be "
            f"paired: {old}, and {new if new != old else 'the same number of other images'}"
        )
    table = base.predictions.merge(head.predictions, on=columns, suffixes=("_before", "_after"))
    before, after = (table["actual"] == table[f"predicted_{side}"] for side in ("before", "after"))
    return table.assign(before=before, after=after, fixed=~before & after, broken=before & ~after)


def encode_image(image: Floats, ink: bool) -> str:
    """Return an image in [0, 1] as a data URI: a PNG in its own shades of grey or colours."""
    stream = io.BytesIO()
    levels = (255 * (1 - image if ink else image)).round().astype(np.uint8)
    Image.fromarray(levels).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def count_by_class(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Return for each class how many images are correct, fixed and broken, and the p-value.

    The p-values come from McNemar's exact test and are adjusted for the number of classes.
    """
    columns = ["count", "before", "after", "fixed", "broken"]
    counts = table.assign(count=1).groupby("actual")[columns].sum()
    counts = counts.reindex(classes, fill_value=0).rename_axis("name").reset_index()
    p_values = map(compute_p_value, counts["fixed"], counts["broken"])
    counts["p_value"] = adjust_p_values(pd.Series(list(p_values)))
    counts["significant"] = counts["p_value"] < SIGNIFICANCE_LEVEL
    return counts


def list_images(table: pd.DataFrame, wrong: str, images: Floats | None, ink: bool) -> Rows:
    """Return the rows of `table`, sorted by the confidence of the mistakes, the highest first.

    `wrong` is `before` or `after`: the side whose predictions are the mistakes.
    """
    ordered = table.sort_values([f"confidence_{wrong}", "index"], ascending=[False, True])
    rows: Rows = ordered.to_dict("records")  # type: ignore[assignment]
    for row in rows[:SHOWN]:
        row["image"] = None if images is None else encode_image(images[row["index"]], ink)
    return rows


def make_report(base: Result, head: Result, max_drop: float) -> dict[str, Any]:
    """Return everything that the templates show about two results."""
    table = pair_predictions(base, head)
    fixed, broken = table[table["fixed"]], table[table["broken"]]
    runs = compare_runs(len(fixed), len(broken), len(table), max_drop)
    accuracies = old, new = [
        [member.metrics["test.accuracy"] for member in revision.read_seeds(side)]
        for side in (base, head)
    ]
    seeds = compare_seeds(old, new, max_drop) if min(len(old), len(new)) > 1 else None
    stale = [f"{side.name}: {note}" for side in (base, head) for note in side.stale]
    found = (revision.read_test_images(side) for side in (head, base))
    images = next((images for images in found if images is not None), None)
    return {
        "base": base,
        "head": head,
        "heading": "Stale results" if stale else (seeds or runs).summary,
        "verdict": seeds or runs,
        "runs": runs if seeds else None,
        "accuracies": accuracies,
        "stale": stale,
        "parameters": compare_parameters(base.parameters, head.parameters),
        "code": revision.list_changed_inputs(base, head),
        "metrics": compare_metrics(base.metrics, head.metrics),
        "classes": count_by_class(table, head.classes).to_dict("records"),
        "count": len(table),
        "validation_differs": base.validation != head.validation,
        "fixed": list_images(fixed, "before", images, head.ink),
        "broken": list_images(broken, "after", images, head.ink),
        "listed": LISTED,
        "shown": SHOWN,
        "with_images": images is not None,
    }


def shorten(number: str, sign: str = "") -> str:
    """Return a number with six decimals. Whole numbers and other text are returned unchanged."""
    if not re.search(r"\d[.e]", number):
        return number
    value = float(number)
    tiny = 0 < abs(value) < 1e-6
    return f"{value:{sign}.0e}" if tiny else f"{value:{sign}.6f}"


def compare(base: str, head: str, max_drop: float) -> dict[str, Any]:
    """Return the report on two revisions, or raise StageError if they cannot be compared."""
    commits = [revision.resolve_commit(side) for side in (base, head) if side != WORKSPACE]
    if len(commits) == 2 and commits[0] == commits[1]:
        raise StageError(f"{base} and {head} are the same commit: nothing to compare")
    if not commits or (len(commits) == 1 and not revision.differs_from(commits[0])):
        raise StageError(f"{base} and {head} have the same files: nothing to compare")
    return make_report(revision.read_revision(base), revision.read_revision(head), max_drop)


def parse_fraction(text: str) -> float:
    """Return a number from 0 to 1, for argparse."""
    with suppress(ValueError):
        if 0 <= (number := float(text)) <= 1:
            return number
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")


def main() -> None:
    """Compare two revisions, write both reports, and exit with the code of the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="the revision to compare with")
    parser.add_argument("head", nargs="?", default=WORKSPACE, help=f"default: {WORKSPACE}")
    parser.add_argument(
        "--max-drop", type=parse_fraction, default=1.0, help="fail if accuracy drops by more"
    )
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="list all classes, not only those that changed significantly",
    )
    arguments = parser.parse_args()
    page, markdown = REPORTS / "compare.html", REPORTS / "compare.md"
    try:
        for path in (page, markdown):
            path.unlink(missing_ok=True)  # an older report would mislead if this comparison fails
        report = compare(arguments.base, arguments.head, arguments.max_drop)
        values = report | {"per_class": arguments.per_class, "shorten": shorten}
        text = align_tables(render("compare.md.jinja", values))
        with replace_report(markdown) as path:
            write_text(path, text)
        with replace_report(page) as path:
            write_text(path, render("compare.html.jinja", report))
    except (StageError, OSError) as error:  # 1, with which `run` would end, has another meaning
        with suppress(StageError, OSError):
            write_text(markdown, f"## Cannot be compared\n\n{escape(error)}\n")
        print_line(f"error: {error}", sys.stderr)
        sys.exit(2)
    extra = "the images" if report["with_images"] else "all classes and decimals"
    print(f"{text}\nThis text is in {markdown}, and with {extra} in {page}.")
    if report["stale"]:
        sys.exit(2)
    if report["verdict"].direction == "worse":
        sys.exit(1)


if __name__ == "__main__":
    run(main)
