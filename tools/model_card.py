"""Write docs/model-card.md: what users of the model should know about it.

Everything in the card comes from dvc.lock and from small committed results, which must have the MD5
that dvc.lock records. So any clone can check the card, without the model and without TensorFlow.

    python -m tools.model_card
"""

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from dvc_verify.lockfile import compute_md5, list_files, list_parameters, read_lock
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
    for name in (*map(Path.as_posix, (DATASET, METRICS, PREDICTIONS, MODEL)), *labels):
        if name not in outputs:
            raise StageError(f"{LOCK} does not record {name}; run `make repro`")
    for path in (DATASET, METRICS, PREDICTIONS):
        check_md5(project / path, outputs[path.as_posix()].md5)
    predictions = read_csv(project / PREDICTIONS, text=("actual", "predicted"))
    mistakes = predictions[predictions["actual"] != predictions["predicted"]]
    dataset = read_json(project / DATASET)
    parameters = list_parameters(lock)
    values = {
        "percent": format_percent,
        "interval": format_interval,
        "dataset": dataset,
        "model": outputs[MODEL.as_posix()],
        "metrics": read_json(project / METRICS),
        "counts": [outputs[path].size - 8 for path in labels],  # the header has 8 bytes
        "classes": [count_class(name, predictions) for name in dataset["classes"]],
        "mistakes": len(mistakes),
        "confident": int((mistakes["confidence"] > 0.9).sum()),
        "parameters": parameters,
        "parameter_text": format_parameters(parameters),
        "keras": read_pin(project, "keras"),
        "tensorflow": read_pin(project, "tensorflow"),
    }
    return render("model_card.md.jinja", values)


def check_md5(path: Path, md5: str) -> None:
    """Raise StageError unless the file at `path` has the MD5 that dvc.lock records."""
    if not path.is_file():
        raise StageError(f"{path}: not found; run `make repro` to create it")
    if compute_md5(path) != md5:
        raise StageError(
            f"{path}: not the file that {LOCK} records; run `make repro`, or restore it with "
            "`git checkout`"
        )


def count_class(name: str, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the counts of the class `name`.

    support    its test images
    predicted  the images that were classified as this class
    correct    the images in both groups
    recall     the fraction of its images that is correct
    confused   how many of its images were classified as each other class, most frequent first
    """
    actual, predicted = predictions["actual"] == name, predictions["predicted"] == name
    confused = predictions.loc[actual & ~predicted, "predicted"].value_counts()
    return {
        "name": name,
        "support": int(actual.sum()),
        "predicted": int(predicted.sum()),
        "correct": int((actual & predicted).sum()),
        "recall": (actual & predicted).sum() / max(actual.sum(), 1),
        "confused": sorted(confused.items(), key=lambda entry: (-entry[1], entry[0])),
    }


def format_parameters(sections: dict[str, Any]) -> str:
    """Return as YAML the sections that affect the model."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width, yaml.default_flow_style = 100, None  # short lists and mappings on one line
    yaml.dump({name: sections[name] for name in ("preprocess", "model", "train")}, stream)
    return stream.getvalue()


def read_pin(project: Path, library: str) -> str:
    """Return the version of a library in the requirements.txt of `project`."""
    text = (project / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{library}==([\w.]+)", text, re.M)
    assert found, f"requirements.txt does not pin {library}"
    return found[1]


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
