"""Reproduce the last commit of a DVC project in an empty place and compare it with its dvc.lock.

    dvc-verify          run the stages in a clone with an empty cache, and compare their outputs
    dvc-verify lock     check without running: does dvc.lock belong to the commit?
    dvc-verify record   write fingerprint.json: the machine that dvc.lock was recorded on

Exits with 0 if the outputs are identical or equivalent (--strict: identical), 1 if they are
different, 2 if they could not be checked.
"""

import argparse
import io
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from dvc_verify.check import Check
from dvc_verify.git import LOCAL_VARIABLES, ask_git, find_last_commit, find_project
from dvc_verify.lockfile import IDENTICAL
from dvc_verify.machine import collect_fingerprint, compare_machines, record_fingerprint
from dvc_verify.packages import find_changed_packages
from dvc_verify.report import annotate, clean, make_report, write_report
from dvc_verify.settings import Settings
from dvc_verify.stale import find_stale


class Output(io.TextIOWrapper):
    """Shows any text and raises no error, so that printing never changes the exit code."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        """Write to the file of `stream`, which closes it."""
        line, through = stream.line_buffering, stream.write_through
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", None, line, through)

    def write(self, text: str, /) -> int:
        """Write a text, unless the pipe is closed or the disk is full."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if it can be written."""
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Leave the file open."""
        self.flush()


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


def verify(check: Check) -> int:
    """Reproduce the commit, write the report, and return the exit code."""
    findings = check.judge()
    verdict = check.summarise(findings)
    if ask_git("status", "--porcelain", "--untracked-files=no", "--", ".", cwd=check.workspace):
        check.notes["the workspace has changes, which are not part of the commit"] = None
    if verdict == "different":
        for package, note in find_changed_packages().items():
            check.notes[f"the files of {package} are not those that were installed: {note}"] = None
    here = collect_fingerprint(check.settings.libraries or check.pins)
    more = {
        "commit": check.commit,
        "perturbed": check.options.perturb,
        "notes": list(check.notes),
        "environment": compare_machines(here, check.recorded, check.pins),
    }
    write_report(make_report(findings, verdict) | more, check.workspace)
    if verdict in ("not checked", "partly checked"):
        return 2
    strict = check.options.strict
    wrong = verdict != IDENTICAL or check.project.retired if strict else verdict == "different"
    return int(bool(wrong))


def check_lock(check: Check) -> int:
    """Print what in the commit differs from its dvc.lock, and return the exit code."""
    notes = {note: None for found in find_stale(check.project).values() for note in found}
    notes |= check.notes
    for stage in (*check.project.tracked, *check.project.stages.values()):
        for path, file in stage.outs.items() if check.options.outputs else ():
            if file and path in stage.cached and not check.contents.has(file.md5):
                notes[f"{path} is neither in DVC's cache nor in a remote: dvc push"] = None
    for note in notes:
        print(clean(note))
        annotate("error", note)
    if notes:
        remedy = f"run `{check.settings.record}` and commit the result"
        print(f"error: dvc.lock is out of date; {remedy}", file=sys.stderr)
        return 1
    print("dvc.lock belongs to this commit")
    return 0


def main() -> None:
    """Check the project in the current folder."""
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            setattr(sys, name, Output(stream))
    for name in LOCAL_VARIABLES:
        os.environ.pop(name, None)
    options = parse()
    try:
        workspace = find_project()
        if options.action == "record":
            record_fingerprint(workspace, Settings.read(workspace).libraries)
            return
        with tempfile.TemporaryDirectory(prefix="verify", ignore_cleanup_errors=True) as name:
            check = Check(workspace, find_last_commit(workspace), Path(name).resolve(), options)
            sys.exit(check_lock(check) if options.action == "lock" else verify(check))
    except OSError as error:
        print(f"error: {clean(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
