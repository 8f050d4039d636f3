"""Run every stage with the disk full at each of its writes; print each output's error message.

Run `unshare --mount --map-root-user python -m tests.helpers.fill_disk` in a small clone of the
project. `data` becomes a small file system that only this process sees. Prints JSON:
{output: message}.
"""

import importlib
import json
import os
import subprocess
from pathlib import Path

from stages.core.errors import StageError  # before Keras, which reads the variables that it sets
from tests.helpers.checks import contents
from tests.helpers.project import STAGES, graph, outputs

import keras  # isort: skip

DATA = Path("data")
PAGE = os.sysconf("SC_PAGESIZE")


def leave_free(room: int) -> Path:
    """Fill the disk except for `room` bytes, whole pages; return the file that fills it."""
    ballast = DATA / "ballast"
    free = os.statvfs(DATA).f_bavail * os.statvfs(DATA).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - room)
    return ballast


def main() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(DATA)], check=True)
    messages = {}
    for name in STAGES:
        stage = importlib.import_module(f"stages.{name}").main
        stage()
        complete = contents(DATA)
        written = [Path(output).relative_to(DATA) for output in outputs(graph()[name])]
        written.sort(key=lambda path: (DATA / path).stat().st_mtime_ns)
        for number, path in enumerate(written):
            for output in written:
                (DATA / output).unlink(missing_ok=True)
            # There is room for the outputs up to this one, except for its last page.
            pages = sum(-(-len(complete[str(output)]) // PAGE) for output in written[: number + 1])
            ballast = leave_free((pages - 1) * PAGE)
            keras.utils.clear_session()  # so that it numbers layers from 1, as in a new process
            try:
                stage()
            except StageError as error:
                messages[str(DATA / path)] = str(error)
            ballast.unlink()
            # The outputs written before are complete, and there is no other file.
            missing = {str(output) for output in written[number:]}
            assert contents(DATA) == {
                output: content for output, content in complete.items() if output not in missing
            }, path
        for output in written:
            (DATA / output).write_bytes(complete[str(output)])
    print(json.dumps(messages))


if __name__ == "__main__":
    main()
