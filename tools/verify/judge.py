"""Compare the outputs of two runs of the pipeline, stage by stage."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from dvc.repo import Repo
from PIL import Image

from stages.core.files import read_csv, read_json
from stages.core.paths import METRICS, MODEL, PREDICTIONS
from tools.verify.lockfile import Lock, Recorded, list_files

Outputs = dict[str, Recorded]  # the outputs of a stage, by path

IDENTICAL, EQUIVALENT, DIFFERENT = VERDICTS = ("identical", "equivalent", "different")

# The limits within which two runs are equivalent. Another kind of processor or another number of
# threads causes smaller differences: docs/reproducibility.md has the measurements.
ACCURACY = 0.003  # largest difference between the test accuracies
AGREEMENT = 0.995  # smallest fraction of test images with the same prediction
LOSS = 0.2  # largest relative difference between the validation losses
PIXELS = 0.02  # largest mean difference between the pixels, from 0 to 1, of two plots


@dataclass
class Finding:
    """The verdict on one stage, and the reasons for it."""

    stage: str
    verdict: str = IDENTICAL
    outputs: list[str] = field(default_factory=list)  # those that differ
    notes: list[str] = field(default_factory=list)

    def worsen(self, verdict: str, note: str) -> None:
        """Add a note, and lower the verdict to `verdict` unless it is already as low."""
        self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        self.notes.append(note)


def judge_stages(committed: Path, clone: Path, before: Lock, after: Lock) -> list[Finding]:
    """Return a finding for each stage, in the order in which the stages run.

    `committed` is a checkout of the commit, and `before` its dvc.lock. `clone` is the reproduction,
    and `after` its dvc.lock.
    """
    findings: list[Finding] = []
    for stage in dict.fromkeys([*before, *after]):
        finding = Finding(stage)
        old, new = list_files(before, "outs", [stage]), list_files(after, "outs", [stage])
        finding.outputs = sorted(path for path in old | new if old.get(path) != new.get(path))
        if set(old) != set(new):
            finding.worsen(DIFFERENT, "its outputs are not those that dvc.lock lists")
        elif finding.outputs and stage not in JUDGES:
            finding.worsen(DIFFERENT, "its outputs must be identical on every machine")
        elif finding.outputs:
            JUDGES[stage](finding, committed, clone, old)
        findings.append(finding)
    return findings


def judge_train(finding: Finding, committed: Path, clone: Path, outputs: Outputs) -> None:
    """Compare the validation losses, and the weights if DVC's cache has the recorded model.

    The losses are those in metrics.json. The losses in history.csv are computed on smoothed labels,
    which hides most of a difference.
    """
    old, new = (read_json(folder / METRICS)["validation"]["loss"] for folder in (committed, clone))
    finding.worsen(
        EQUIVALENT if abs(old - new) <= LOSS * old else DIFFERENT,
        f"the validation loss is {new:.6f} instead of {old:.6f} (allowed: {LOSS:.0%} apart)",
    )
    model = MODEL.as_posix()
    if model not in finding.outputs:
        return
    md5 = outputs[model].md5
    with Repo() as repo:  # the cache may be in another folder
        cached = Path(repo.cache.local.oid_to_path(md5))
    if not cached.is_file():
        finding.notes.append("the weights were not compared: DVC's cache lacks the recorded model")
        return
    recorded, reproduced = read_weights(cached), read_weights(clone / model)
    if [array.shape for array in recorded] != [array.shape for array in reproduced]:
        finding.worsen(DIFFERENT, "the weights have different shapes")
    else:
        largest = max(np.abs(a - b).max() for a, b in zip(recorded, reproduced, strict=True))
        finding.notes.append(f"the weights differ by at most {largest:.3g}")


def read_weights(path: Path) -> list[np.ndarray[Any, Any]]:
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


def judge_evaluate(finding: Finding, committed: Path, clone: Path, _: Outputs) -> None:
    """Compare the test accuracies and the predictions on the test images."""
    folders = (committed, clone)
    old, new = (read_json(folder / METRICS)["test"]["accuracy"] for folder in folders)
    tables = [read_csv(folder / PREDICTIONS, ("predicted",)) for folder in folders]
    same_length = len(tables[0]) == len(tables[1])
    same = (tables[0]["predicted"] == tables[1]["predicted"]).mean() if same_length else 0.0
    close = abs(old - new) <= ACCURACY and same >= AGREEMENT
    finding.worsen(
        EQUIVALENT if close else DIFFERENT,
        f"the test accuracy is {new:.4f} instead of {old:.4f} (allowed: {ACCURACY} apart); "
        f"{same:.2%} of the test images have the same prediction (needed: {AGREEMENT:.1%})",
    )


def judge_plot(finding: Finding, committed: Path, clone: Path, _: Outputs) -> None:
    """Compare the plots pixel by pixel."""
    for path in finding.outputs:
        pixels = []
        for folder in (committed, clone):
            with Image.open(folder / path) as plot:
                pixels.append(np.asarray(plot.convert("L"), np.float64) / 255)
        if pixels[0].shape != pixels[1].shape:
            finding.worsen(DIFFERENT, f"{path} has another size")
        else:
            mean = np.abs(pixels[0] - pixels[1]).mean()
            finding.worsen(
                EQUIVALENT if mean <= PIXELS else DIFFERENT,
                f"the pixels of {path} differ by {mean:.2%} on average (allowed: {PIXELS:.0%})",
            )


JUDGES = {"train": judge_train, "evaluate": judge_evaluate, "plot": judge_plot}
