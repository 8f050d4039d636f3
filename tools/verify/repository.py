"""Use git in the project's repository. A repository that cannot be used gets one line with the fix.

`stages/core/environment.py` has removed the variables that git sets for
its hooks.
"""

import os
import re
import subprocess
from pathlib import Path

from stages.core.errors import StageError

NOT_A_REPOSITORY = (
    "this folder is not a git repository, as after 'Download ZIP' or a copy without .git; use "
    "`git clone`, or make it one: git init && git add --all && git commit -m start"
)
COMPLETE = "git fetch --refetch --no-filter"  # gets what a partial clone lacks

# The user's hooks, from core.hooksPath or a template, would run in a clone too.
NO_HOOKS = ("-c", "core.hooksPath=/dev/null")


def run_git(*arguments: str, cwd: Path = Path()) -> bytes:
    """Return what `git` with these arguments prints.

    Raises StageError with one line, which names the fix if it is known, if git fails.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C"},  # `explain` reads English
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise StageError("git is not on the PATH; install it, and try again") from None
    if done.returncode:
        raise StageError(explain(done.stderr.decode(errors="replace")))
    return done.stdout


def ask_git(*arguments: str, cwd: Path = Path()) -> str:
    """Return as text what `git` with these arguments prints, or nothing if it fails."""
    try:
        return run_git(*arguments, cwd=cwd).decode(errors="replace").strip()
    except StageError:
        return ""


def explain(message: str) -> str:
    """Return one line that names the problem in git's error message, and the fix."""
    if owned := re.search(r"dubious ownership in repository at '(.*)'", message):
        folder = owned[1].removesuffix("/.git")
        # git asks for the second one when it clones the folder.
        allow = [
            f"git config --global --add safe.directory '{path}'"
            for path in (folder, f"{folder}/.git")
        ]
        return (
            f"git refuses {folder}, which belongs to another user; allow it: {' && '.join(allow)}"
        )
    if re.search(r"not a git repository", message):
        return NOT_A_REPOSITORY
    if re.search(r"ambiguous argument 'HEAD'|Needed a single revision|bad revision", message):
        return "this repository has no commit yet: git add --all && git commit -m start"
    if re.search(r"promisor|partial clone|unable to read sha1|missing blob", message):
        return f"this is a partial clone, which lacks files: {COMPLETE}"
    return "git: " + " ".join(message.split())


def is_in_git() -> bool:
    """Return whether this folder or one above it is a git repository."""
    here = Path.cwd()
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def check_repository() -> None:
    """Raise StageError if this folder is not in a git repository, unless DVC works without one."""
    if is_in_git():
        return
    for name in ("config", "config.local"):
        path = Path(".dvc", name)
        if path.exists() and re.search(r"(?m)^\s*no_scm *= *true", path.read_text("utf-8"), re.I):
            return
    raise StageError(
        f"{NOT_A_REPOSITORY}; or run the stages without git: dvc config --local core.no_scm true"
    )


def is_shallow() -> bool:
    """Return whether this clone lacks older commits."""
    return ask_git("rev-parse", "--is-shallow-repository") == "true"


def is_partial() -> bool:
    """Return whether this clone lacks files of older commits.

    git fetches such a file when it needs it. DVC does not, and can wait for it forever.
    """
    if "true" not in ask_git("config", "--get-regexp", r"^remote\..*\.promisor$"):
        return False
    objects = ask_git("rev-list", "--objects", "--all", "--missing=print")
    return re.search(r"^\?", objects, re.MULTILINE) is not None


def find_last_commit() -> str:
    """Return the hash of the last commit. Raises StageError if there is none."""
    return run_git("rev-parse", "--verify", "HEAD").decode().strip()


def clone_commit(commit: str, target: Path) -> Path:
    """Clone the repository to the folder `target`, and return the project's folder in there.

    The project may be a subfolder of the repository. Raises StageError if the commit lacks it.
    """
    top = run_git("rev-parse", "--show-toplevel").decode().rstrip("\n")
    prefix = run_git("rev-parse", "--show-prefix").decode().rstrip("\n")
    run_git("clone", "--quiet", "--no-checkout", "--template=", top, str(target))
    run_git(*NO_HOOKS, "checkout", "--quiet", commit, cwd=target)
    project = target / prefix
    if not (project / "dvc.yaml").exists():
        raise StageError(
            f"commit {commit[:12]} of {top} does not have {prefix}dvc.yaml; add the project to the "
            "repository and commit it: git add . && git commit"
        )
    return project
