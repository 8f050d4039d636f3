"""Show a training while it runs: a progress bar, a line for each epoch, and TensorBoard."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

Logs = dict[str, float]


def make_progress(member: str, epochs: int) -> list[keras.callbacks.Callback]:
    """Return the callbacks that show the training. `member` is empty if there is only one."""
    callbacks: list[keras.callbacks.Callback] = [ShowProgress(member, epochs)]
    folder = os.environ.get("TENSORBOARD_LOGDIR")
    if folder and importlib.util.find_spec("tensorboard") is None:
        print("TENSORBOARD_LOGDIR needs tensorboard: pip install tensorboard", flush=True)
    elif folder:
        callbacks.append(WriteTensorBoard(Path(folder, member.replace(" ", "_"))))
    return callbacks


class ShowProgress(keras.callbacks.Callback):
    """Print a line for each epoch; on a terminal, also show a progress bar meanwhile."""

    def __init__(self, member: str, epochs: int) -> None:
        """Show `member`, the name of an ensemble's member or "", and the number of `epochs`."""
        super().__init__()
        self.member, self.epochs = member, epochs
        self.bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:  # noqa: ARG002
        """Start the progress bar."""
        name = f"{self.member}, " if self.member else ""
        self.title, self.start = f"{name}epoch {epoch + 1} of {self.epochs}", time.monotonic()
        if sys.stdout.isatty():
            steps = self.params["steps"]
            self.bar = tqdm(
                total=steps, desc=self.title, unit=" batches", file=sys.stdout, leave=False
            )

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:  # noqa: ARG002
        """Update the progress bar."""
        if self.bar is not None:
            self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:  # noqa: ARG002  # Keras's signature
        """Print the loss, the metrics and the learning rate of the epoch."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        if self.bar is not None:
            self.bar.close()
        print(f"{self.title}: {time.monotonic() - self.start:.0f} s, {values}", flush=True)


class WriteTensorBoard(keras.callbacks.Callback):
    """Write the loss, the metrics and the learning rate of each epoch for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the values of one epoch. In TensorBoard, the first epoch has number 1."""
        with self.writer.as_default(epoch + 1):
            for name, value in logs.items():
                tf.summary.scalar(name, value)
        self.writer.flush()
