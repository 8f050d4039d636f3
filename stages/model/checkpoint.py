"""Save a training after each epoch, so that the next run can resume it and give the same bytes.

The checkpoint is the file data/checkpoint/checkpoint.npz. It records everything that the training
depends on. A run resumes from the checkpoint only if all of this is the same.
"""

import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from stages.core.files import Array, write_bytes
from stages.core.paths import CHECKPOINT
from stages.model.architectures import MAIN
from stages.model.origin import Origin, find_differences

Row = dict[str, float]  # the loss, metrics and learning rate of an epoch

# The attributes of Keras's EarlyStopping and ReduceLROnPlateau that change during training.
COUNTERS = ("best", "best_epoch", "cooldown_counter", "stopped_epoch", "wait")


@dataclass
class State:
    """A training between two epochs, or before the first."""

    rows: list[list[Row]] = field(default_factory=list)  # of each member that has been started
    chosen: list[int] = field(default_factory=list)  # the epoch whose weights each member ends with
    finished: list[list[Array]] = field(default_factory=list)  # the weights of each finished member
    trace: list[list[Any]] = field(default_factory=list)  # rows of trace.csv
    # The fields below describe the member that is being trained.
    weights: list[Array] = field(default_factory=list)
    optimizer: list[Array] = field(default_factory=list)
    best_weights: list[Array] = field(default_factory=list)  # kept by early stopping
    counters: list[Row] = field(default_factory=list)  # of early stopping and plateau
    stopped: bool = False  # early stopping has ended the training

    def finish_member(self, weights: list[Array]) -> None:
        """Keep the final weights of the trained member, and prepare for the next one."""
        self.finished.append(weights)
        self.weights, self.optimizer, self.best_weights = [], [], []
        self.stopped = False


class ResumeTraining(keras.callbacks.Callback):
    """Restore a training when it begins, and save it after each epoch."""

    def __init__(
        self,
        state: State,
        callbacks: list[keras.callbacks.Callback],
        save: Callable[[State], object],
    ) -> None:
        """Update `state` and pass it to `save`. `callbacks` are those whose counters are saved."""
        super().__init__()
        self.state, self.callbacks, self.save = state, callbacks, save

    def on_train_begin(self, logs: Row | None = None) -> None:  # noqa: ARG002  # Keras's signature
        """Restore what `on_epoch_end` saved."""
        if not self.state.weights:
            return
        self.model.network.set_weights(self.state.weights)
        for variable, value in zip(
            self.model.optimizer.variables, self.state.optimizer, strict=True
        ):
            variable.assign(value)
        for callback, counters in zip(self.callbacks, self.state.counters, strict=True):
            vars(callback).update(counters)
            if hasattr(callback, "best_weights"):
                callback.best_weights = self.state.best_weights

    def on_epoch_end(self, epoch: int, logs: Row) -> None:
        """Save the state, unless the loss or a metric is NaN or infinite."""
        # Only the main output has metrics, so their names need no prefix.
        row = {re.sub(f"{MAIN}_(?!loss)", "", name): float(value) for name, value in logs.items()}
        self.state.rows[-1].append(row)
        if not np.isfinite(list(row.values())).all():
            return
        self.state.weights = self.model.network.get_weights()
        self.state.optimizer = [variable.numpy() for variable in self.model.optimizer.variables]
        self.state.counters = [
            {name: value for name, value in vars(callback).items() if name in COUNTERS}
            for callback in self.callbacks
        ]
        self.state.chosen[-1] = epoch + 1
        for callback in self.callbacks:
            if hasattr(callback, "best_weights"):
                self.state.chosen[-1] = callback.best_epoch + 1
                self.state.best_weights = callback.best_weights
        self.state.stopped = self.model.stop_training
        self.save(self.state)


def pack(origin: Origin, state: State) -> bytes:
    """Return a checkpoint: an `.npz` file with all arrays, and with JSON that refers to them."""
    arrays: list[Array] = []

    def refer(array: Array) -> dict[str, str]:
        arrays.append(array)
        return {"array": f"arr_{len(arrays) - 1}"}  # the name that NumPy gives it

    text = json.dumps([origin, vars(state)], default=refer)
    buffer = io.BytesIO()
    np.savez(buffer, *arrays, json=np.frombuffer(text.encode(), np.uint8))
    return buffer.getvalue()


def unpack(content: bytes) -> tuple[Origin, State]:
    """Return the origin and the state in a checkpoint. A damaged one can raise any exception."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:

        def resolve(entry: dict[str, Any]) -> Any:
            return archive[entry["array"]] if entry.keys() == {"array"} else entry

        origin, fields = json.loads(archive["json"].tobytes(), object_hook=resolve)
    return origin, State(**fields)


def save(origin: Origin, state: State) -> None:
    """Write the checkpoint."""
    write_bytes(CHECKPOINT, pack(origin, state))


def load(origin: Origin) -> State:
    """Return the state in the checkpoint. Without a checkpoint of this origin, return a new state.

    If there is a checkpoint that cannot be used, prints the reason.
    """
    try:
        found, state = unpack(CHECKPOINT.read_bytes())
    except FileNotFoundError:
        return State()
    except Exception as error:  # NumPy, zipfile and json raise many types for a damaged file
        print(f"{CHECKPOINT} is damaged ({error}); starting over", flush=True)
        return State()
    if differences := find_differences(origin, found):
        print(f"{CHECKPOINT} is from a run with different {differences}; starting over", flush=True)
        return State()
    return state


def delete() -> None:
    """Delete the checkpoint, and its folder if that is empty and not a mounted volume."""
    CHECKPOINT.unlink(missing_ok=True)
    with suppress(OSError):
        CHECKPOINT.parent.rmdir()
