"""Find what has changed since dvc.lock was recorded, without running a stage."""

import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, run_git
from dvc_verify.lockfile import (
    PARAMETERS,
    Lock,
    Recorded,
    flatten,
    hash_files,
    hash_folder,
    match,
    read_yaml,
)
from dvc_verify.project import Project, Stage


def find_stale(project: Project) -> dict[str, list[str]]:
    """Return a line for each difference between a project's files and its dvc.lock, by stage.

    A file that is missing in the checkout is not checked, because not every file is in git.
    """

    @cache  # stages share files
    def find_changes(recorded: Recorded, lock: str) -> list[str]:
        return list(_find_changes(project.folder, recorded, lock))

    written = {file.path: file.md5 for stage in project.stages.values() for file in stage.outs}
    found = {name: [f"only {lock} has the stage {name}"] for name, lock in project.retired.items()}
    for name, stage in project.stages.items():
        if stage.problem or stage.recorded is None:
            found[name] = [stage.problem or f"only {stage.graph} has the stage {name}"]
            continue
        notes = found[name] = list(_compare_definitions(stage, stage.recorded))
        for file in (*stage.deps, *stage.outs):
            changes = find_changes(file, stage.lock) if file.md5 else []
            other = written.get(file.path)
            if file.md5 and not changes and other and other != file.md5:
                notes.append(
                    f"{stage.lock} has two hashes of {file.path}: one as the output of a stage, "
                    f"another one as the input of {name}"
                )
            notes += changes
        notes += _compare_values(stage, stage.recorded)
    return found


def _compare_definitions(stage: Stage, recorded: Lock) -> Iterator[str]:
    """Yield a line for each difference between a stage in dvc.yaml and what dvc.lock has of it."""
    before, now = recorded.get("cmd"), stage.commands
    if ([before] if isinstance(before, str) else before) != now:
        shown = now[0] if len(now) == 1 else now
        yield f"cmd of {stage.name} is {shown!r} in {stage.graph} and {before!r} in {stage.lock}"
    dvc, params = stage.dvc, recorded.get("params") or {}
    ours = {
        "deps": {each.def_path for each in dvc.deps if each not in dvc.params},
        # Without names, the whole file is listed.
        "params": {_name(p.def_path, n) for p in dvc.params for n in p.params or _read_values(p)},
        "outs": {each.def_path for each in dvc.outs},
    }
    theirs = {k: {each["path"] for each in recorded.get(k) or []} for k in ("deps", "outs")}
    theirs["params"] = {_name(file, name) for file, values in params.items() for name in values}
    for kind, names in ours.items():
        sides = {stage.graph: names - theirs[kind], stage.lock: theirs[kind] - names}
        for file, alone in sides.items():
            if alone:
                yield f"only {file} lists {', '.join(sorted(alone))} in {kind} of {stage.name}"


def _compare_values(stage: Stage, recorded: Lock) -> Iterator[str]:
    """Yield a line for each parameter whose value differs from the recorded value."""
    for item in stage.dvc.params:
        present, values = _read_values(item), (recorded.get("params") or {}).get(item.def_path, {})
        names = values.keys() & set(item.params or present)
        now, before = (
            flatten({key: side[key] for key in side if key in names}) for side in (present, values)
        )
        for key in now | before:
            ours, theirs = (repr(side[key]) if key in side else "missing" for side in (now, before))
            if ours != theirs and now.get(key, ...) != before.get(key, ...):
                yield f"{key} is {ours} in {item.def_path} and {theirs} in {stage.lock}"


def _name(file: str, parameter: str) -> str:
    """Return how a message names a parameter: with its file, unless that is params.yaml."""
    return parameter if file == PARAMETERS else f"{parameter} in {file}"


def _read_values(item: Any) -> Lock:
    """Return the present values of the parameters that a stage lists in one file."""
    from dvc.exceptions import DvcException

    with suppress(DvcException, OSError):
        return dict(item.read_params())
    return {}


def _find_changes(project: Path, recorded: Recorded, lock: str) -> Iterator[str]:
    """Yield a line for each change of a file or folder since it was recorded."""
    since, path = f"since {lock} was recorded", project / recorded.path
    if not path.exists() or _lacks_data(path) or match(project, path, recorded):
        return
    now = hash_files(project, path) if path.is_dir() else {}
    before = _find_recorded_files(project, recorded, lock) if now else None
    if before is not None:
        changed = {name for name in now.keys() & before.keys() if now[name] != before[name]}
        for change, names in (
            ("has changed", changed),
            ("was added", now.keys() - before.keys()),
            ("was deleted", before.keys() - now.keys()),
        ):
            yield from (f"{recorded.path}/{name} {change} {since}" for name in sorted(names))
    elif now or path.is_file():
        yield f"{recorded.path} has changed {since}"


def _lacks_data(folder: Path) -> bool:
    """Return whether a folder lacks files that DVC tracks with a .dvc file in there."""
    return any(
        not (file.parent / out["path"]).exists()
        for file in (folder.rglob("*.dvc") if folder.is_dir() else ())
        if file.is_file()
        for out in read_yaml(file).get("outs") or []
    )


def _find_recorded_files(project: Path, recorded: Recorded, lock: str) -> dict[str, str] | None:
    """Return the MD5 of each file in a folder as it was recorded, or None if git lacks them.

    dvc.lock has only the hash of the folder. So this function reads the files from the commit that
    recorded the hash, or from the last commit if dvc.lock is not committed yet.
    """
    log = ask_git("log", "--format=%H", "-S", recorded.md5, "--", lock, cwd=project)
    for commit in ("HEAD", *log.split()):
        try:
            archive = run_git("archive", "--format=zip", "-0", commit, cwd=project)
        except VerifyError:
            return None
        with tempfile.TemporaryDirectory() as temporary:
            zipfile.ZipFile(io.BytesIO(archive)).extractall(temporary)
            files = hash_files(Path(temporary), Path(temporary) / recorded.path)
        if hash_folder(files) == recorded.md5:
            return files
    return None
