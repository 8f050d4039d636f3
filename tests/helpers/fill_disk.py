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
from tests.helpers.project import STAGES, graph, outputs

import keras  # isort: skip

DATA = Path("data")
PAGE = os.sysconf("SC_PAGESIZE")


def fill(room: int) -> Path:
    """Leave `room` bytes, whole pages, free."""
    ballast = DATA / "ballast"
    free = os.statvfs(DATA).f_bavail * os.statvfs(DATA).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - room)
    return ballast


def content() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in DATA.rglob("*") if path.is_file()}


def main() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(DATA)], check=True)
    said = {}
    for name in STAGES:
        stage = importlib.import_module(f"stages.{name}").main
        stage()
        right = content()
        written = sorted(
            map(Path, outputs(graph()[name])), key=lambda path: path.stat().st_mtime_ns
        )
        for number, path in enumerate(written):
            for output in written:
                output.unlink(missing_ok=True)
            pages = sum(-(-len(right[output]) // PAGE) for output in written[: number + 1])
            ballast = fill((pages - 1) * PAGE)
            keras.utils.clear_session()  # it numbers layers, in a process of its own from 1 on
            try:
                stage()
            except StageError as error:
                said[str(path)] = str(error)
            ballast.unlink()
            # What was written before is complete, and nothing else is there.
            expected = [output for output in right if output not in written[number:]]
            assert content() == {output: right[output] for output in expected}, path
        for output in written:
            output.write_bytes(right[output])
    print(json.dumps(said))


if __name__ == "__main__":
    main()
