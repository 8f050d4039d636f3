"""Measure in a copy of the project, and append the result to RECORD.

    python -m benchmarks.timers command NAME COMMAND [ARGUMENT ...]
    python -m benchmarks.timers training
    python -m benchmarks.timers steps COUNT

- command: run a command, and record its seconds and its peak memory.
- training: run the stage train, and record the seconds of the training itself: from loaded data and
  libraries to the trained model. An image counts each time that an epoch of a member sees it.
- steps: train on COUNT workers on this machine, and record the cost of a step, and of an exchange
  of larger gradients. The first steps do not count, because TensorFlow traces them. Linux only.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

# No other imports here: a process starts with the peak memory of the one that started it.

RECORD = Path("../record.jsonl")  # beside the copy of the project; a JSON object a line
INTERVAL = 0.02  # seconds between two measurements of the memory
STEPS = range(20, 120)  # of the training
EXCHANGES = range(2, 12)
WEIGHTS = (100_000, 1_000_000, 10_000_000)
BYTES_ACKED = 120  # where tcp_info in linux/tcp.h has the bytes that the other side received


def append_record(name: str, **values: Any) -> None:
    """Append one measurement to RECORD."""
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **values}) + "\n")


def watch_memory(pid: int, ended: threading.Event, peaks: list[float]) -> None:
    """Append the anonymous memory of a process in MiB to `peaks`, again and again, until `ended`.

    Anonymous memory is what the process has allocated, without the files that it maps into memory,
    which the system can drop at any time. Only Linux reports it.
    """
    while not ended.wait(INTERVAL):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            peaks += [int(size) / 1024 for size in re.findall(r"RssAnon:\s+(\d+) kB", status)]


def time_command(name: str, *command: str) -> None:
    """Run a command, record seconds and MiB, and exit with its exit code."""
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    ended, peaks = threading.Event(), [0.0]
    watch = threading.Thread(target=watch_memory, args=(pid, ended, peaks))
    watch.start()
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    ended.set()
    watch.join()
    # The unit is the kibibyte on Linux, and the byte on macOS.
    mebibytes = usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    append_record(name, seconds=seconds, mebibytes=mebibytes, anonymous=max(peaks))
    sys.exit(os.waitstatus_to_exitcode(status))


def time_training() -> None:
    """Run the stage with a `train_members` that also measures its time."""
    from stages import train as stage
    from stages.core.errors import run

    train_members = stage.train_members

    def time_members(*arguments: Any) -> Any:
        _, _, training, _, _, state, _ = arguments
        start = time.perf_counter()
        model = train_members(*arguments)
        seconds = time.perf_counter() - start
        append_record(
            "training", seconds=seconds, images=len(training[0]) * sum(map(len, state.rows))
        )
        return model

    stage.train_members = time_members  # type: ignore[assignment]
    run(stage.main)


def count_sent() -> int:
    """Return the bytes that this process has sent over its open connections."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_socket():
            # Sockets of other kinds have no such information.
            with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
    return total


def time_exchange(transport: Any, weights: int) -> float:
    """Return the median seconds of an exchange of so many weights between the workers."""
    seconds = []
    for _ in range(EXCHANGES.stop):
        start = time.perf_counter()
        transport.gather_bytes(bytes(4 * weights))
        seconds.append(time.perf_counter() - start)
    return median(seconds[EXCHANGES.start :])


def time_steps(count: str = "") -> None:
    """Run the stage with a callback that measures instead of those that show the progress.

    With a `count`, also starts the other workers, which run this function without one.
    """
    import stages.train as stage  # first: it sets variables that TensorFlow reads

    # isort: split
    import keras

    from stages.core.errors import run
    from stages.model import training
    from tools.worker import find_free_addresses, make_tf_config

    class Measure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch + 1 == STEPS.start:
                self.start, self.sent = time.perf_counter(), count_sent()
            if batch + 1 == STEPS.stop:
                self.seconds = (time.perf_counter() - self.start) / len(STEPS)
                self.bytes = (count_sent() - self.sent) / len(STEPS)
                self.model.stop_training = True

        def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
            transport: Any = getattr(self.model, "transport", None)  # of several workers
            exchanges = {each: time_exchange(transport, each) for each in WEIGHTS if transport}
            if count:
                cost: dict[str, Any] = {"seconds": self.seconds, "bytes": self.bytes}
                cost["weights"] = self.model.count_params()
                append_record("steps", **cost, exchanges=exchanges)

    training.make_progress = lambda *_: [Measure()]  # type: ignore[attr-defined]
    with ExitStack() as stack:
        addresses = find_free_addresses(int(count)) if count else []
        for index in range(1, len(addresses)):
            others = os.environ | make_tf_config(addresses, index)
            command = [sys.executable, "-m", "benchmarks.timers", "steps"]
            other = subprocess.Popen(command, env=others, stdout=subprocess.DEVNULL)
            stack.enter_context(other)
            stack.callback(other.kill)
        if count:
            os.environ.update(make_tf_config(addresses, 0))
        run(stage.main)


TIMERS: dict[str, Callable[..., None]] = {
    "command": time_command,
    "training": time_training,
    "steps": time_steps,
}

if __name__ == "__main__":
    TIMERS[sys.argv[1]](*sys.argv[2:])
