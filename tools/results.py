"""Read what a revision holds: its parameters, and the results committed or cached with it.

Nothing is run, and the user's own files stay as they are.
"""

import fnmatch
import io
import math
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import resolve_rev

from stages.artifacts import read_classes, read_csv, read_digits, read_json
from stages.parameters import PARAMETERS, StageError, read_yaml
from tools.judge import listed
from tools.verify import stale

METRICS = Path("data/evaluation/metrics.json")
PREDICTIONS = Path("data/evaluation/predictions.csv")
CLASSES = Path("data/raw/dataset.json")
TEST = Path("data/processed/test.npz")

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Result:
    """What one revision holds."""

    name: str  # as the user said it
    commit: str | None  # None is the workspace
    parameters: dict[str, Any]  # by dotted key
    metrics: dict[str, float]  # by dotted key
    predictions: pd.DataFrame  # index, actual, predicted, confidence; a row for each test digit
    classes: list[str]
    code: dict[str, str]  # the MD5 of each file the results were computed with, data apart
    stale: list[str]  # how its dvc.lock contradicts its code, parameters and results


def commit_of(name: str) -> str:
    """Return the commit of a branch, tag, experiment or other revision, or raise StageError."""
    try:
        with Repo() as repo:
            commit: str = resolve_rev(repo.scm, name)
            return commit
    except DvcException as error:
        raise StageError(f"{name}: no branch, tag, experiment or commit: {error}") from error


@contextmanager
def folder_of(commit: str | None) -> Iterator[Path]:
    """Yield a folder with the files of a commit, results in DVC's cache included."""
    if commit is None:
        yield Path.cwd()
        return
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(name, filter="data")
        for path in (METRICS, PREDICTIONS, CLASSES):
            if not (Path(name) / path).exists():
                fetch(commit, path, Path(name) / path)
        yield Path(name)


def fetch(commit: str | None, path: Path, target: Path) -> None:
    """Copy a revision's file from git or DVC's cache, if either has it.

    As a stream: DVC's own `get_file` may link the copy to the file in the cache.
    """
    with (
        suppress(FileNotFoundError, DvcException),
        DVCFileSystem(".", rev=commit).open(path.as_posix(), "rb") as source,
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def read(name: str) -> Result:
    """Return the results of a revision.

    Raises StageError where there is no such revision, where it has no results, and where they are
    not readable or contradict each other.
    """
    commit = None if name == WORKSPACE else commit_of(name)
    with folder_of(commit) as folder, chdir(folder):
        if not METRICS.exists():
            raise StageError(
                f"{name} has no results: {METRICS} is neither in git nor in DVC's cache; run "
                "`dvc repro` there and commit what it writes"
            )
        try:
            metrics = flat_metrics(read_json(METRICS))
            predictions = read_predictions()
            check_agreement(metrics, predictions)
            lock = read_yaml(Path("dvc.lock"))
            return Result(
                name=name,
                commit=commit,
                parameters=dict(flat(read_yaml(PARAMETERS))),
                metrics=metrics,
                predictions=predictions,
                classes=read_classes(CLASSES),
                code=code(lock),
                stale=list(dict.fromkeys(chain(*stale(Path(), lock).values()))),
            )
        except StageError as error:
            raise StageError(f"{name}: {error}") from error


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested mappings with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_metrics(content: Any) -> dict[str, float]:
    """Return each metric by its dotted key, or raise StageError where one is not a number."""
    metrics = dict(flat(content)) if isinstance(content, Mapping) else {}
    if "test.accuracy" not in metrics:
        raise StageError(f"{METRICS}: expected test.accuracy, and there is none")
    for key, value in metrics.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise StageError(f"{METRICS}: expected a finite number for {key}, found {value!r}")
    return metrics


def read_predictions() -> pd.DataFrame:
    """Return the table of predictions, or raise StageError where it is not one."""
    table = read_csv(PREDICTIONS, text=("actual", "predicted"))
    types = {"index": "i", "actual": "O", "predicted": "O", "confidence": "f"}
    found = {str(name): column.dtype.kind for name, column in table.items()}
    if found != types or table.empty or not np.isfinite(table["confidence"]).all():
        raise StageError(
            f"{PREDICTIONS}: expected a row for each test digit, with index, actual, predicted "
            f"and confidence, found {len(table)} rows of {', '.join(found)}"
        )
    return table


def check_agreement(metrics: Mapping[str, float], predictions: pd.DataFrame) -> None:
    """Raise StageError unless the accuracy is that of the predictions."""
    accuracy = (predictions["actual"] == predictions["predicted"]).mean()
    if not math.isclose(accuracy, metrics["test.accuracy"]):
        raise StageError(
            f"{METRICS} says test.accuracy is {metrics['test.accuracy']}, and {PREDICTIONS} "
            f"{accuracy}; they are not of one run: run `dvc repro`"
        )


def code(lock: dict[str, Any]) -> dict[str, str]:
    """Return the MD5 of each dependency in a dvc.lock that no stage wrote."""
    stages = lock.get("stages", {})
    made = {path for stage in stages for path in listed(lock, stage, "outs")}
    return {
        path: md5
        for stage in stages
        for path, md5 in listed(lock, stage, "deps").items()
        if path not in made
    }


def test_images(result: Result) -> npt.NDArray[np.float32] | None:
    """Return the test images (n, height, width) in [0, 1], or None where the cache has them not.

    Nor if they are damaged or others: the comparison needs no pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / TEST.name
        fetch(result.commit, TEST, target)
        try:
            images, labels = read_digits(target)
        except StageError:
            return None
    actual = np.array(result.classes)[labels.argmax(axis=1)]
    return images if np.array_equal(actual, result.predictions["actual"]) else None


def seed_name(commit: str, seed: int | str) -> str:
    """Return the name of the experiment that tools.seeds makes of a commit and a seed."""
    return f"seed-{seed}-{commit[:7]}"


def seed_names(commit: str) -> list[str]:
    """Return the names of the experiments that tools.seeds made of a commit."""
    with Repo() as repo:
        found = repo.experiments.ls(rev=commit).get(commit, [])
    return fnmatch.filter(sorted(name for name, _ in found), seed_name(commit, "*"))


def seed_set(result: Result) -> list[Result]:
    """Return the results of the same parameters under other seeds: what tools.seeds trained.

    They belong to a commit. The workspace has those of the last one, unless it differs from it.
    """
    if result.commit is None and changed_since("HEAD"):
        return []
    return [read(name) for name in seed_names(result.commit or commit_of("HEAD"))]


def changed_since(commit: str) -> bool:
    """Return whether any file that git tracks differs from the commit."""
    command = ["git", "diff", "--quiet", commit, "--"]
    return subprocess.run(command, check=False).returncode != 0
