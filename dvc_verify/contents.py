"""Put what the commit records into a clone, and say which stages cannot run there, and why.

Recorded content is found by its hash: in git, the workspace, DVC's cache or a remote.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, run_git
from dvc_verify.lockfile import Recorded, compute_md5, match
from dvc_verify.project import Project, Stage

POINTER = "version https://git-lfs.github.com/spec/"
OPERATORS = {"&&", "||", "|", ";", "(", ")", "&", "{", "!"}
PREFIXES = {"exec", "env", "time", "nohup", "command"}


class Contents:
    """What the user's project has: its workspace, and DVC's cache and remotes.

    Remotes on other machines are asked only with `network`. What they have is put in `folder`.
    """

    def __init__(self, workspace: Path, network: bool, folder: Path) -> None:
        """Open the caches and remotes of the project in the folder `workspace`."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        self.places, self.folder = [workspace], folder  # projects with content, and a folder for it
        self.stores: list[Any] = []
        self.skipped: list[str] = []  # remotes that were not asked
        with suppress(DvcException, OSError):
            repo = Repo(str(workspace), config={"core": {"no_scm": True}})
            self.stores += [repo.cache.local, repo.cache.legacy]
            for name, settings in repo.config["remote"].items():
                if "://" in settings.get("url", "") and not network:
                    self.skipped.append(name)
                    continue
                with suppress(Exception):  # the package for such a remote is not installed
                    remote = repo.cloud.get_remote(name)
                    self.stores += [remote.odb, remote.legacy_odb]

    def has(self, md5: str) -> bool:
        """Return whether the cache or a remote has a file, or a folder with all its files."""
        for store in self.stores:
            with suppress(Exception):  # it is not there, or the remote does not answer
                path = store.oid_to_path(md5)
                files = json.loads(store.fs.read_bytes(path)) if md5.endswith(".dir") else []
                if store.fs.exists(path):
                    return all(self.has(each["md5"]) for each in files)
        return False

    def find(self, recorded: Recorded, committed: Path) -> Path | None:
        """Return where the recorded file or folder is, or None.

        It is in `committed`, a checkout of the commit; in the workspace; or it is brought from the
        cache or a remote.
        """
        if not recorded.md5:
            return None
        for project in (committed, *self.places):
            if match(project, project / recorded.path, recorded):
                return project / recorded.path
        place = self.folder / recorded.md5
        if place.exists() or self._fetch(recorded.md5, place):
            return place
        shutil.rmtree(place, ignore_errors=True)
        return None

    def _fetch(self, md5: str, target: Path) -> bool:
        """Bring a file or folder from the cache or a remote to `target`. Return success."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for store in self.stores:
            with suppress(Exception):  # it is not there, or the remote does not answer
                store.fs.get_file(store.oid_to_path(md5), str(target))
                if compute_md5(target) == md5.removesuffix(".dir"):
                    break
            target.unlink(missing_ok=True)
        else:
            return False
        files = json.loads(target.read_bytes()) if md5.endswith(".dir") else []
        if md5.endswith(".dir"):  # the list of its files
            target.unlink()
            target.mkdir()
        return all(self._fetch(each["md5"], target / each["relpath"]) for each in files)

    def restore(self, recorded: Recorded, project: Path) -> bool:
        """Put the recorded file or folder into a checkout of the project, if it can be found."""
        source, target = self.find(recorded, project), project / recorded.path
        if source and source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
        return source is not None


def complete_clone(clone: Path, workspace: Path) -> Iterator[str]:
    """Copy submodules and Git LFS files from the user's repository to a clone of it.

    Yields a line for each that the user does not have.
    """
    for commit, path in re.findall(r"160000 (\w+) 0\t(.*)", ask_git("ls-files", "-s", cwd=clone)):
        try:
            if not (workspace / path / ".git").exists():
                raise VerifyError("not checked out")
            source = str(workspace / path)
            run_git("clone", "--quiet", "--shared", "--no-checkout", source, path, cwd=clone)
            run_git("checkout", "--quiet", commit, cwd=clone / path)
        except VerifyError:
            yield f"the submodule {path} is not here: git submodule update --init"
    listed = ask_git("grep", "-l", "-z", "-I", "-e", f"^{POINTER}", "HEAD", cwd=clone)
    for path in (name.removeprefix("HEAD:") for name in listed.split("\0") if name):
        content = (clone / path).read_text(encoding="utf-8") if (clone / path).is_file() else ""
        pointer = re.match(rf"{POINTER}.*^oid sha256:(\w+)$", content, re.M | re.S)
        theirs = workspace / path
        if not pointer:
            continue
        if theirs.is_file() and hashlib.sha256(theirs.read_bytes()).hexdigest() == pointer[1]:
            shutil.copyfile(theirs, clone / path)
        else:
            yield f"{path} is only a Git LFS pointer here: git lfs pull"


def make_path() -> str:
    """Return a PATH on which this Python and its programs come first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def prepare(
    project: Project, folder: Path, contents: Contents, keep: Set[str], network: bool
) -> dict[str, str]:
    """Put the inputs into the clone in `folder`; return why stages cannot run there, by stage.

    The recorded outputs of these stages are put there too, so that others can read them. The stages
    in `keep` do not run, unless DVC leaves their outputs in place.
    """
    hint = f"; --network asks {', '.join(contents.skipped)}" if contents.skipped else ""
    missing = {
        out.path: f"its input {out.path} is only behind {source.name}, and neither the workspace "
        f"nor DVC's cache has it{hint}"
        for source in project.tracked
        for out in source.outs
        if not contents.restore(out, folder)
    }
    found: dict[str, str] = {}
    written: set[str] = set()
    for name, stage in project.stages.items():
        reason = stage.problem or _find_obstacle(stage, folder, written, network, missing)
        if stage.dvc and stage.dvc.frozen:
            reason = "it is frozen in dvc.yaml, so DVC never runs it"
        if name in keep and any(out.cached and not out.persistent for out in stage.outs):
            reason = "kept: its outputs have the recorded hash, but were not made here"
        for out in stage.outs:
            place = folder / out.path
            if reason and not contents.restore(out, folder):
                missing[out.path] = f"its input {out.path} is not there: {name} cannot run"
            elif not reason and out.persistent and not out.cached and name not in keep:
                # DVC would leave it, and what git has would count as made here.
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                place.unlink(missing_ok=True)
        if reason:
            found[name] = reason
        else:
            written |= {out.path for out in stage.outs}
    return found


def _find_obstacle(
    stage: Stage, folder: Path, written: Set[str], network: bool, missing: dict[str, str]
) -> str:
    """Return why one stage cannot run in the clone in `folder`, or ""."""

    def overlap(first: str, second: str) -> bool:
        """Return whether one of two paths is or contains the other one."""
        return f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/")

    for path in (file.path for file in stage.deps):
        if "://" in path:
            if not network:
                return f"its input {path} is on another machine; --network allows it"
        elif known := [reason for each, reason in missing.items() if overlap(each, path)]:
            return known[0]
        elif not (folder / path).exists() and not any(overlap(each, path) for each in written):
            absolute = Path(path).is_absolute()
            where = "its absolute path is not on this machine" if absolute else "not in git"
            return f"its input {path} is nowhere: {where}, and no stage writes it"
    if outside := [out.path for out in stage.outs if Path(out.path).is_absolute()]:
        return f"it writes {outside[0]}, outside the clone"
    inside = folder / os.path.relpath(stage.dvc.wdir, stage.dvc.repo.root_dir)
    cwd, here = inside if inside.is_dir() else folder, os.environ | {"PATH": make_path()}
    for program in find_programs("\n".join(stage.commands)):
        check = ["sh", "-c", 'command -v "$0"', program]
        if subprocess.run(check, cwd=cwd, env=here, capture_output=True, check=False).returncode:
            return f"the program {program} is not installed"
    return ""


def find_programs(command: str) -> list[str]:
    """Return the programs that a shell command starts, as far as it is simple."""
    text = command.replace("\\\n", " ").replace("\n", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, first = [], True
    with suppress(ValueError):  # quotes that only the shell understands
        for word in lexer:
            if first and re.fullmatch(r"[\w./+-]+", word) and word not in PREFIXES:
                found.append(word)
            first = word in OPERATORS or (first and (word in PREFIXES or "=" in word))
        return list(dict.fromkeys(found))
    return []
