"""Write docs/model-card.md: what users of the model should know about it.

Everything in the card comes from dvc.lock and from small committed results, which must have the MD5
that dvc.lock records. So any clone can check the card, without the model and without TensorFlow.
Only the text between `<!-- words` and `<!-- end -->` is a person's, and stays. The first lines are
metadata in the form that Hugging Face reads.

    python -m tools.model_card
"""

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from dvc_verify.lockfile import compute_md5, list_files, list_parameters, read_lock
from dvc_verify.machine import read_pins
from stages.core.errors import StageError, run
from stages.core.files import read_csv, read_json, write_text
from stages.core.paths import DATASET, LOCK, METRICS, MODEL, PREDICTIONS, RAW
from stages.evaluate import compute_accuracy_interval
from tools.shared.report import render

CARD = Path("docs/model-card.md")


def make_card(project: Path) -> str:
    """Return the model card, as Markdown, of the run that `project`'s dvc.lock records.

    Raises StageError if dvc.lock or a result is missing, or if they belong to different runs.
    """
    lock = read_lock(project)
    outputs = list_files(lock, "outs")
    labels = [f"{RAW}/{part}-labels-idx1-ubyte" for part in ("train", "t10k")]
    results = (DATASET, METRICS, PREDICTIONS)
    for name in (*map(Path.as_posix, (*results, MODEL)), *labels):
        if name not in outputs:
            raise StageError(f"{LOCK} does not record {name}; run `make repro`")
    for path in results:
        if not (project / path).is_file():
            raise StageError(f"{path}: not found; run `make repro` to create it")
        if compute_md5(project / path) != outputs[path.as_posix()].md5:
            raise StageError(
                f"{path}: not the file that {LOCK} records; run `make repro`, or restore it with "
                "`git checkout`"
            )
    predictions = read_csv(project / PREDICTIONS, text=("actual", "predicted"))
    mistakes = predictions[predictions["actual"] != predictions["predicted"]]
    dataset, parameters, pins = (
        read_json(project / DATASET),
        list_parameters(lock),
        read_pins(project),
    )
    card = project / CARD
    values = {
        "percent": format_percent,
        "interval": format_interval,
        "dataset": dataset,
        "model": outputs[MODEL.as_posix()],
        "metrics": read_json(project / METRICS),
        "counts": [outputs[path].size - 8 for path in labels],  # the header has 8 bytes
        "classes": count_classes(dataset["classes"], predictions),
        "mistakes": len(mistakes),
        "confident": int((mistakes["confidence"] > 0.9).sum()),
        "parameters": parameters,
        "parameter_text": format_parameters(parameters),
        "keras": pins["keras"],
        "tensorflow": pins["tensorflow"],
        "words": find_words(card.read_text(encoding="utf-8") if card.is_file() else ""),
    }
    return render("model_card.md.jinja", values)


def find_words(card: str) -> dict[str, str]:
    """Return what a person has written in a card, by the name of the place."""
    place = r"^<!-- words on ([^:]*):[^\n]*-->\n(.*?)^<!-- end -->$"
    return dict(re.findall(place, card, re.M | re.S))


def count_classes(classes: list[str], predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the counts of each class.

    support    its test images
    predicted  the images that were classified as this class
    correct    the images in both groups
    recall     the fraction of its images that is correct
    confused   how many of its images were classified as each other class, most frequent first
    """
    pairs = Counter(zip(predictions["actual"], predictions["predicted"], strict=True))
    rows = []
    for name in classes:
        found = {other: pairs[name, other] for other in classes}
        wrong = {other: count for other, count in found.items() if count and other != name}
        support = sum(found.values())
        rows.append(
            {
                "name": name,
                "support": support,
                "predicted": sum(pairs[other, name] for other in classes),
                "correct": found[name],
                "recall": found[name] / max(support, 1),
                "confused": sorted(wrong.items(), key=lambda each: -each[1]),
            }
        )
    return rows


def format_parameters(sections: dict[str, Any]) -> str:
    """Return as YAML the sections that affect the model."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width, yaml.default_flow_style = 100, None  # short lists and mappings on one line
    yaml.dump({name: sections[name] for name in ("preprocess", "model", "train")}, stream)
    return stream.getvalue()


def format_percent(fraction: float) -> str:
    """Return a fraction as a percentage with two decimals."""
    return f"{fraction:.2%}"


def format_interval(correct: int, count: int) -> str:
    """Return the percentage `correct / count` with its 95 % confidence interval."""
    if not count:
        return "-"
    low, high = compute_accuracy_interval(correct, count)
    return f"{format_percent(correct / count)} ({format_percent(low)} to {format_percent(high)})"


def main() -> None:
    """Write the card."""
    write_text(CARD, make_card(Path()))
    print(f"{CARD} describes the model that {LOCK} records")


if __name__ == "__main__":
    run(main)
