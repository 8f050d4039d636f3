"""Record hashes of the weights and batches of a training, to find where two trainings depart."""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import pandas as pd

from stages.core.prepared import Split
from stages.model.checkpoint import State

STEPS = (1, 2, 4, 8, 16)  # recorded besides the end of each epoch


class RecordTrace(keras.callbacks.Callback):
    """Add rows to the trace of a training, before it begins and after some of its steps."""

    def __init__(self, state: State, steps: int, read_batch: Callable[[int], Split]) -> None:
        """Add rows to `state`. An epoch has `steps` steps; `read_batch` returns their batches."""
        super().__init__()
        self.state, self.steps, self.read_batch = state, steps, read_batch
        self.step = steps * len(state.rows[-1])

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002  # Keras's signature
        """Record the initial weights."""
        if not self.step:
            self.record_weights()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Record the batch of a step, and the weights after it."""
        self.step += 1
        if self.step in STEPS or self.step % self.steps == 0:
            self.add("batch", self.read_batch(self.step - 1))
            self.record_weights()

    def record_weights(self) -> None:
        """Record the weights of each layer."""
        for layer in self.model.network.layers:
            if layer.weights:
                self.add(layer.name, layer.get_weights())

    def add(self, layer: str, arrays: Iterable[Any]) -> None:
        """Add the hash of some arrays."""
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.asarray(array).tobytes())
        member, epoch = len(self.state.rows), math.ceil(self.step / self.steps)
        self.state.trace.append([member, epoch, self.step, layer, digest.hexdigest()[:16]])


def make_trace(state: State) -> pd.DataFrame:
    """Return the trace of a training, with one row for each hash, in the order of time.

    The columns are member, epoch and step, which all count from 1, layer (or "batch"), and hash:
    the start of the SHA-256 of the weights after the step, or of the images and labels that it
    used. The step 0 has the initial weights.
    """
    return pd.DataFrame(state.trace, columns=["member", "epoch", "step", "layer", "hash"])
