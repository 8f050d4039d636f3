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
ALLOW = "git config --global --add safe.directory"
# What git says, and the line with the fix. A clone of a folder asks for its .git too.
EXPLANATIONS = {
    r"dubious ownership in repository at '(.*?)(/\.git)?'": (
        rf"git refuses \1, which belongs to another user; allow it: {ALLOW} '\1' && "
        rf"{ALLOW} '\1/.git'"
    ),
    "not a git repository": NOT_A_REPOSITORY,
    "ambiguous argument 'HEAD'|Needed a single revision|bad revision": (
        "this repository has no commit yet: git add --all && git commit -m start"
    ),
    "promisor|partial clone|unable to read sha1|missing blob": (
        f"this is a partial clone, which lacks files: {COMPLETE}"
    ),
}
# In a clone, the user's hooks would run, and Git LFS would ask a server. dvc_verify.contents takes
# its files from the workspace.
PLAIN = ("core.hooksPath=/dev/null", "filter.lfs.smudge=", "filter.lfs.process=",
         "filter.lfs.required=false")  # fmt: skip


def run_git(*arguments: str, cwd: Path = Path()) -> bytes:
    """Return what `git` with these arguments prints. Raises VerifyError, with the fix if known."""
    environment = os.environ | {"LC_ALL": "C"}  # EXPLANATIONS are of English messages
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise VerifyError("git is not on the PATH; install it, and try again") from None
    if not done.returncode:
        return done.stdout
    message = " ".join(done.stderr.decode(errors="replace").split())
    for pattern, explanation in EXPLANATIONS.items():
        if found := re.search(pattern, message):
            raise VerifyError(found.expand(explanation))
    raise VerifyError(f"git: {message}")


def ask_git(*arguments: str, cwd: Path = Path()) -> str:
    """Return as text what `git` with these arguments prints, or nothing if it fails."""
    try:
        return run_git(*arguments, cwd=cwd).decode(errors="replace").strip()
    except VerifyError:
        return ""


def forget_hook() -> None:
    """Remove git's variables for hooks, with which git in a clone would use the user's index."""
    for name in (*ask_git("rev-parse", "--local-env-vars").split(), "GIT_QUARANTINE_PATH"):
        os.environ.pop(name, None)


def is_in_git() -> bool:
    """Return whether this folder or one above it is a git repository."""
    return any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents))


def check_repository() -> None:
    """Raise VerifyError if this folder is not in a git repository, unless DVC works without one."""
    files = [path for path in Path(".dvc").glob("config*") if path.is_file()]
    no_scm = re.compile(r"^\s*no_scm *= *true", re.MULTILINE | re.IGNORECASE)
    if not is_in_git() and not any(no_scm.search(path.read_text("utf-8")) for path in files):
        raise VerifyError(
            f"{NOT_A_REPOSITORY}; or run the stages without git: "
            "dvc config --local core.no_scm true"
        )


def is_shallow() -> bool:
    """Return whether this clone lacks older commits."""
    return ask_git("rev-parse", "--is-shallow-repository") == "true"


def is_partial() -> bool:
    """Return whether this clone lacks files. git fetches them then, and DVC can wait forever."""
    promised = "true" in ask_git("config", "--get-regexp", r"^remote\..*\.promisor$")
    return promised and "\n?" in ask_git("rev-list", "--objects", "--all", "--missing=print")


def find_last_commit(project: Path = Path()) -> str:
    """Return the hash of the last commit. Raises VerifyError if there is none."""
    return run_git("rev-parse", "--verify", "HEAD", cwd=project).decode().strip()


def find_project() -> Path:
    """Return the DVC project that holds the current folder: its own, or the nearest above it."""
    top = Path(run_git("rev-parse", "--show-toplevel").decode().rstrip("\n"))
    folders = [f for f in (Path.cwd(), *Path.cwd().parents) if f.is_relative_to(top)]
    found = (f for name in (".dvc", "dvc.yaml") for f in folders if (f / name).exists())
    return next(found, Path.cwd())


def clone_commit(commit: str, target: Path, project: Path = Path()) -> Path:
    """Clone a project's repository to the folder `target`; return the project's folder in there.

    The clone reads the repository's objects. Raises VerifyError if the commit lacks the project.
    """
    shown = run_git("rev-parse", "--show-toplevel", "--show-prefix", cwd=project).decode()
    top, prefix = shown.split("\n")[:2]
    run_git("clone", "--quiet", "--shared", "--no-checkout", "--template=", top, str(target))
    options = [part for setting in PLAIN for part in ("-c", setting)]
    run_git(*options, "checkout", "--quiet", commit, cwd=target)
    if not ask_git("ls-files", "--", f"{prefix}dvc.yaml", f"{prefix}*/dvc.yaml", cwd=target):
        raise VerifyError(
            f"commit {commit[:12]} of {top} does not have {prefix}dvc.yaml; add the project to the "
            "repository and commit it: git add . && git commit"
        )
    return target / prefix
