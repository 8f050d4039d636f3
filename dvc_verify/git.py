"""Use git in a repository. One that cannot be used gets one line with the fix."""

import os
import re
import subprocess
from pathlib import Path

from dvc_verify import VerifyError

NOT_A_REPOSITORY = (
    "this folder is not a git repository, as after 'Download ZIP' or a copy without .git; use "
    "`git clone`, or make it one: git init && git add --all && git commit -m start"
)
COMPLETE = "git fetch --refetch --no-filter"  # gets what a partial clone lacks

# git sets these for its hooks (`git rev-parse --local-env-vars`). Under them, git in a clone would
# use the user's repository and index instead.
LOCAL_VARIABLES = [f"GIT_{name}" for name in (
    "ALTERNATE_OBJECT_DIRECTORIES", "COMMON_DIR", "CONFIG", "CONFIG_COUNT", "CONFIG_PARAMETERS",
    "DIR", "GRAFT_FILE", "IMPLICIT_WORK_TREE", "INDEX_FILE", "INTERNAL_SUPER_PREFIX",
    "NO_REPLACE_OBJECTS", "OBJECT_DIRECTORY", "PREFIX", "QUARANTINE_PATH", "REPLACE_REF_BASE",
    "SHALLOW_FILE", "WORK_TREE",
)]  # fmt: skip

# The user's hooks, from core.hooksPath or a template, would run in a clone too.
NO_HOOKS = ("-c", "core.hooksPath=/dev/null")
# Git LFS would ask a server. dvc_verify.contents takes the files from the workspace.
NO_FILTERS = (
    "-c",
    "filter.lfs.smudge=",
    "-c",
    "filter.lfs.process=",
    "-c",
    "filter.lfs.required=false",
)


def run_git(*arguments: str, cwd: Path = Path()) -> bytes:
    """Return what `git` with these arguments prints.

    Raises VerifyError with one line, which names the fix if it is known, if git fails.
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
        raise VerifyError("git is not on the PATH; install it, and try again") from None
    if done.returncode:
        raise VerifyError(explain(done.stderr.decode(errors="replace")))
    return done.stdout


def ask_git(*arguments: str, cwd: Path = Path()) -> str:
    """Return as text what `git` with these arguments prints, or nothing if it fails."""
    try:
        return run_git(*arguments, cwd=cwd).decode(errors="replace").strip()
    except VerifyError:
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
    """Raise VerifyError if this folder is not in a git repository, unless DVC works without one."""
    if is_in_git():
        return
    for name in ("config", "config.local"):
        path = Path(".dvc", name)
        if path.exists() and re.search(r"(?m)^\s*no_scm *= *true", path.read_text("utf-8"), re.I):
            return
    raise VerifyError(
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


def find_last_commit(project: Path = Path()) -> str:
    """Return the hash of the last commit. Raises VerifyError if there is none."""
    return run_git("rev-parse", "--verify", "HEAD", cwd=project).decode().strip()


def find_project() -> Path:
    """Return the DVC project that holds the current folder: its own, or the nearest above it.

    Raises VerifyError if this is not a git repository.
    """
    here = Path.cwd()
    top = Path(run_git("rev-parse", "--show-toplevel").decode().rstrip("\n"))
    folders = [each for each in (here, *here.parents) if each.is_relative_to(top)]
    for name in (".dvc", "dvc.yaml"):
        for folder in folders:
            if (folder / name).exists():
                return folder
    return here


def clone_commit(commit: str, target: Path, project: Path = Path()) -> Path:
    """Clone a project's repository to the folder `target`; return the project's folder in there.

    The project may be a subfolder of the repository. Raises VerifyError if the commit lacks it.
    """
    top = run_git("rev-parse", "--show-toplevel", cwd=project).decode().rstrip("\n")
    prefix = run_git("rev-parse", "--show-prefix", cwd=project).decode().rstrip("\n")
    run_git("clone", "--quiet", "--no-checkout", "--template=", top, str(target))
    run_git(*NO_HOOKS, *NO_FILTERS, "checkout", "--quiet", commit, cwd=target)
    listed = ask_git("ls-files", "--", f"{prefix}dvc.yaml", f"{prefix}*/dvc.yaml", cwd=target)
    if not listed:
        raise VerifyError(
            f"commit {commit[:12]} of {top} does not have {prefix}dvc.yaml; add the project to the "
            "repository and commit it: git add . && git commit"
        )
    return target / prefix
