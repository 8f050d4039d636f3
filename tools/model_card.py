"""Write docs/model-card.md, what whoever is handed the model has to know, from the recorded run.

All it says comes from dvc.lock and from small committed results, each held to the MD5 that dvc.lock
records; so the card can be checked in any clone, without the model and without TensorFlow.

    python -m tools.model_card
"""

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from stages.core.errors import StageError, run
from stages.core.files import read_csv, read_json, write_text
from stages.core.paths import DATASET, LOCK, METRICS, PREDICTIONS
from stages.evaluate import compute_accuracy_interval
from tools.verify.lockfile import compute_md5, list_files, list_parameters, read_lock

CARD = Path("docs/model-card.md")


def card(project: Path) -> str:
    """Return the model card of the run that dvc.lock in the folder `project` records, as Markdown.

    Raises StageError where dvc.lock or a result is missing, or the two are not of one run.
    """
    lock = read_lock(project)
    outputs = list_files(lock, "outs")
    for path in (DATASET, METRICS, PREDICTIONS):
        hold(project / path, outputs[path.as_posix()].md5)
    predictions = read_csv(project / PREDICTIONS, text=("actual", "predicted"))
    mistakes = predictions[predictions["actual"] != predictions["predicted"]]
    dataset = read_json(project / DATASET)
    labels = {part: outputs[f"data/raw/{part}-labels-idx1-ubyte"] for part in ("train", "t10k")}
    parameters = list_parameters(lock)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # Markdown, where `plain` escapes what needs it
    )
    environment.filters |= {"percent": percent, "plain": plain, "interval": interval}
    return environment.get_template("model_card.md.jinja").render(
        dataset=dataset,
        model=outputs["data/model/model.keras"],
        metrics=read_json(project / METRICS),
        counts={part: entry.size - 8 for part, entry in labels.items()},  # 8 bytes of header
        classes=[class_record(name, predictions) for name in dataset["classes"]],
        mistakes=len(mistakes),
        sure=int((mistakes["confidence"] > 0.9).sum()),
        parameters=parameters,
        parameter_text=parameter_text(parameters),
        keras=pinned(project, "keras"),
        tensorflow=pinned(project, "tensorflow"),
    )


def hold(path: Path, md5: str) -> None:
    """Raise StageError unless the file at `path` has the MD5 that dvc.lock records."""
    if not path.is_file():
        raise StageError(f"{path}: not found; run `make repro` to make it")
    if compute_md5(path) != md5:
        raise StageError(f"{path}: not what {LOCK} records; run `make repro`, or `git checkout` it")


def class_record(name: str, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return what became of the test images of class `name`, as counts.

    support: images of it; predicted: images called that; right: both; recall: the share of the
    first that is right; taken: how often it was taken for which other class, most often first.
    """
    actual, predicted = predictions["actual"] == name, predictions["predicted"] == name
    taken = predictions.loc[actual & ~predicted, "predicted"].value_counts()
    return {
        "name": name,
        "support": int(actual.sum()),
        "predicted": int(predicted.sum()),
        "right": int((actual & predicted).sum()),
        "recall": (actual & predicted).sum() / max(actual.sum(), 1),
        "taken": sorted(taken.items(), key=lambda entry: (-entry[1], entry[0])),
    }


def parameter_text(sections: dict[str, Any]) -> str:
    """Return as YAML those sections that decide what the model is."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width, yaml.default_flow_style = 100, None  # short lists and mappings on one line
    yaml.dump({name: sections[name] for name in ("preprocess", "model", "train")}, stream)
    return stream.getvalue()


def pinned(project: Path, library: str) -> str:
    """Return the version of a library in the requirements.txt of `project`."""
    text = (project / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{library}==([\w.]+)", text, re.M)
    assert found, f"requirements.txt does not pin {library}"
    return found[1]


def percent(share: float) -> str:
    """Return a share as a percentage with two decimals."""
    return f"{share:.2%}".replace("%", " %")


def interval(right: int, count: int) -> str:
    """Return the share of `right` in `count`, with its 95 % confidence interval."""
    if not count:
        return "-"
    low, high = compute_accuracy_interval(right, count)
    return f"{percent(right / count)} ({percent(low)} to {percent(high)})"


def plain(text: str) -> str:
    """Return `text` such that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", text)


def main() -> None:
    """Write the card."""
    write_text(CARD, card(Path()))
    print(f"{CARD} describes the model that {LOCK} records")


if __name__ == "__main__":
    run(main)
