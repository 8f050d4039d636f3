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
from tests.helpers.checks import read_contents
from tests.helpers.project import STAGES, list_outputs, read_graph

import keras  # isort: skip

DATA = Path("data")
PAGE = os.sysconf("SC_PAGESIZE")


def leave_free(room: int) -> Path:
    """Fill the disk except for `room` bytes (whole pages), and return the file that fills it."""
    ballast = DATA / "ballast"
    free = os.statvfs(DATA).f_bavail * os.statvfs(DATA).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - room)
    return ballast


def count_pages(path: Path) -> int:
    return -(-path.stat().st_size // PAGE)


def fill_during_training() -> dict[str, str]:
    """Return the messages of `train`, which writes a checkpoint and its history in each epoch.

    The parameters have one epoch, so that the space for each write can be computed.
    """
    from stages import train
    from stages.core.paths import CHECKPOINT, HISTORY, MODEL
    from stages.model import checkpoint

    delete, messages = checkpoint.delete, {}
    checkpoint.delete = lambda: None  # keep the checkpoint, to see its size
    train.main()
    checkpoint.delete = delete
    complete = read_contents(DATA)
    saved, history, model = map(count_pages, (CHECKPOINT, HISTORY, MODEL))
    for path, room in (
        (CHECKPOINT, saved - 1),
        (HISTORY, saved),
        (MODEL, saved + history + model - 1),
        (HISTORY, saved + history + model),
    ):
        for output in (CHECKPOINT, HISTORY, MODEL):
            output.unlink(missing_ok=True)
        ballast = leave_free(room * PAGE)
        keras.utils.clear_session()
        try:
            train.main()
        except StageError as error:
            messages[str(path)] = str(error)
        ballast.unlink()
        assert read_contents(DATA).items() <= complete.items(), (
            path
        )  # each existing file is complete
        assert MODEL.exists() == (room == saved + history + model)
    delete()
    keras.utils.clear_session()
    train.main()
    return messages


def main() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(DATA)], check=True)
    messages = {}
    for name in STAGES:
        if name == "train":
            messages |= fill_during_training()
            continue
        stage = importlib.import_module(f"stages.{name}").main
        stage()
        complete = read_contents(DATA)
        written = [Path(output).relative_to(DATA) for output in list_outputs(read_graph()[name])]
        written.sort(key=lambda path: (DATA / path).stat().st_mtime_ns)
        for number, path in enumerate(written):
            for output in written:
                (DATA / output).unlink(missing_ok=True)
            # Leave space for the outputs up to this one, except for its last page.
            pages = sum(-(-len(complete[str(output)]) // PAGE) for output in written[: number + 1])
            ballast = leave_free((pages - 1) * PAGE)
            keras.utils.clear_session()  # Keras numbers layers from 1, as in a new process
            try:
                stage()
            except StageError as error:
                messages[str(DATA / path)] = str(error)
            ballast.unlink()
            # The outputs written before are complete, and there is no other file.
            missing = {str(output) for output in written[number:]}
            assert read_contents(DATA) == {
                output: content for output, content in complete.items() if output not in missing
            }, path
        for output in written:
            (DATA / output).write_bytes(complete[str(output)])
    print(json.dumps(messages))


if __name__ == "__main__":
    main()
