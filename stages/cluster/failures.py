"""End a worker with one line that names the worker whose failure ended the training."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stages.cluster.addresses import split_address
from stages.core.errors import StageError

CONNECTING = 60  # seconds that TensorFlow may take to connect workers that have all started


@contextmanager
def end_process(addresses: list[str], index: int) -> Iterator[None]:
    """End this process after the block: with status 0, or with one line and status 1.

    The interpreter is not shut down in the usual way, because TensorFlow's server crashes then.
    """
    import tensorflow as tf

    try:
        yield
    except (StageError, OSError, KeyboardInterrupt, tf.errors.OpError) as error:
        message = str(error) or "interrupted"
        if isinstance(error, tf.errors.OpError):
            message = name_failure(message, addresses, index)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def name_failure(message: str, addresses: list[str], index: int) -> str:
    """Return a line that names the worker whose end caused an error of TensorFlow."""
    # Errors are passed on from worker to worker; the last one named is where they began.
    named = [int(number) for number in re.findall(r"replica:0/task:(\d+)", message)]
    gone = [number for number in named if number != index][-1:] or find_silent(addresses, index)
    return f"{name_workers(addresses, gone)} no longer answers" if gone else message


@contextmanager
def watch_connecting(addresses: list[str], index: int) -> Iterator[None]:
    """Kill this process, with one line, if the block takes longer than `CONNECTING` seconds.

    TensorFlow holds Python's global lock while it connects, so another process watches.
    """
    module = [sys.executable, "-m", "stages.cluster.failures"]
    command = [*module, str(CONNECTING), str(index), *addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield
        # Leaving the block closes the pipe, which tells the other process to end.


def watch() -> None:
    """Wait until the pipe from the parent process closes, or kill the parent after some time."""
    seconds, index, *addresses = sys.argv[1:]
    if select.select([sys.stdin], [], [], float(seconds))[0]:
        return
    names = name_workers(addresses, find_silent(addresses, int(index))) or "another worker"
    print(f"error: {names} no longer answers", file=sys.stderr, flush=True)
    os.kill(os.getppid(), signal.SIGKILL)


def find_silent(addresses: list[str], index: int) -> list[int]:
    """Return the workers, other than `index`, whose TensorFlow does not answer or is stopped."""
    return [
        worker
        for worker, address in enumerate(addresses)
        if worker != index and not does_answer(address)
    ]


def does_answer(address: str) -> bool:
    """Return whether TensorFlow sends the few bytes with which it greets everyone who connects."""
    try:
        with socket.create_connection(split_address(address), timeout=5) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


def name_workers(addresses: list[str], workers: Iterable[int]) -> str:
    """Return the indices and addresses of some workers, for a message."""
    return ", ".join(f"worker {worker} ({addresses[worker]})" for worker in sorted(workers))


if __name__ == "__main__":
    watch()
