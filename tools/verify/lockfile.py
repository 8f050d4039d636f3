"""Read dvc.lock, and find what has changed since it was recorded.

No other module depends on the format of dvc.lock.
"""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pathspec import GitIgnoreSpec

from stages.core.errors import StageError
from stages.core.paths import GRAPH, LOCK, PARAMETERS
from stages.core.settings import read_yaml
from tools.verify.repository import ask_git, run_git

Lock = dict[str, Any]  # what dvc.lock records of each stage, by the stage's name

IGNORED = Path(".dvcignore")
ALWAYS_IGNORED = (".git", ".hg/", ".dvc/")  # by DVC itself


class Recorded(NamedTuple):
    """What dvc.lock records of a file or a folder."""

    md5: str  # ends in ".dir" for a folder
    size: int


def read_lock(project: Path = Path()) -> Lock:
    """Return what the dvc.lock in the folder `project` records of each stage.

    Raises StageError if the file is missing or damaged.
    """
    stages = read_yaml(project / LOCK).get("stages")
    if not isinstance(stages, dict):
        raise StageError(f"{project / LOCK}: expected stages, found {type(stages).__name__}")
    return stages


def list_files(lock: Lock, kind: str, stages: Iterable[str] | None = None) -> dict[str, Recorded]:
    """Return the recorded files of all stages, or only of `stages`, by path.

    `kind` is `deps` or `outs`.
    """
    return {
        entry["path"]: Recorded(entry["md5"], entry.get("size", 0))
        for stage in (lock if stages is None else stages)
        for entry in lock.get(stage, {}).get(kind, [])
    }


def list_parameters(lock: Lock, stages: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the recorded parameters of all stages, or only of `stages`.

    The keys are those in dvc.yaml: a section such as `model`, or a dotted key such as `model.seed`.
    """
    parameters: dict[str, Any] = {}
    for stage in lock if stages is None else stages:
        parameters |= lock.get(stage, {}).get("params", {}).get(PARAMETERS.as_posix(), {})
    return parameters


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return each value in nested mappings by its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def compute_md5(path: Path) -> str:
    """Return the MD5 of a file. dvc.lock and DVC's cache identify a file by it."""
    with path.open("rb") as stream:
        return _hash(stream)


def hash_tree(path: Path) -> str:
    """Return DVC's MD5 of a file or a folder of this project."""
    if path.is_file():
        return compute_md5(path)
    return _hash_folder(_hash_files(Path(), path.as_posix()))


def find_stale(project: Path, lock: Lock) -> dict[str, list[str]]:
    """Return a line for each difference between the checkout in `project` and its dvc.lock, `lock`.

    The lines are grouped by stage. A file that is missing in the checkout is not checked, because
    not every file is in git.
    """
    graph, parameters = read_yaml(project / GRAPH)["stages"], read_yaml(project / PARAMETERS)
    written = list_files(lock, "outs")
    find_changes = cache(partial(_find_changes, project))  # stages share files
    found: dict[str, list[str]] = {}
    for stage in dict.fromkeys([*lock, *graph]):
        if stage not in lock or stage not in graph:
            found[stage] = [f"only {GRAPH if stage in graph else LOCK} has the stage {stage}"]
            continue
        notes = _compare_definitions(graph[stage], stage, lock)
        for kind in ("deps", "outs"):
            for path, recorded in list_files(lock, kind, [stage]).items():
                if changes := find_changes(path, recorded.md5):
                    notes += changes
                elif written.get(path, recorded).md5 != recorded.md5:
                    notes.append(
                        f"{LOCK} has two hashes of {path}: one as the output of a stage, another "
                        f"one as the input of {stage}"
                    )
        found[stage] = notes + _compare_values(list_parameters(lock, [stage]), parameters)
    return found


def _compare_definitions(definition: Mapping[str, Any], stage: str, lock: Lock) -> list[str]:
    """Return a line for each difference between `lock` and the stage's `definition` in dvc.yaml."""
    before, now = lock[stage]["cmd"], definition["cmd"]
    notes = [f"cmd of {stage} is {now!r} in {GRAPH} and {before!r} in {LOCK}"] * (now != before)
    outs = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind, [])]
    listed = {
        "deps": (set(definition["deps"]), set(list_files(lock, "deps", [stage]))),
        "params": (set(definition.get("params", [])), set(list_parameters(lock, [stage]))),
        "outs": (
            {next(iter(out)) if isinstance(out, dict) else out for out in outs},
            set(list_files(lock, "outs", [stage])),
        ),
    }
    for kind, (ours, theirs) in listed.items():
        for file, names in ((GRAPH, ours - theirs), (LOCK, theirs - ours)):
            if names:
                notes.append(f"only {file} lists {', '.join(sorted(names))} in {kind} of {stage}")
    return notes


def _compare_values(recorded: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """Return a line for each parameter whose value differs from the recorded value."""
    before, everything = flatten(recorded), flatten(parameters)
    now = {
        name: value
        for name, value in everything.items()
        if any(name == key or name.startswith(f"{key}.") for key in recorded)
    }

    def show(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "missing"

    return [
        f"{name} is {show(now, name)} in {PARAMETERS} and {show(before, name)} in {LOCK}"
        for name in now | before
        if name not in now or name not in before or now[name] != before[name]
    ]


def _find_changes(project: Path, path: str, md5: str) -> list[str]:
    """Return a line for each change of the file or folder `path` since its hash was `md5`."""
    since = f"since {LOCK} was recorded"
    if (project / path).is_file() and compute_md5(project / path) != md5:
        return [f"{path} has changed {since}"]
    if _lacks_data(project / path):
        return []
    now = _hash_files(project, path)
    if not now or _hash_folder(now) == md5:
        return []
    before = _find_recorded_files(project, path, md5)
    if before is None:  # no commit has the recorded files, or this checkout has no history
        return [f"{path} has changed {since}"]
    changed = {name for name in now.keys() & before.keys() if now[name] != before[name]}
    return [
        f"{path}/{name} {what} {since}"
        for what, names in (
            ("has changed", changed),
            ("was added", now.keys() - before.keys()),
            ("was deleted", before.keys() - now.keys()),
        )
        for name in sorted(names)
    ]


def _lacks_data(folder: Path) -> bool:
    """Return whether a folder lacks files that DVC tracks with a .dvc file in there."""
    return any(
        not (dvc_file.parent / out["path"]).exists()
        for dvc_file in folder.rglob("*.dvc")
        if dvc_file.is_file()
        for out in read_yaml(dvc_file).get("outs", [])
    )


def _hash_files(project: Path, folder: str) -> dict[str, str]:
    """Return the MD5 of each file in a folder, by its path in the folder.

    Files that DVC ignores are left out.
    """
    ignored = project / IGNORED
    text = ignored.read_text(encoding="utf-8") if ignored.exists() else ""
    spec = GitIgnoreSpec.from_lines([*ALWAYS_IGNORED, *text.splitlines()])
    names = [path.relative_to(project).as_posix() for path in (project / folder).rglob("*")]
    files = [name for name in names if not spec.match_file(name) and (project / name).is_file()]
    return {name.removeprefix(f"{folder}/"): compute_md5(project / name) for name in files}


def _hash_folder(files: Mapping[str, str]) -> str:
    """Return DVC's hash of a folder: the MD5 of a JSON list of the files in it."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return _hash(io.BytesIO(json.dumps(listing, sort_keys=True).encode())) + ".dir"


def _find_recorded_files(project: Path, folder: str, md5: str) -> dict[str, str] | None:
    """Return the result of `_hash_files` for the time when the folder's hash was `md5`.

    dvc.lock has only the hash of the folder. So this function reads the files from the commit that
    recorded the hash, or from the last commit if dvc.lock is not committed yet. It returns None if
    the folder has this hash in neither of them.
    """
    log = ask_git("log", "--format=%H", "-S", md5, "--", LOCK.as_posix(), cwd=project)
    for commit in ("HEAD", *log.split()):
        try:
            archive = run_git("archive", "--format=zip", "-0", commit, cwd=project)
        except StageError:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            zipfile.ZipFile(io.BytesIO(archive)).extractall(temporary)
            files = _hash_files(Path(temporary), folder)
        if _hash_folder(files) == md5:
            return files
    return None


def _hash(stream: io.BufferedIOBase) -> str:
    return hashlib.file_digest(stream, "md5").hexdigest()
