"""Fit a network: steps, loss, metrics, callbacks and history."""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import pandas as pd

from stages.core.errors import StageError
from stages.core.prepared import Split
from stages.model import arithmetic
from stages.model.architectures import has_two_outputs
from stages.model.batches import (
    count_steps,
    make_training_batches,
    make_validation_batches,
    read_batch,
)
from stages.model.checkpoint import ResumeTraining, State
from stages.model.optimizer import RecordLearningRate, make_learning_rate
from stages.model.parallel import DataParallel
from stages.model.portable import find_averages
from stages.model.progress import make_progress
from stages.model.settings import EarlyStopping, TrainParameters, find_smallest_batch
from stages.model.trace import RecordTrace

METRICS = {
    "accuracy": keras.metrics.CategoricalAccuracy,
    "precision": keras.metrics.Precision,
    "recall": keras.metrics.Recall,
}


def plan_steps(network: DataParallel, images: int, parameters: TrainParameters) -> int:
    """Return the number of steps in an epoch over a training set of `images` images.

    Raises StageError if there are too few images for one step.
    """
    smallest = find_smallest_batch(parameters.replicas, bool(find_averages(network.network)))
    steps = count_steps(images, parameters.batch_size, smallest)
    if not steps:
        raise StageError(
            f"train.replicas is {parameters.replicas} and there are {images} training "
            f"images: a batch needs at least {smallest}; lower train.replicas"
        )
    return steps


def fit(
    network: DataParallel,
    training: Split,
    validation: Split,
    parameters: TrainParameters,
    steps: int,
    state: State,
    save: Callable[[State], object],
    name: str,
) -> None:
    """Fit a compiled network in place, from `state` on; an epoch has `steps` steps.

    `name` is the name of a member of an ensemble, or "". Calls `save` with the new state after each
    epoch. Raises StageError if the loss is NaN or infinite.
    """
    if len(state.rows) == len(state.finished):
        state.rows.append([])
        state.chosen.append(0)
    first, epochs = len(state.rows[-1]), parameters.epochs
    if first:
        prefix = f"{name}: " if name else ""
        print(f"{prefix}resuming after epoch {first} of {epochs}", flush=True)
    keras.utils.set_random_seed(parameters.seed)
    two_outputs = has_two_outputs(network.network)
    stopping = make_early_stopping(parameters.early_stopping)
    plateau = make_plateau(parameters)
    network.fit(
        make_training_batches(training, parameters, steps, two_outputs, first),
        validation_data=make_validation_batches(validation, parameters.batch_size, two_outputs),
        initial_epoch=first,
        epochs=first if state.stopped else epochs,
        steps_per_epoch=steps,
        callbacks=[
            RecordLearningRate(make_learning_rate(parameters, steps)),
            keras.callbacks.TerminateOnNaN(),
            *plateau,
            *stopping,
            RecordTrace(state, steps, partial(read_batch, training, parameters, steps)),
            # After the callbacks that it saves.
            ResumeTraining(state, [*plateau, *stopping], save),
            *make_progress(name, epochs),
        ],
        shuffle=False,  # the batches are shuffled already
        verbose=0,
    )
    rows = state.rows[-1]
    if not all(np.isfinite(list(row.values())).all() for row in rows):
        raise StageError(
            f"the loss is NaN or infinite after {len(rows)} epochs: lower train.learning_rate, "
            f"now {parameters.learning_rate:g}, or use another train.optimizer"
        )
    if stopping:
        ended = "stopped early" if len(rows) < epochs else "ended"
        print(f"{ended} after {len(rows)} epochs; using the weights of epoch {state.chosen[-1]}")


def make_history(state: State) -> pd.DataFrame:
    """Return the history of a training, one row for each epoch, averaged over the members.

    Its columns are:

    - epoch, which counts from 1
    - loss and each metric, on the augmented training images
    - the same with the prefix val_, on the validation images after the epoch
    - learning_rate of the last step of the epoch
    - chosen: 1 for the epoch whose weights the model has in the end, else 0

    A branched network also has main_loss and auxiliary_loss.
    """
    tables = []
    for rows, chosen in zip(state.rows, state.chosen, strict=True):
        table = pd.DataFrame(rows)
        table.insert(0, "epoch", range(1, len(rows) + 1))
        table["chosen"] = (table["epoch"] == chosen).astype(int)
        tables.append(table)
    return pd.concat(tables).groupby("epoch").mean().reset_index().astype({"chosen": int})


def make_loss(parameters: TrainParameters) -> keras.losses.Loss:
    """Return the loss that `parameters` name.

    Label smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016.
    """
    if parameters.loss == "mean_squared_error":
        return arithmetic.MeanSquaredError()
    return arithmetic.CategoricalCrossentropy(parameters.label_smoothing)


def make_metrics(parameters: TrainParameters) -> list[keras.metrics.Metric]:
    """Return the metrics that `parameters` name."""
    return [METRICS[name](name=name) for name in parameters.metrics]


def make_plateau(parameters: TrainParameters) -> list[keras.callbacks.ReduceLROnPlateau]:
    """Return a list with Keras's plateau schedule, or an empty list for another schedule."""
    schedule = parameters.schedule
    if schedule.name != "plateau":
        return []
    return [
        keras.callbacks.ReduceLROnPlateau(
            factor=schedule.factor, patience=schedule.every, min_delta=0.0
        )
    ]


def make_early_stopping(parameters: EarlyStopping) -> list[keras.callbacks.EarlyStopping]:
    """Return a list with Keras's early stopping, or an empty list if it is off."""
    if not parameters.enabled:
        return []
    return [
        keras.callbacks.EarlyStopping(
            patience=parameters.patience,
            min_delta=parameters.min_delta,
            restore_best_weights=True,
        )
    ]
