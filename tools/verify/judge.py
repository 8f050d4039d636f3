"""Compare the outputs of two runs of the pipeline, stage by stage."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from stages.core.files import read_csv, read_json
from tools.verify.lockfile import Lock, Recorded, list_files

Outputs = dict[str, Recorded]  # what dvc.lock records of a stage's outputs, by path

IDENTICAL, EQUIVALENT, DIFFERENT = VERDICTS = ("identical", "equivalent", "different")

# What another processor or thread count may bring; the README has what was measured.
ACCURACY = 0.003  # largest difference of an accuracy
AGREEMENT = 0.995  # smallest share of test digits predicted alike
LOSS = 0.1  # largest relative difference of the validation loss that evaluate measures
PICTURE = 0.02  # largest mean difference of a picture's pixels, of 1


@dataclass
class Finding:
    """What became of one stage."""

    stage: str
    verdict: str = IDENTICAL
    outputs: list[str] = field(default_factory=list)  # those that differ
    notes: list[str] = field(default_factory=list)

    def worsen(self, verdict: str, note: str) -> None:
        """Lower the verdict to `verdict`, unless it is that low already, and say why."""
        self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        self.notes.append(note)


def judge_stages(committed: Path, room: Path, before: Lock, after: Lock) -> list[Finding]:
    """Return a finding for each stage, in the order in which they ran.

    `committed` is a checkout of the commit and the cache that may hold its model; `room` is the
    reproduction; `before` and `after` are their dvc.lock.
    """
    findings: list[Finding] = []
    for stage in dict.fromkeys([*before, *after]):
        finding = Finding(stage)
        old, new = list_files(before, "outs", [stage]), list_files(after, "outs", [stage])
        finding.outputs = sorted(path for path in old | new if old.get(path) != new.get(path))
        if set(old) != set(new):
            finding.worsen(DIFFERENT, "it does not have the outputs that dvc.lock lists")
        elif finding.outputs and stage not in JUDGES:
            finding.worsen(DIFFERENT, "its bytes are promised on every machine")
        elif finding.outputs:
            JUDGES[stage](finding, committed, room, old)
        findings.append(finding)
    return findings


def judge_train(finding: Finding, committed: Path, room: Path, outputs: Outputs) -> None:
    """Compare the model's loss on the validation digits, and the weights where the cache has them.

    The loss is that in metrics.json: the history's is of smoothed labels, which hide most of it.
    """
    old, new = (metrics(folder)["validation"]["loss"] for folder in (committed, room))
    finding.worsen(
        EQUIVALENT if abs(old - new) <= LOSS * old else DIFFERENT,
        f"validation loss {old:.6f}, here {new:.6f} (bound {LOSS:.0%})",
    )
    path = "data/model/model.keras"
    cached = Path(".dvc/cache/files/md5") / outputs[path].md5[:2] / outputs[path].md5[2:]
    if path not in finding.outputs:
        return
    if not cached.is_file():
        finding.notes.append("the recorded model is not in the cache, so no weights to compare")
        return
    recorded, reproduced = weights(cached), weights(room / path)
    if [array.shape for array in recorded] != [array.shape for array in reproduced]:
        finding.worsen(DIFFERENT, "the weights have other shapes")
    else:
        largest = max(np.abs(a - b).max() for a, b in zip(recorded, reproduced, strict=True))
        finding.notes.append(f"weights differ by at most {largest:.3g}")


def weights(path: Path) -> list[np.ndarray[Any, Any]]:
    """Return the arrays in a `.keras` file, in the order of their names."""
    found: list[tuple[str, np.ndarray[Any, Any]]] = []
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as stream,
        h5py.File(stream, "r") as file,
    ):
        file.visititems(
            lambda name, item: found.append((name, item[()])) if hasattr(item, "shape") else None
        )
    return [array for _, array in sorted(found, key=lambda entry: entry[0])]


def metrics(folder: Path) -> Any:
    """Return what `evaluate` measured in the project at `folder`."""
    return read_json(folder / "data/evaluation/metrics.json")


def judge_evaluate(finding: Finding, committed: Path, room: Path, _: Outputs) -> None:
    """Compare the accuracy on the test digits, and how many of them are predicted alike."""
    folders = (committed, room)
    old, new = (metrics(folder)["test"]["accuracy"] for folder in folders)
    tables = [read_csv(f / "data/evaluation/predictions.csv", ("predicted",)) for f in folders]
    same_length = len(tables[0]) == len(tables[1])
    alike = (tables[0]["predicted"] == tables[1]["predicted"]).mean() if same_length else 0.0
    close = abs(old - new) <= ACCURACY and alike >= AGREEMENT
    finding.worsen(
        EQUIVALENT if close else DIFFERENT,
        f"test accuracy {old:.4f}, here {new:.4f} (bound {ACCURACY}); "
        f"{alike:.2%} of the test digits predicted alike (bound {AGREEMENT:.2%})",
    )


def judge_plot(finding: Finding, committed: Path, room: Path, _: Outputs) -> None:
    """Compare the pictures pixel by pixel."""
    for path in finding.outputs:
        pictures = []
        for folder in (committed, room):
            with Image.open(folder / path) as picture:
                pictures.append(np.asarray(picture.convert("L"), np.float64) / 255)
        if pictures[0].shape != pictures[1].shape:
            finding.worsen(DIFFERENT, f"{path} is of another size")
        else:
            mean = np.abs(pictures[0] - pictures[1]).mean()
            verdict = EQUIVALENT if mean <= PICTURE else DIFFERENT
            finding.worsen(verdict, f"{path} differs by {mean:.2%} a pixel (bound {PICTURE:.0%})")


JUDGES = {"train": judge_train, "evaluate": judge_evaluate, "plot": judge_plot}
