"""A DVC project: its stages as DVC resolves them, and what its dvc.lock records of each.

DVC resolves `foreach`, `matrix`, `vars`, `wdir` and several dvc.yaml. A file that DVC cannot read
gives stages with a problem, and the others can still be checked.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git
from dvc_verify.lockfile import GRAPH, LOCK, PARAMETERS, Lock, Recorded, read_lock, read_yaml

Files = dict[str, Recorded | None]  # by path in the project; None: nothing is recorded


@dataclass(eq=False)
class Stage:
    """A stage, or what a .dvc file tracks, which has no commands."""

    name: str  # as `dvc repro` takes it: with its dvc.yaml, unless that is at the top
    commands: list[str] = field(default_factory=list)
    folder: Path = Path()  # where the commands run
    deps: Files = field(default_factory=dict)
    outs: Files = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)  # outputs in DVC's cache, not in git
    persistent: set[str] = field(default_factory=set)  # outputs that DVC does not delete
    frozen: bool = False
    recorded: Lock | None = None  # its entry in dvc.lock
    graph: str = GRAPH  # the file that defines it
    lock: str = LOCK  # the dvc.lock beside that file
    listed: dict[str, set[str]] = field(default_factory=dict)  # names in dvc.yaml, by kind
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)  # values now, by file
    needs: list["Stage"] = field(default_factory=list)  # the stages that write its inputs
    problem: str = ""  # why DVC cannot run it

    def list_needed(self) -> Iterator["Stage"]:
        """Yield all stages that this one depends on, directly or not."""
        for stage in self.needs:
            yield stage
            yield from stage.list_needed()


@dataclass
class Project:
    """A DVC project in a folder."""

    folder: Path
    stages: dict[str, Stage]  # in the order in which they run
    tracked: list[Stage]  # what .dvc files track
    retired: dict[str, str]  # stages that only a dvc.lock has, and that dvc.lock
    problems: list[str]  # files that DVC cannot read, with the reason


def read_project(folder: Path) -> Project:
    """Read the project in a folder. Raises VerifyError if it is not a DVC project."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.index import Index

    folder = folder.resolve()
    (folder / ".dvc").mkdir(exist_ok=True)  # some projects keep it out of git
    found, project = {}, Project(folder, {}, [], {}, [])
    try:
        repo = Repo(
            str(folder), config={"core": {"no_scm": True, "site_cache_dir": f"{folder}/.dvc/tmp"}}
        )
    except DvcException as error:
        raise VerifyError(f"DVC cannot open the project: {shorten(error)}") from error
    with repo, chdir(folder):  # DVC's messages name paths from the current folder
        for path in find_dvc_files(folder):
            if repo.dvcignore.is_ignored_file(str(folder / path)):
                continue
            lock, problem = {}, ""
            try:
                lock = read_lock_of(folder / path)
                loaded = Index.from_file(repo, str(folder / path)).stages
            except VerifyError as error:
                problem = str(error).removeprefix(f"{folder}/")
            except Exception as error:  # DVC raises anything on a damaged file
                problem = f"DVC cannot read {path}: {shorten(error)}"
            if problem:
                if not (names := list_names(folder / path)):
                    project.problems.append(problem)
                for name in names:
                    stage = Stage(name_stage(path, name), problem=problem)
                    project.stages[stage.name] = stage
                continue
            for each in loaded:
                found[each] = convert_stage(each, path, folder, lock)
            known = {getattr(each, "name", None) for each in loaded}
            project.retired |= {
                name_stage(path, name): name_lock(path) for name in lock if name not in known
            }
        index = Index(repo, stages=list(found))
        try:
            graph = index.graph
        except DvcException as error:
            raise VerifyError(f"DVC refuses the stages: {shorten(error)}") from error
    import networkx

    for each in networkx.dfs_postorder_nodes(graph):
        stage = found[each]
        stage.needs = [found[other] for other in graph.successors(each)]
        if stage.commands:
            project.stages[stage.name] = stage
        else:
            project.tracked.append(stage)
    return project


def find_dvc_files(folder: Path) -> list[str]:
    """Return the paths of all dvc.yaml and .dvc files, those at the top first."""
    if listed := ask_git("ls-files", "-z", "--", GRAPH, f"*/{GRAPH}", "*.dvc", cwd=folder):
        names = listed.split("\0")
    else:  # not under git
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    names = [name for name in names if Path(name).name == GRAPH or name.endswith(".dvc")]
    return sorted((n for n in names if (folder / n).is_file()), key=lambda n: (n.count("/"), n))


def read_lock_of(path: Path) -> Lock:
    """Return what the dvc.lock beside a dvc.yaml records; nothing if there is none."""
    exists = path.name == GRAPH and path.with_name(LOCK).exists()
    return read_lock(path.parent) if exists else {}


def list_names(path: Path) -> list[str]:
    """Return the names of the stages in a dvc.yaml and its dvc.lock, as far as they can be read."""
    names: dict[str, None] = {}
    for file in (path, path.with_name(LOCK)):
        with suppress(VerifyError):
            content = read_yaml(file)
            stages = content.get("stages", {} if file == path else content)
            names |= dict.fromkeys(stages if isinstance(stages, dict) else ())
    return [str(name) for name in names]


def name_stage(path: str, name: str) -> str:
    """Return how `dvc repro` calls a stage of the dvc.yaml at `path`."""
    return name if path == GRAPH else f"{path}:{name}"


def convert_stage(stage: Any, path: str, folder: Path, lock: Lock) -> Stage:
    """Return a stage of DVC's index, with its entry in `lock`, as a Stage."""
    tracked = stage.cmd is None
    entry = None if tracked else lock.get(stage.name)
    files: dict[str, Files] = {}
    listed: dict[str, set[str]] = {"deps": set(), "params": set(), "outs": set()}
    parameters = {}
    for kind, items in (("deps", stage.deps), ("outs", stage.outs)):
        recorded = {each["path"]: Recorded.read(each) for each in (entry or {}).get(kind) or []}
        files[kind] = {}
        for item in items:
            if hasattr(item, "params"):
                values = parameters[item.def_path] = read_parameters(item)
                names = item.params or values  # without names, the whole file is listed
                listed["params"] |= {name_parameter(item.def_path, name) for name in names}
                continue
            listed[kind].add(item.def_path)
            found = recorded.get(item.def_path)
            if tracked and kind == "outs" and item.hash_info:
                old = item.hash_name == "md5-dos2unix"
                found = Recorded(item.hash_info.value, item.meta.size or 0, old)
            files[kind][name_path(item, folder)] = found
    return Stage(
        name=path if tracked else name_stage(path, stage.name),
        commands=[] if tracked else [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd,
        folder=Path(stage.wdir),
        deps=files["deps"],
        outs=files["outs"],
        cached={name_path(out, folder) for out in stage.outs if out.use_cache},
        persistent={name_path(out, folder) for out in stage.outs if out.persist},
        frozen=stage.frozen,
        recorded=entry,
        graph=path,
        lock=name_lock(path),
        listed=listed,
        parameters=parameters,
    )


def name_path(item: Any, folder: Path) -> str:
    """Return the path of an input or output in the project, or its address if it is elsewhere."""
    if item.protocol != "local":
        return str(item.def_path)
    given = str(item.def_path)
    return (
        given
        if Path(given).is_absolute()
        else Path(os.path.relpath(item.fs_path, folder)).as_posix()
    )


def name_lock(path: str) -> str:
    """Return the path of the dvc.lock beside a dvc.yaml."""
    return Path(path).with_name(LOCK).as_posix()


def name_parameter(file: str, name: str) -> str:
    """Return how a message names a parameter: with its file, unless that is params.yaml."""
    return name if file == PARAMETERS else f"{name} in {file}"


def read_parameters(item: Any) -> dict[str, Any]:
    """Return the present values of the parameters that a stage lists in one file."""
    from dvc.exceptions import DvcException

    try:
        return {key: _use_lists(value) for key, value in item.read_params().items()}
    except (DvcException, OSError):
        return {}


def _use_lists(value: Any) -> Any:
    """Return a value with lists instead of tuples, which only parameters in Python have."""
    if isinstance(value, Mapping):
        return {key: _use_lists(each) for key, each in value.items()}
    return [_use_lists(each) for each in value] if isinstance(value, list | tuple) else value


def shorten(error: Exception) -> str:
    """Return the message of an exception and of its cause in one line."""
    cause = error.__cause__ or error
    return " ".join((str(error) if cause is error else f"{error}: {cause}").split())
