"""A DVC project: its stages as DVC resolves them, and what its dvc.lock records of each.

DVC resolves `foreach`, `matrix`, `vars`, `wdir` and several dvc.yaml. A file that DVC cannot read
gives stages with a problem, and the others can still be checked.
"""

import os
import tomllib
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, clone_commit
from dvc_verify.lockfile import GRAPH, LOCK, Lock, Recorded, read_lock, read_yaml

# What a project may declare in the table [tool.dvc-verify] of its pyproject.toml.
SETTINGS: dict[str, Any] = {
    "keep": [],  # stages, as with --keep
    "hidden": [],  # variables that stages must not see
    "libraries": [],  # that compute or write outputs
    "record": "dvc repro",  # the command that records dvc.lock
    "trace": "",  # an output that tells where a training departs
    "tolerances": {},  # see compare.py
}


@dataclass(eq=False)
class Stage:
    """A stage, or what a .dvc file tracks, which has no commands."""

    name: str  # as `dvc repro` takes it: with its dvc.yaml, unless that is at the top
    graph: str = GRAPH  # the file that defines it
    problem: str = ""  # why DVC cannot read it
    dvc: Any = None  # the stage in DVC's index
    recorded: Lock | None = None  # its entry in dvc.lock
    commands: list[str] = field(default_factory=list)
    deps: list[Recorded] = field(default_factory=list)
    outs: list[Recorded] = field(default_factory=list)
    needs: list["Stage"] = field(default_factory=list)  # the stages that write its inputs

    def list_needed(self) -> Iterator["Stage"]:
        """Yield all stages that this one depends on, directly or not."""
        for stage in self.needs:
            yield stage
            yield from stage.list_needed()

    @property
    def lock(self) -> str:
        """The path of the dvc.lock beside its dvc.yaml."""
        return Path(self.graph).with_name(LOCK).as_posix()


@dataclass
class Project:
    """A DVC project in a folder."""

    folder: Path
    index: Any  # DVC's index of all stages
    stages: dict[str, Stage]  # as in dvc.yaml, or after `sort` in the order in which they run
    tracked: list[Stage]  # what .dvc files track
    retired: dict[str, str]  # stages that only a dvc.lock has, and that dvc.lock
    problems: list[str]  # files that DVC cannot read, with the reason

    def sort(self) -> None:
        """Find what each stage needs, and the order of all. Raises VerifyError on a cycle."""
        import networkx
        from dvc.exceptions import DvcException

        known = {s.dvc: s for s in (*self.tracked, *self.stages.values()) if not s.problem}
        try:
            order = [known[each] for each in networkx.dfs_postorder_nodes(self.index.graph)]
        except DvcException as error:
            raise VerifyError(f"DVC refuses the stages: {shorten(error)}") from error
        for each, stage in known.items():
            stage.needs = [known[other] for other in self.index.graph.successors(each)]
        self.tracked = [stage for stage in order if not stage.commands]
        broken = {name: stage for name, stage in self.stages.items() if stage.problem}
        self.stages = broken | {stage.name: stage for stage in order if stage.commands}


def read_settings(project: Path) -> SimpleNamespace:
    """Return SETTINGS as the project has them. Raises VerifyError on other keys or types."""
    path = project / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise VerifyError(f"pyproject.toml: {error}") from error
    table = content.get("tool", {}).get("dvc-verify", {})
    for key, value in table.items():
        known = f"one of {', '.join(SETTINGS)}"
        expected = type(SETTINGS[key]).__name__ if key in SETTINGS else known
        if type(value).__name__ != expected:
            raise VerifyError(f"pyproject.toml: tool.dvc-verify.{key}: expected {expected}")
    return SimpleNamespace(**SETTINGS | table)


def read_project(folder: Path) -> Project:
    """Read the project in a folder. Raises VerifyError if it is not a DVC project."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.index import Index

    folder = folder.resolve()
    (folder / ".dvc").mkdir(exist_ok=True)  # some projects keep it out of git
    settings = {"core": {"no_scm": True, "site_cache_dir": f"{folder}/.dvc/tmp"}}
    try:
        repo = Repo(str(folder), config=settings)
    except DvcException as error:
        raise VerifyError(f"DVC cannot open the project: {shorten(error)}") from error
    project = Project(folder, None, {}, [], {}, [])
    with repo, chdir(folder):  # DVC's messages name paths from the current folder
        for path in find_dvc_files(folder):
            lock_file = Path(path).with_name(LOCK)
            if repo.dvcignore.is_ignored_file(str(folder / path)):
                continue
            try:
                known = path.endswith(GRAPH) and lock_file.exists()
                lock = read_lock(lock_file.parent) if known else {}
                loaded = Index.from_file(repo, str(folder / path)).stages
            except Exception as error:  # DVC raises anything on a damaged file
                ours = isinstance(error, VerifyError)
                problem = str(error) if ours else f"DVC cannot read {path}: {shorten(error)}"
                names = {name_stage(path, name) for name in list_names(Path(path))}
                project.stages |= {name: Stage(name, path, problem) for name in sorted(names)}
                project.problems += [] if names else [problem]
                continue
            for each in loaded:
                stage = convert_stage(each, path, folder, lock)
                if stage.commands:
                    project.stages[stage.name] = stage
                else:
                    project.tracked.append(stage)
            retired = [n for n in lock if n not in {getattr(each, "name", "") for each in loaded}]
            project.retired |= {name_stage(path, name): lock_file.as_posix() for name in retired}
        everything = (*project.tracked, *project.stages.values())
        project.index = Index(repo, stages=[each.dvc for each in everything if each.dvc])
    return project


def clone_project(commit: str, target: Path, workspace: Path) -> Project:
    """Clone a commit, and read the project in there. Raises VerifyError if it has no stages."""
    project = read_project(clone_commit(commit, target, workspace))
    if not project.stages:
        problems = project.problems or ["no dvc.yaml in the last commit has stages"]
        raise VerifyError(f"{workspace}: {problems[0]}")
    return project


def find_dvc_files(folder: Path) -> list[str]:
    """Return the paths of all dvc.yaml and .dvc files, those at the top first."""
    listed = ask_git("ls-files", "-z", "--", GRAPH, f"*/{GRAPH}", "*.dvc", cwd=folder).split("\0")
    if listed == [""]:  # not under git
        listed = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    names = (name for name in listed if Path(name).name == GRAPH or name.endswith(".dvc"))
    return sorted((n for n in names if (folder / n).is_file()), key=lambda n: (n.count("/"), n))


def list_names(path: Path) -> list[str]:
    """Return the names of the stages in a dvc.yaml and its dvc.lock, as far as they can be read."""
    names: list[str] = []
    for file in (path, path.with_name(LOCK)):
        with suppress(VerifyError):
            content = read_yaml(file)
            stages = content.get("stages", {} if file == path else content)
            names += map(str, stages if isinstance(stages, dict) else ())
    return names


def name_stage(path: str, name: str) -> str:
    """Return how `dvc repro` calls a stage of the dvc.yaml at `path`."""
    return name if path == GRAPH else f"{path}:{name}"


def convert_stage(stage: Any, path: str, folder: Path, lock: Lock) -> Stage:
    """Return a stage of DVC's index, with its entry in `lock`, as a Stage."""

    def convert_file(item: Any) -> Recorded:
        """Return what DVC's index has of an input or output, by its path in the project."""
        name = str(item.def_path)
        if item.protocol == "local" and not Path(name).is_absolute():
            name = Path(os.path.relpath(item.fs_path, folder)).as_posix()
        md5 = item.hash_info.value if item.hash_name.startswith("md5") else ""
        old = item.hash_name == "md5-dos2unix"
        return Recorded(name, md5 or "", 0, old, item.use_cache, item.persist)

    commands = [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd or []
    name = name_stage(path, stage.name) if commands else path
    deps = [convert_file(each) for each in stage.deps if each not in stage.params]
    outs = [convert_file(each) for each in stage.outs]
    recorded = lock.get(stage.name) if commands else None
    return Stage(name, path, "", stage, recorded, commands, deps, outs)


def shorten(error: Exception) -> str:
    """Return the message of an exception and of its cause in one line."""
    cause = error.__cause__ or error
    return " ".join((str(error) if cause is error else f"{error}: {cause}").split())
