"""Compare two revisions, and test whether their accuracies differ significantly.

A revision is a branch, tag, commit or experiment, or `workspace`, the files in the working tree.
The command reads what is committed or in DVC's cache and trains nothing. It prints the verdict, the
parameters and metrics that differ, and the test images that were fixed or broken. It writes the
same to reports/compare.md, for a pull request, and with images to reports/compare.html.

Exits with 1 if the second revision is significantly less accurate, or by more than --max-drop; with
2 if the two cannot be compared, or if the results of one do not belong to its code and parameters.
If both have runs with several seeds (tools/seeds.py), the recipes are compared instead.

    python -m tools.compare main [workspace] [--max-drop 0.001] [--per-class]
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from PIL import Image

from stages.core.errors import StageError, run
from stages.core.files import write_text
from stages.core.paths import REPORTS
from tools.compare import revision
from tools.compare.revision import WORKSPACE, Result
from tools.compare.significance import (
    SIGNIFICANCE_LEVEL,
    adjust_p_values,
    judge_recipes,
    judge_runs,
)

TEMPLATES = Path(__file__).parents[1] / "templates"

SHOWN = 100  # images that are shown of those fixed, and of those broken

ONE_RUN_EACH = "This compares one run of each. For other seeds, run `make seeds` on both commits."
OTHER_VALIDATION_SET = "The validation sets differ, so validation metrics are not comparable."

BETTER_HIGHER = ("accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1")
BETTER_LOWER = ("loss",)


@dataclass(frozen=True)
class Row:
    """A parameter or a metric before and after, as text."""

    name: str
    before: str
    after: str
    difference: str = ""
    direction: str = ""  # better, worse, same, or empty if neither is better


def differing_parameters(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """Return the parameters that differ, in the order of params.yaml."""
    return [
        Row(
            key,
            *(
                json.dumps(side[key], default=str) if key in side else "none"
                for side in (before, after)
            ),
        )
        for key in before | after
        if key not in before or key not in after or before[key] != after[key]
    ]


def metric_rows(before: dict[str, float], after: dict[str, float]) -> list[Row]:
    """Return each metric on both sides at full precision, and whether that is better or worse."""
    rows = []
    for key in before | after:
        old, new = (repr(side[key]) if key in side else "none" for side in (before, after))
        if "none" in (old, new):
            rows.append(Row(key, old, new))
            continue
        difference = Decimal(new) - Decimal(old)  # exact, unlike that of two floats
        name = key.rpartition(".")[2]
        sign = (name in BETTER_HIGHER) - (name in BETTER_LOWER)
        direction = "same"
        if difference:
            direction = {1: "better", -1: "worse", 0: ""}[sign * (1 if difference > 0 else -1)]
        rows.append(Row(key, old, new, f"{difference:+f}" if difference else "0", direction))
    return rows


def paired(base: Result, head: Result) -> pd.DataFrame:
    """Return both predictions of each test image, side by side: predicted_before, right_after, ...

    Raises StageError if the two were not evaluated on the same test images.
    """
    columns = ["index", "actual"]
    if base.test_files != head.test_files or not base.predictions[columns].equals(
        head.predictions[columns]
    ):
        old, new = (f"{len(side.predictions)} of '{side.title}'" for side in (base, head))
        raise StageError(
            f"{base.name} and {head.name} were evaluated on different test images, so they cannot "
            f"be compared: {old}, and {new if new != old else 'as many others of the same title'}"
        )
    table = base.predictions.merge(head.predictions, on=columns, suffixes=("_before", "_after"))
    for side in ("before", "after"):
        table[f"right_{side}"] = table["actual"] == table[f"predicted_{side}"]
    return table


def picture(image: npt.NDArray[np.float32]) -> str:
    """Return an image (height, width) in [0, 1] as an address that holds it: black on white PNG."""
    stream = io.BytesIO()
    Image.fromarray((255 * (1 - image)).round().astype(np.uint8)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def by_class(table: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """Return for each class its number of test images, and how many were right, fixed and broken.

    The p-values are corrected for the number of classes.
    """
    rows: list[dict[str, Any]] = []
    for name in classes:
        images = table[table["actual"] == name]
        before, after = images["right_before"], images["right_after"]
        rows.append(
            {
                "name": name,
                "count": len(images),
                "before": int(before.sum()),
                "after": int(after.sum()),
                "fixed": int((~before & after).sum()),
                "broken": int((before & ~after).sum()),
            }
        )
    tests = [judge_runs(row["fixed"], row["broken"], row["count"], 1.0) for row in rows]
    for row, p_value in zip(rows, adjust_p_values([test.p_value for test in tests]), strict=True):
        row["p_value"] = p_value
    return rows


def digit_rows(
    table: pd.DataFrame, wrong: str, images: npt.NDArray[np.float32] | None
) -> list[dict[str, Any]]:
    """Return the images of a table, the most confident mistakes of the `wrong` side first."""
    ordered = table.sort_values([f"confidence_{wrong}", "index"], ascending=[False, True])
    rows: list[dict[str, Any]] = ordered.to_dict("records")  # type: ignore[assignment]
    for row in rows[:SHOWN]:
        row["picture"] = None if images is None else picture(images[row["index"]])
    return rows


def report_of(base: Result, head: Result, allowed: float, per_class: bool) -> dict[str, Any]:
    """Return everything that the templates show."""
    table = paired(base, head)
    fixed = table[~table["right_before"] & table["right_after"]]
    broken = table[table["right_before"] & ~table["right_after"]]
    runs = judge_runs(len(fixed), len(broken), len(table), allowed)
    accuracies = [
        [member.metrics["test.accuracy"] for member in revision.seed_set(side)]
        for side in (base, head)
    ]
    old, new = accuracies
    recipes = judge_recipes(old, new, allowed) if min(len(old), len(new)) > 1 else None
    found = (revision.test_images(side) for side in (head, base))
    images = next((images for images in found if images is not None), None)
    metrics = metric_rows(base.metrics, head.metrics)
    classes = by_class(table, head.classes)
    return {
        "base": base,
        "head": head,
        "judgement": recipes or runs,
        "runs": runs if recipes else None,
        "accuracies": accuracies,
        "stale": [f"{side.name}: {note}" for side in (base, head) for note in side.stale],
        "parameters": differing_parameters(base.parameters, head.parameters),
        "code": [
            path
            for path in sorted(base.code | head.code)
            if base.code.get(path) != head.code.get(path)
        ],
        "metrics": metrics,
        "classes": classes,
        "shown_classes": [
            row for row in classes if per_class or row["p_value"] < SIGNIFICANCE_LEVEL
        ],
        "count": len(table),
        "one_run_each": ONE_RUN_EACH,
        "validation_differs": OTHER_VALIDATION_SET if base.validation != head.validation else None,
        "fixed": digit_rows(fixed, "before", images),
        "broken": digit_rows(broken, "after", images),
        "shown": SHOWN,
        "pictures": images is not None,
    }


def render(report: Mapping[str, Any], kind: str) -> str:
    """Return the report by the template for `kind`: txt, md or html."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("<", "&lt;")
    return environment.get_template(f"compare.{kind}.jinja").render(report)


def compare(base: str, head: str, allowed: float, per_class: bool = False) -> dict[str, Any]:
    """Return the report on two revisions, or raise StageError if they cannot be compared."""
    commits = [revision.commit_of(side) for side in (base, head) if side != WORKSPACE]
    if len(commits) == 2 and commits[0] == commits[1]:
        raise StageError(f"{base} and {head} are the same commit: nothing to compare")
    if not commits or (len(commits) == 1 and not revision.changed_since(commits[0])):
        raise StageError(f"{base} and {head} hold the same files: nothing to compare")
    return report_of(revision.read(base), revision.read(head), allowed, per_class)


def share(text: str) -> float:
    """Return a number from 0 to 1, for argparse."""
    with suppress(ValueError):
        if 0 <= (number := float(text)) <= 1:
            return number
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")


def main() -> None:
    """Compare, report, and exit with the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="the revision to compare with")
    parser.add_argument("head", nargs="?", default=WORKSPACE, help=f"default: {WORKSPACE}")
    parser.add_argument(
        "--max-drop", type=share, default=1.0, help="also fail if accuracy falls by more"
    )
    parser.add_argument("--per-class", action="store_true", help="show every class")
    arguments = parser.parse_args()
    page, markdown = REPORTS / "compare.html", REPORTS / "compare.md"
    for path in (page, markdown):
        path.unlink(missing_ok=True)  # an old report would mislead
    try:
        report = compare(arguments.base, arguments.head, arguments.max_drop, arguments.per_class)
    except StageError as error:
        write_text(markdown, f"## Cannot be compared\n\n{error}\n")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    write_text(markdown, render(report, "md"))
    write_text(page, render(report, "html"))
    print(render(report, "txt"))
    print(
        f"Also in {markdown} and, {'with' if report['pictures'] else 'without'} pictures, in {page}"
    )
    if report["stale"]:
        sys.exit(2)
    if report["judgement"].direction == "worse":
        sys.exit(1)


if __name__ == "__main__":
    run(main)
