"""A DVC project: its stages as DVC resolves them, and what its dvc.lock records of each.

DVC resolves `foreach`, `matrix`, `vars`, `wdir` and several dvc.yaml. A file that DVC cannot read
gives stages with a problem, and the others can still be checked.
"""

import os
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, clone_commit
from dvc_verify.lockfile import GRAPH, LOCK, Lock, Recorded, read_lock, read_yaml


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
            if repo.dvcignore.is_ignored_file(str(folder / path)):
                continue
            lock, loaded, names, problem = {}, [], [], ""
            try:
                if path.endswith(GRAPH) and (folder / path).with_name(LOCK).exists():
                    lock = read_lock((folder / path).parent)
                loaded = Index.from_file(repo, str(folder / path)).stages
            except VerifyError as error:
                problem = str(error).removeprefix(f"{folder}/")
            except Exception as error:  # DVC raises anything on a damaged file
                problem = f"DVC cannot read {path}: {shorten(error)}"
            if problem:
                names = list_names(folder / path)
                project.problems += [] if names else [problem]
            stages = [Stage(name_stage(path, name), path, problem) for name in names]
            stages += [convert_stage(each, path, folder, lock) for each in loaded]
            project.tracked += [each for each in stages if not (each.commands or each.problem)]
            project.stages |= {s.name: s for s in stages if s.commands or s.problem}
            retired = lock.keys() - {getattr(each, "name", None) for each in loaded}
            if not problem:
                beside = Path(path).with_name(LOCK).as_posix()
                project.retired |= {name_stage(path, n): beside for n in lock if n in retired}
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
    if listed := ask_git("ls-files", "-z", "--", GRAPH, f"*/{GRAPH}", "*.dvc", cwd=folder):
        names = listed.split("\0")
    else:  # not under git
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    names = [name for name in names if Path(name).name == GRAPH or name.endswith(".dvc")]
    return sorted((n for n in names if (folder / n).is_file()), key=lambda n: (n.count("/"), n))


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

    def convert_file(item: Any) -> Recorded:
        """Return what DVC's index has of an input or output, by its path in the project."""
        name = str(item.def_path)
        if item.protocol == "local" and not Path(name).is_absolute():
            name = Path(os.path.relpath(item.fs_path, folder)).as_posix()
        md5 = item.hash_info.value if item.hash_name.startswith("md5") else ""
        old = item.hash_name == "md5-dos2unix"
        return Recorded(name, md5 or "", item.meta.size or 0, old, item.use_cache, item.persist)

    commands = [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd or []
    return Stage(
        name=name_stage(path, stage.name) if commands else path,
        graph=path,
        dvc=stage,
        recorded=lock.get(stage.name) if commands else None,
        commands=commands,
        deps=[convert_file(each) for each in stage.deps if each not in stage.params],
        outs=[convert_file(each) for each in stage.outs],
    )


def shorten(error: Exception) -> str:
    """Return the message of an exception and of its cause in one line."""
    cause = error.__cause__ or error
    return " ".join((str(error) if cause is error else f"{error}: {cause}").split())
