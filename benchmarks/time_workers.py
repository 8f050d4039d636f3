"""Train on the workers in TF_CONFIG, and append the cost of a step to a file of JSON lines.

The first steps are not measured, because TensorFlow traces the step in them. Several workers then
exchange gradients of larger networks. Only worker 0 writes. Linux only.

    python -m benchmarks.time_workers RECORD
"""

import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.time_command import append_record
from stages import train as stage
from stages.core.errors import run

STEPS = range(20, 120)  # of the training
EXCHANGES = range(2, 12)
WEIGHTS = (100_000, 1_000_000, 10_000_000)
BYTES_ACKED = 120  # where tcp_info in linux/tcp.h has the bytes that the other side received


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


def main() -> None:
    """Replace the progress callbacks by one that measures, and run the stage."""
    # Not at the top, because TensorFlow takes seconds to load.
    import keras
    import tensorflow as tf

    from stages.model import training

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
            exchanges = {}
            for count in WEIGHTS if transport else ():
                seconds = []
                for _ in range(EXCHANGES.stop):
                    start = time.perf_counter()
                    transport.gather(tf.zeros(count))
                    seconds.append(time.perf_counter() - start)
                exchanges[str(count)] = median(seconds[EXCHANGES.start :])
            if not transport or transport.index == 0:
                append_record(
                    Path(sys.argv[1]),
                    "steps",
                    seconds=self.seconds,
                    bytes=self.bytes,
                    weights=self.model.count_params(),
                    exchanges=exchanges,
                )

    training.make_progress = lambda *_: [Measure()]  # type: ignore[attr-defined]
    stage.main()


if __name__ == "__main__":
    run(main)
