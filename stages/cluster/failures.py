"""End a worker with one line that names the worker whose failure ended the training."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from stages.cluster.addresses import split_address
from stages.cluster.port import TABLES, admit, find_sources, guard_port, list_own_connections
from stages.core.errors import StageError

CONNECTING = 60  # seconds that TensorFlow may take to connect workers that have all started
PAUSE = 0.05  # seconds between two looks at who connects


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
    gone = [number for number in named if number != index][-1:]
    return f"{name_workers(addresses, gone)} no longer answers" if gone else message


@contextmanager
def watch_connecting(addresses: list[str], index: int) -> Iterator[None]:
    """Let only the other workers connect in this block, and afterwards no one.

    Kill this process, with one line, if the block takes longer than `CONNECTING` seconds.
    TensorFlow holds Python's global lock while it connects, so another process does all this.
    """
    guard = guard_port(addresses[index])
    fds = [guard.fileno()] if guard else []
    module = [sys.executable, "-m", "stages.cluster.failures"]
    command = [*module, str(CONNECTING), str(index), ",".join(map(str, fds)), *addresses]
    project = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=project, stdin=subprocess.PIPE, start_new_session=True, pass_fds=fds
    ):
        yield
        # Leaving the block closes the pipe, which tells the other process to end.
    if guard:
        admit(guard, [])
        guard.detach()  # it stays open until this process ends


def watch() -> None:
    """Admit other workers until the pipe from the parent process closes, or kill the parent."""
    seconds, index, fd, *addresses = sys.argv[1:]
    deadline = time.monotonic() + float(seconds)
    guard = socket.socket(fileno=int(fd)) if fd else None
    silent: Future[list[int]] | None = None
    with ThreadPoolExecutor() as pool:
        while not (silent and silent.done()):
            if guard:
                admit(guard, find_sources(addresses, int(index)))
            if select.select([sys.stdin], [], [], PAUSE)[0]:
                return
            if not silent and time.monotonic() > deadline:
                silent = pool.submit(find_silent, addresses, int(index))
    names = name_workers(addresses, silent.result()) or "another worker"
    print(f"error: {names} no longer answers", file=sys.stderr, flush=True)
    os.kill(os.getppid(), signal.SIGKILL)


def wait_for_others(address: str) -> None:
    """Wait until no other worker is connected to this one, at most 10 seconds."""
    port, deadline = split_address(address)[1], time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(PAUSE if TABLES[0].exists() else 1)
        if all(source[1] != port for source, _ in list_own_connections()):
            break


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
