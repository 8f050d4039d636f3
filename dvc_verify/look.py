"""Look before running: put inputs into a clone, and say which stages cannot run and why."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

from dvc_verify.contents import Contents
from dvc_verify.project import Project, Stage

OPERATORS = {"&&", "||", "|", ";", "(", ")", "&", "{", "!"}
PREFIXES = {"exec", "env", "time", "nohup", "command"}


def make_path() -> str:
    """Return a PATH on which this Python and its programs come first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def prepare(project: Project, contents: Contents, keep: Set[str], network: bool) -> dict[str, str]:
    """Put the inputs into a clone, and return why stages cannot run, by stage.

    The recorded outputs of these stages are put there too, so that others can read them. The stages
    in `keep` do not run, unless DVC leaves their outputs in place.
    """
    hint = f"; --network asks {', '.join(contents.skipped)}" if contents.skipped else ""
    missing, found = {}, {}
    written: set[str] = set()
    for source in project.tracked:
        for path, recorded in source.outs.items():
            if not recorded or not contents.restore(path, recorded, project.folder):
                missing[path] = (
                    f"its input {path} is only behind {source.name}, and neither the workspace nor "
                    f"DVC's cache has it{hint}"
                )
    for name, stage in project.stages.items():
        reason = stage.problem or _find_obstacle(project, stage, written, network, missing)
        if stage.frozen:
            reason = "it is frozen in dvc.yaml, so DVC never runs it"
        if name in keep and not stage.cached <= stage.persistent:
            reason = "kept: its outputs have the recorded hash, but were not made here"
        if not reason:
            # DVC would leave these, and what git has would count as made here.
            for path in () if name in keep else stage.persistent - stage.cached:
                remove(project.folder / path)
            written |= stage.outs.keys()
            continue
        found[name] = reason
        for path, recorded in stage.outs.items():
            if not recorded or not contents.restore(path, recorded, project.folder):
                missing[path] = f"its input {path} is not there, because {name} cannot run"
    return found


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _find_obstacle(
    project: Project, stage: Stage, written: Set[str], network: bool, missing: dict[str, str]
) -> str:
    """Return why one stage cannot run, or ""."""
    for path in stage.deps:
        place = project.folder / path
        if "://" in path:
            if not network:
                return f"its input {path} is on another machine; --network allows it"
        elif known := [each for each in missing if _overlap(each, path)]:
            return missing[known[0]]
        elif not place.exists() and not any(_overlap(each, path) for each in written):
            where = (
                "its absolute path is not on this machine" if place == Path(path) else "not in git"
            )
            return f"its input {path} is nowhere: {where}, and no stage writes it"
    if outside := [path for path in stage.outs if Path(path).is_absolute()]:
        return f"it writes {outside[0]}, outside the clone"
    folder = stage.folder if stage.folder.is_dir() else project.folder
    for program in find_programs("\n".join(stage.commands)):
        check = ["sh", "-c", 'command -v "$0"', program]
        here = os.environ | {"PATH": make_path()}
        if subprocess.run(check, cwd=folder, env=here, capture_output=True, check=False).returncode:
            return f"the program {program} is not installed"
    return ""


def _overlap(first: str, second: str) -> bool:
    """Return whether one of two paths is or contains the other one."""
    return f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/")


def find_programs(command: str) -> list[str]:
    """Return the programs that a shell command starts, as far as it is simple."""
    text = command.replace("\\\n", " ").replace("\n", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, first = [], True
    try:
        for word in lexer:
            if first and re.fullmatch(r"[\w./+-]+", word) and word not in PREFIXES:
                found.append(word)
            first = word in OPERATORS or (first and (word in PREFIXES or "=" in word))
    except ValueError:  # quotes that only the shell understands
        return []
    return list(dict.fromkeys(found))
