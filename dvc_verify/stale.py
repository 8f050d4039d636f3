"""Find what has changed since dvc.lock was recorded, without running a stage."""

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, run_git
from dvc_verify.lockfile import (
    Recorded,
    flatten,
    hash_files,
    hash_folder,
    match,
    read_yaml,
)
from dvc_verify.project import Project, Stage, name_parameter


def find_stale(project: Project) -> dict[str, list[str]]:
    """Return a line for each difference between a project's files and its dvc.lock, by stage.

    A file that is missing in the checkout is not checked, because not every file is in git.
    """
    written = {path: file for each in project.stages.values() for path, file in each.outs.items()}
    changes: dict[tuple[str, Recorded], list[str]] = {}  # stages share files
    found = {name: [f"only {lock} has the stage {name}"] for name, lock in project.retired.items()}
    for name, stage in project.stages.items():
        if stage.problem:
            found[name] = [stage.problem]
            continue
        if stage.recorded is None:
            found[name] = [f"only {stage.graph} has the stage {name}"]
            continue
        notes = list(_compare_definitions(stage, stage.recorded))
        for kind, files in (("deps", stage.deps), ("outs", stage.outs)):
            for path, recorded in files.items():
                if recorded is None or not recorded.md5:
                    continue
                key = (path, recorded)
                if key not in changes:
                    changes[key] = _find_changes(project.folder, path, recorded, stage.lock)
                other = written.get(path) if kind == "deps" else None
                if not changes[key] and other and other.md5 != recorded.md5:
                    notes.append(
                        f"{stage.lock} has two hashes of {path}: one as the output of a stage, "
                        f"another one as the input of {name}"
                    )
                notes += changes[key]
        found[name] = notes + list(_compare_values(stage, stage.recorded))
    return found


def _compare_definitions(stage: Stage, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each difference between a stage in dvc.yaml and what dvc.lock has of it."""
    before, now = recorded.get("cmd"), stage.commands
    if ([before] if isinstance(before, str) else before) != now:
        shown = now[0] if len(now) == 1 else now
        yield f"cmd of {stage.name} is {shown!r} in {stage.graph} and {before!r} in {stage.lock}"
    theirs = {
        "deps": {each["path"] for each in recorded.get("deps") or []},
        "params": {
            name_parameter(file, key)
            for file, values in (recorded.get("params") or {}).items()
            for key in values
        },
        "outs": {each["path"] for each in recorded.get("outs") or []},
    }
    for kind, ours in stage.listed.items():
        sides = ((stage.graph, ours - theirs[kind]), (stage.lock, theirs[kind] - ours))
        for file, names in sides:
            if names:
                yield f"only {file} lists {', '.join(sorted(names))} in {kind} of {stage.name}"


def _compare_values(stage: Stage, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each parameter whose value differs from the recorded value."""
    for file, values in (recorded.get("params") or {}).items():
        present = stage.parameters.get(file, {})
        now = flatten({key: present[key] for key in values if key in present})
        listed = stage.listed["params"]
        before = flatten({k: v for k, v in values.items() if name_parameter(file, k) in listed})
        for name in now | before:
            ours, theirs = (
                repr(side[name]) if name in side else "missing" for side in (now, before)
            )
            if ours != theirs and (
                name not in now or name not in before or now[name] != before[name]
            ):
                yield f"{name} is {ours} in {file} and {theirs} in {stage.lock}"


def _find_changes(project: Path, path: str, recorded: Recorded, lock: str) -> list[str]:
    """Return a line for each change of the file or folder `path` since it was recorded."""
    since, place = f"since {lock} was recorded", project / path
    if not place.exists() or _lacks_data(place) or match(project, place, recorded):
        return []
    if place.is_file():
        return [f"{path} has changed {since}"]
    now = hash_files(project, place)
    if not now:
        return []
    before = _find_recorded_files(project, path, recorded.md5, lock)
    if before is None:  # no commit has the recorded files, or this checkout has no history
        return [f"{path} has changed {since}"]
    changed = {name for name in now.keys() & before.keys() if now[name] != before[name]}
    return [
        f"{path}/{name} {change} {since}"
        for change, names in (
            ("has changed", changed),
            ("was added", now.keys() - before.keys()),
            ("was deleted", before.keys() - now.keys()),
        )
        for name in sorted(names)
    ]


def _lacks_data(folder: Path) -> bool:
    """Return whether a folder lacks files that DVC tracks with a .dvc file in there."""
    return any(
        not (file.parent / out["path"]).exists()
        for file in (folder.rglob("*.dvc") if folder.is_dir() else ())
        if file.is_file()
        for out in read_yaml(file).get("outs") or []
    )


def _find_recorded_files(project: Path, folder: str, md5: str, lock: str) -> dict[str, str] | None:
    """Return the MD5 of each file in a folder at the time when the folder's hash was `md5`.

    dvc.lock has only the hash of the folder. So this function reads the files from the commit that
    recorded the hash, or from the last commit if dvc.lock is not committed yet. It returns None if
    the folder has this hash in neither of them.
    """
    log = ask_git("log", "--format=%H", "-S", md5, "--", lock, cwd=project)
    for commit in ("HEAD", *log.split()):
        try:
            archive = run_git("archive", "--format=zip", "-0", commit, cwd=project)
        except VerifyError:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            zipfile.ZipFile(io.BytesIO(archive)).extractall(temporary)
            files = hash_files(Path(temporary), Path(temporary) / folder)
        if hash_folder(files) == md5:
            return files
    return None
