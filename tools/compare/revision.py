"""Read what a revision holds: its parameters, and the results committed or cached with it.

Nothing is run, and the user's own files stay as they are.
"""

import difflib
import fnmatch
import io
import math
import shutil
import subprocess
import tempfile
import zipfile
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
from dvc.scm import RevError, resolve_rev

from stages.core.errors import StageError
from stages.core.files import read_csv, read_json
from stages.core.paths import DATASET, LOCK, METRICS, PARAMETERS, PREDICTIONS, TEST, VALIDATION
from stages.core.prepared import read_classes, read_split
from stages.core.settings import read_yaml
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS
from tools.verify.lockfile import Lock, find_stale, flatten, list_files, read_lock

WORKSPACE = "workspace"

# The columns of the predictions that are needed, and NumPy's kind of each.
COLUMNS = {"index": "i", "actual": "O", "predicted": "O", "confidence": "f"}


@dataclass(frozen=True)
class Result:
    """What one revision holds."""

    name: str  # as the user said it
    commit: str | None  # None is the workspace
    parameters: dict[str, Any]  # by dotted key
    metrics: dict[str, float]  # by dotted key
    predictions: pd.DataFrame  # the columns above; a row for each test digit, in their order
    title: str  # of the dataset
    classes: list[str]
    test_files: list[str | None]  # the SHA-256 of the raw test images and labels
    validation: str | None  # the MD5 of the prepared validation set
    code: dict[
        str, str
    ]  # the MD5 of each file that the results were computed with and no stage wrote
    stale: list[str]  # how its dvc.lock contradicts its code, parameters and results


def git(*arguments: str) -> str:
    """Return what git prints, or nothing where it fails."""
    return subprocess.run(
        ["git", *arguments], check=False, capture_output=True, text=True, encoding="utf-8"
    ).stdout.strip()


def commit_of(name: str) -> str:
    """Return the commit of a branch, tag, experiment or other revision, or raise StageError."""
    try:
        with Repo() as repo:
            found: str = resolve_rev(repo.scm, name)
    except RevError:
        raise StageError(unknown(name)) from None
    except DvcException as error:
        raise StageError(f"{name}: {error}") from error
    if not git("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}"):
        raise StageError(f"{name} names a file or a folder, not a commit")
    return found


def unknown(name: str) -> str:
    """Say that there is no such revision here, and what may have been meant."""
    references = git("for-each-ref", "--format=%(refname:short)").splitlines()
    # DVC keeps an experiment as exps/<its commit>/<its name>.
    names = [ref.rpartition("/")[2] if ref.startswith("exps/") else ref for ref in references]
    text = f"{name}: no branch, tag, experiment or commit of this clone has that name"
    if close := difflib.get_close_matches(name, names):
        text += f"; there is {', '.join(close)}"
    if git("rev-parse", "--is-shallow-repository") == "true":
        text += (
            "; the clone is shallow, and this brings the rest of it: "
            "git remote set-branches origin '*' && git fetch --unshallow"
        )
    return text


@contextmanager
def folder_of(commit: str | None) -> Iterator[Path]:
    """Yield a folder with the files of a commit, results in DVC's cache included."""
    if commit is None:
        yield Path.cwd()
        return
    command = ["git", "archive", "--format=zip", "-0", commit]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as name:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(name)
        for path in (METRICS, PREDICTIONS, DATASET):
            if not (Path(name) / path).exists():
                fetch(commit, path, Path(name) / path)
        yield Path(name)


def fetch(commit: str | None, path: Path, target: Path) -> None:
    """Copy a revision's file from git, DVC's cache or its remote, if any has it.

    As a stream: DVC's own `get_file` may link the copy to the file in the cache.
    """
    with (
        suppress(OSError, DvcException),
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
        needed = (METRICS, PREDICTIONS, DATASET, LOCK, PARAMETERS)
        if missing := [str(path) for path in needed if not path.exists()]:
            raise StageError(
                f"{name} has no results to compare: neither git nor DVC's cache has its "
                f"{', '.join(missing)}; where its code writes them, run `dvc repro` there"
                + ("" if commit is None else " and commit")
            )
        try:
            metrics = flat_metrics(read_json(METRICS))
            predictions = read_predictions()
            check_agreement(metrics, predictions)
            classes, dataset = read_classes(DATASET), read_json(DATASET)
            hashes = dataset.get("sha256", {})
            made, used, notes = provenance(read_lock())
            return Result(
                name=name,
                commit=commit,
                parameters=flatten(read_yaml(PARAMETERS)),
                metrics=metrics,
                predictions=predictions,
                title=dataset.get("title", "an unnamed dataset"),
                classes=classes,
                test_files=[hashes.get(file) for file in (TEST_IMAGES, TEST_LABELS)],
                validation=made.get(str(VALIDATION)),
                code=used,
                stale=notes,
            )
        except StageError as error:
            raise StageError(f"{name}: {error}") from error


def provenance(lock: Lock) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return what a dvc.lock says of the results in the current folder, and what contradicts it.

    The MD5 of each file that a stage wrote and of each that it used but none wrote, by its path;
    and, once each, how the files in the folder differ from what the dvc.lock records.
    """
    try:
        made, used = (
            {path: file.md5 for path, file in list_files(lock, kind).items()}
            for kind in ("outs", "deps")
        )
        notes = list(dict.fromkeys(chain(*find_stale(Path(), lock).values())))
    except (AttributeError, KeyError, TypeError):
        return {}, {}, ["dvc.yaml or dvc.lock is damaged, or of another kind than this project's"]
    return made, {path: used[path] for path in used.keys() - made.keys()}, notes


def flat_metrics(content: Any) -> dict[str, float]:
    """Return each metric by its dotted key, or raise StageError where one is not a number."""
    metrics = flatten(content) if isinstance(content, Mapping) else {}
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
    found = {str(name): column.dtype.kind for name, column in table.items()}
    if (
        table.empty
        or COLUMNS.items() - found.items()
        or not np.array_equal(table["index"], range(len(table)))
        or not np.isfinite(table["confidence"]).all()
    ):
        raise StageError(
            f"{PREDICTIONS}: expected a row for each test digit, numbered from 0, with "
            f"{', '.join(COLUMNS)}; found {len(table)} rows of {', '.join(found)}"
        )
    return table[list(COLUMNS)]


def check_agreement(metrics: Mapping[str, float], predictions: pd.DataFrame) -> None:
    """Raise StageError unless the accuracy is that of the predictions."""
    accuracy = (predictions["actual"] == predictions["predicted"]).mean()
    if not math.isclose(accuracy, metrics["test.accuracy"]):
        raise StageError(
            f"{METRICS} says test.accuracy is {metrics['test.accuracy']}, and {PREDICTIONS} "
            f"{accuracy}; they come from different runs: run `dvc repro`"
        )


def test_images(result: Result) -> npt.NDArray[np.float32] | None:
    """Return the test images (n, height, width) in [0, 1], or None where the cache lacks them.

    None as well where they are damaged or others: the comparison does not need the pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / TEST.name
        fetch(result.commit, TEST, target)
        try:
            images, labels = read_split(target)
        except StageError:
            return None
    if labels.shape[1] != len(result.classes):
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
