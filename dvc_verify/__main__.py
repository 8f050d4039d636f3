"""Reproduce the last commit of a DVC project in an empty place and compare it with its dvc.lock.

    dvc-verify          run the stages in a clone with an empty cache, and compare their outputs
    dvc-verify lock     check without running: does dvc.lock belong to the commit?
    dvc-verify record   write fingerprint.json: the machine that dvc.lock was recorded on

Exits with 0 if the outputs are identical or equivalent (--strict: identical), 1 if they are
different, 2 if they could not be checked.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from dvc_verify import VerifyError
from dvc_verify.contents import Contents
from dvc_verify.git import find_last_commit, find_project, forget_hook
from dvc_verify.lockfile import IDENTICAL
from dvc_verify.machine import read_fingerprint, record_fingerprint
from dvc_verify.project import clone_project, read_settings
from dvc_verify.report import annotate, clean, say, write_report
from dvc_verify.stale import find_stale


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "dvc-verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("action", nargs="?", choices=("run", "lock", "record"), default="run")
    add("--strict", action="store_true", help="fail unless all bytes are identical")
    add("--twice", action="store_true", help="run twice even if nothing differs")
    add("--perturb", action="store_true", help="change what must not matter, such as the clock")
    add("--network", action="store_true", help="let stages and remotes use the network")
    add("--time-limit", type=float, metavar="SECONDS", help="end a run after this time")
    add("--keep", action="append", default=[], metavar="STAGE", help="do not run it: take its "
        "outputs from the cache or the workspace, if they have the recorded hash")  # fmt: skip
    add("--command", default="", help="run this in the clone instead of the stages one by one")
    add("--outputs", action="store_true", help="lock: also check that a clone can get all outputs")
    return parser.parse_args()


def verify(workspace: Path, folder: Path, options: argparse.Namespace) -> int:
    """Reproduce the commit, write the report, and return the exit code."""
    from dvc_verify.check import Check  # imports NumPy

    check = Check(workspace, folder, options)
    report = check.report(check.verify())
    write_report(report, workspace)
    if report["verdict"] in ("not checked", "partly checked"):
        return 2
    strict = options.strict and (report["verdict"] != IDENTICAL or check.project.retired)
    return int(bool(strict or report["verdict"] == "different"))


def check_lock(workspace: Path, folder: Path, options: argparse.Namespace) -> int:
    """Print what in the commit differs from its dvc.lock, and return the exit code."""
    project = clone_project(find_last_commit(workspace), folder / "committed", workspace)
    notes = [note for found in find_stale(project).values() for note in found] + project.problems
    try:
        read_fingerprint(project.folder)
    except VerifyError as error:
        notes.append(str(error))
    if options.outputs:
        contents = Contents(workspace, options.network, folder / "contents")
        notes += [
            f"{out.path} is neither in DVC's cache nor in a remote: dvc push"
            for stage in (*project.tracked, *project.stages.values())
            for out in stage.outs
            if out.cached and out.md5 and not contents.has(out.md5)
        ]
    for note in dict.fromkeys(notes):
        say(clean(note))
        annotate("error", note)
    if notes:
        remedy = f"run `{read_settings(project.folder).record}` and commit the result"
        say(f"error: dvc.lock is out of date; {remedy}", sys.stderr)
        return 1
    say("dvc.lock belongs to this commit")
    return 0


def main() -> None:
    """Check the project in the current folder."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have characters that it lacks
            stream.reconfigure(errors="backslashreplace")
    forget_hook()
    options = parse()
    try:
        workspace = find_project()
        if options.action == "record":
            record_fingerprint(workspace, read_settings(workspace).libraries)
            return
        with tempfile.TemporaryDirectory(prefix="verify", ignore_cleanup_errors=True) as name:
            action = check_lock if options.action == "lock" else verify
            sys.exit(action(workspace, Path(name).resolve(), options))
    except OSError as error:
        say(f"error: {clean(str(error))}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        say("error: interrupted", sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
