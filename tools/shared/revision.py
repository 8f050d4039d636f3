"""Read the parameters and results of a revision, from git or from DVC's cache.

Runs no stage and does not change the user's files.
"""

import difflib
import fnmatch
import io
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, find_last_commit, is_shallow, run_git
from dvc_verify.lockfile import Lock, flatten, list_files, read_lock
from dvc_verify.project import read_project
from dvc_verify.stale import find_stale
from stages.core.dataset import is_zero_white, read_classes
from stages.core.errors import StageError
from stages.core.files import Floats, read_csv, read_json
from stages.core.paths import (
    DATASET,
    GRAPH,
    LOCK,
    METRICS,
    PARAMETERS,
    PREDICTIONS,
    TEST,
    VALIDATION,
)
from stages.core.prepared import read_split
from stages.core.settings import read_yaml
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS

WORKSPACE = "workspace"
SEEDS = ("model.seed", "train.seed")  # what tools.seeds and tools.sweep vary

# The columns that the predictions must have, and NumPy's kind of each.
COLUMNS = {"index": "i", "actual": "O", "predicted": "O", "confidence": "f"}


@dataclass(frozen=True)
class Result:
    """The parameters and results of one revision."""

    name: str  # as the user typed it
    commit: str | None  # None for the workspace
    parameters: dict[str, Any]  # by dotted key
    metrics: dict[str, float]  # by dotted key
    predictions: pd.DataFrame  # COLUMNS, with one row for each test image
    title: str  # of the dataset
    classes: list[str]
    ink: bool  # pixels measure ink instead of brightness
    test_files: list[str | None]  # SHA-256 of the raw test images and labels
    validation: str | None  # MD5 of the validation set
    inputs: dict[str, str]  # MD5, by path, of code and other files that no stage wrote
    stale: list[str]  # where code, parameters and results differ from dvc.lock


def resolve_commit(name: str) -> str:
    """Return the commit of a branch, tag, experiment or other revision, or raise StageError."""
    find_last_commit()  # says what is wrong with the repository, if anything is
    try:
        with Repo() as repo:
            found: str = resolve_rev(repo.scm, name)
    except RevError:
        text = f"{name}: this clone has no branch, tag, experiment or commit with that name"
        # DVC stores an experiment as refs/exps/<commit>/<name>.
        references = ask_git("for-each-ref", "--format=%(refname:short)").splitlines()
        names = [
            each.rpartition("/")[2] if each.startswith("exps/") else each for each in references
        ]
        if close := difflib.get_close_matches(name, names):
            text += f"; similar: {', '.join(close)}"
        if is_shallow():
            text += (
                "; the clone is shallow, and this command fetches the rest: "
                "git remote set-branches origin '*' && git fetch --unshallow"
            )
        raise StageError(text) from None
    except DvcException as error:
        raise StageError(f"{name}: {error}") from error
    if not ask_git("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}"):
        raise StageError(f"{name} names a file or a folder, not a commit")
    return found


@contextmanager
def open_revision(commit: str | None) -> Iterator[Path]:
    """Yield a folder with the files of a commit, including results from DVC's cache."""
    if commit is None:
        yield Path.cwd()
        return
    archive = run_git("archive", "--format=zip", "-0", commit)
    with tempfile.TemporaryDirectory() as name:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(name)
        # DVC expands aliases without a limit, so what it would read is checked first.
        for path in filter(Path.exists, (Path(name) / file for file in (PARAMETERS, GRAPH, LOCK))):
            try:
                read_yaml(path)
            except StageError as error:
                raise StageError(str(error).replace(name, commit[:12], 1)) from error
        for path in (METRICS, PREDICTIONS, DATASET):
            if not (Path(name) / path).exists():
                copy_file(commit, path, Path(name) / path)
        yield Path(name)


def open_files(commit: str | None, path: Path) -> tuple[DVCFileSystem, str]:
    """Return the files of a commit in git and DVC, and the name that `path` has there.

    In a commit, DVC names paths from the top of the repository, which may be above the project.
    """
    if commit is None:
        return DVCFileSystem("."), path.as_posix()
    prefix = ask_git("rev-parse", "--show-prefix")
    return DVCFileSystem(".", rev=commit, subrepos=True), prefix + path.as_posix()


def copy_file(commit: str | None, path: Path, target: Path) -> None:
    """Copy a file of a revision from git, DVC's cache or its remote, if one of them has it.

    DVC's own `get_file` would make a link to the cache, so this function copies a stream.
    """
    with suppress(OSError, DvcException):
        files, name = open_files(commit, path)
        with files.open(name, "rb") as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def read_revision(name: str) -> Result:
    """Return the parameters and results of a revision.

    Raises StageError if there is no such revision, or if its results are missing, unreadable or
    contradictory.
    """
    return read_commit(name, None if name == WORKSPACE else resolve_commit(name))


def read_commit(name: str, commit: str | None) -> Result:
    """Return the parameters and results of a commit, or of the workspace if `commit` is None.

    Raises StageError, with `name` in its message, if they are missing, unreadable or contradictory.
    """
    with open_revision(commit) as folder, chdir(folder):
        needed = (METRICS, PREDICTIONS, DATASET, LOCK, PARAMETERS)
        if missing := [str(path) for path in needed if not path.exists()]:
            raise StageError(
                f"{name} has no results to compare: {', '.join(missing)} is neither in git nor in "
                "DVC's cache; if the code of that revision writes it, run `dvc repro` there"
                + ("" if commit is None else " and commit")
            )
        try:
            metrics, predictions, dataset = read_metrics(), read_predictions(), read_json(DATASET)
            accuracy = (predictions["actual"] == predictions["predicted"]).mean()
            if not math.isclose(accuracy, metrics["test.accuracy"]):
                raise StageError(
                    f"{METRICS} has test.accuracy {metrics['test.accuracy']}, and {PREDICTIONS} "
                    f"gives {accuracy}; they come from different runs: run `dvc repro`"
                )
            classes = read_classes(DATASET)
            if not isinstance(hashes := dataset.get("sha256", {}), dict):
                raise StageError(f"{DATASET}: expected SHA-256 by file under 'sha256'")
            parameters = flatten(read_yaml(PARAMETERS))
            read_yaml(LOCK)  # refuses aliases that expand to billions of values
            written, read, notes = read_provenance(read_lock())
            return Result(
                name=name,
                commit=commit,
                parameters=parameters,
                metrics=metrics,
                predictions=predictions,
                title=dataset.get("title", "an unnamed dataset"),
                classes=classes,
                ink=is_zero_white(DATASET),
                test_files=[hashes.get(file) for file in (TEST_IMAGES, TEST_LABELS)],
                validation=written.get(VALIDATION.as_posix()),
                inputs={path: md5 for path, md5 in read.items() if path not in written},
                stale=notes,
            )
        except (StageError, VerifyError) as error:
            raise StageError(f"{name}: {error}") from error


def read_provenance(lock: Lock) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the MD5 of outputs and of inputs, and each difference of the files from `lock`."""
    try:
        written, read = (
            {path: file.md5 for path, file in list_files(lock, kind).items()}
            for kind in ("outs", "deps")
        )
        return written, read, list(dict.fromkeys(chain(*find_stale(read_project(Path())).values())))
    except (AttributeError, KeyError, TypeError, VerifyError):
        return {}, {}, ["dvc.yaml or dvc.lock is damaged, or belongs to another project"]


def read_metrics() -> dict[str, float]:
    """Return the metrics by dotted key, or raise StageError if one of them is not a number."""
    content = read_json(METRICS)
    metrics = flatten(content) if isinstance(content, Mapping) else {}
    if "test.accuracy" not in metrics:
        raise StageError(f"{METRICS}: test.accuracy is missing")
    for key, value in metrics.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and abs(value) <= sys.float_info.max):  # NaN is not
            raise StageError(f"{METRICS}: expected a finite number for {key}, found {value!r}")
    # Older revisions also have per-class scores here. The predictions give the same scores.
    return {key: value for key, value in metrics.items() if not key.startswith("test.per_class.")}


def read_predictions() -> pd.DataFrame:
    """Return the predictions, or raise StageError if the table is not complete."""
    table = read_csv(PREDICTIONS, text=("actual", "predicted"))
    found = {str(name): column.dtype.kind for name, column in table.items()}
    if (
        table.empty
        or COLUMNS.items() - found.items()
        or not np.array_equal(table["index"], range(len(table)))
        or not np.isfinite(table["confidence"]).all()
    ):
        raise StageError(
            f"{PREDICTIONS}: expected a row for each test image, numbered from 0, with "
            f"{', '.join(COLUMNS)}; found {len(table)} rows with {', '.join(found)}"
        )
    return table[list(COLUMNS)]


def read_test_images(result: Result) -> Floats | None:
    """Return the test images (n, height, width) in [0, 1], or None if they are not in the cache.

    Also returns None if the images are damaged or do not match the predictions. A comparison works
    without images.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / TEST.name
        copy_file(result.commit, TEST, target)
        try:
            images, labels = read_split(target)
        except StageError:
            return None
    if labels.shape[1] != len(result.classes):
        return None
    actual = np.array(result.classes)[labels.argmax(axis=1)]
    return images if np.array_equal(actual, result.predictions["actual"]) else None


def name_experiment(commit: str, seed: int | str) -> str:
    """Return the name of the experiment that trains a commit with a seed.

    It is as short as DVC's own names, so that `dvc exp show` fits in 120 columns.
    """
    return f"seed{seed}-{commit[:4]}"


def list_experiments(commit: str) -> dict[str, str]:
    """Return the experiments of a commit: their own commits, by name."""
    with Repo() as repo:
        return dict(sorted(repo.experiments.ls(rev=commit).get(commit, [])))


def read_seeds(result: Result) -> list[Result]:
    """Return the results of all runs in which tools.seeds trained this revision.

    For the workspace, these are the runs of the last commit. If a file in the workspace differs
    from the last commit, the list is empty.
    """
    if result.commit is None and differs_from("HEAD"):
        return []
    commit = result.commit or resolve_commit("HEAD")
    found = list_experiments(commit)
    names = fnmatch.filter(found, name_experiment(commit, "*"))
    return [read_commit(name, found[name]) for name in names]


def differs_from(commit: str) -> bool:
    """Return whether a file of the project that git tracks differs from the commit."""
    return bool(run_git("diff", "--name-only", commit, "--", "."))


def list_changed_inputs(base: Result, head: Result) -> list[str]:
    """Return the inputs, such as files with code, that differ between the two results.

    Inputs are the files and folders that a stage read and no stage wrote.
    """
    both = base.inputs | head.inputs
    changed = [path for path in sorted(both) if base.inputs.get(path) != head.inputs.get(path)]
    if not changed:
        return []
    # dvc.lock has one hash for a folder. git can tell which of the folder's tracked files differ.
    commits = [side.commit for side in (base, head) if side.commit]
    listed = ask_git("diff", "-z", "--name-only", "--relative", *commits, "--", *changed)
    files = [file for file in listed.split("\0") if file]
    known = {path.as_posix() for file in files for path in (Path(file), *Path(file).parents)}
    return sorted({*files, *(path for path in changed if path not in known)})
