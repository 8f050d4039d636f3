"""Train networks: loss, metrics, callbacks, and the members of an ensemble."""

import gc
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from stages.core.errors import StageError
from stages.model.architectures import AUXILIARY, MAIN, build, has_two_outputs
from stages.model.batches import (
    Split,
    count_steps,
    make_training_batches,
    make_validation_batches,
)
from stages.model.calibration import calibrate
from stages.model.checkpoint import SaveState, State
from stages.model.ensemble import average_members, average_over_shifts
from stages.model.optimizer import RecordLearningRate, make_optimizer
from stages.model.parallel import DataParallel, Workers
from stages.model.portable import make_portable
from stages.model.progress import make_progress
from stages.model.settings import (
    EarlyStopping,
    ModelParameters,
    TrainParameters,
    find_smallest_batch,
)

METRICS = {
    "accuracy": keras.metrics.CategoricalAccuracy,
    "precision": keras.metrics.Precision,
    "recall": keras.metrics.Recall,
}


def train_members(
    model_parameters: ModelParameters,
    parameters: TrainParameters,
    train: Split,
    validation: Split,
    state: State | None = None,
    save: Callable[[State], object] = lambda _: None,
    workers: Workers | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Return the trained network and its history, whose columns `make_history` describes.

    Each member of an ensemble has its own seeds. The training resumes from `state`, and calls
    `save` with the new state after each epoch. If there are several `workers`, each of them
    computes a part of every step.
    """
    state = state or State()
    shape, classes, count = train[0].shape[1:], train[1].shape[1], model_parameters.members
    members = []
    for number in range(count):
        model = build(model_parameters.for_member(number), shape, classes)
        members.append(model)
        if number == 0:
            model.summary()
        if number < len(state.finished):
            model.set_weights(state.finished[number])
            continue
        portable = make_portable(model, parameters.replicas, workers)
        name = f"member {number + 1} of {count}" if count > 1 else ""
        fit(portable, train, validation, parameters.for_member(number), state, save, name)
        if parameters.label_smoothing:
            calibrate(portable, *validation, parameters.batch_size)
        model.set_weights(portable.get_weights())
        state.finish_member(model.get_weights())
        # The portable model and its optimizer refer to each other, so only gc frees them.
        del portable
        gc.collect()
    model = average_members(members)
    if model_parameters.test_time_augmentation:
        model = average_over_shifts(model)
    return model, make_history(state)


def fit(
    model: DataParallel,
    train: Split,
    validation: Split,
    parameters: TrainParameters,
    state: State | None = None,
    save: Callable[[State], object] = lambda _: None,
    name: str = "",
) -> pd.DataFrame:
    """Train `model` in place and return the history of all members so far.

    Raises StageError if there are too few training images for one step, or if the loss is NaN or
    infinite.
    """
    state = state or State()
    if len(state.rows) == len(state.finished):
        state.rows.append([])
        state.chosen.append(0)
    first, epochs = len(state.rows[-1]), parameters.epochs
    normalises = any(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in model.network._flatten_layers()
    )
    smallest = find_smallest_batch(parameters.replicas, normalises)
    steps = count_steps(len(train[0]), parameters.batch_size, smallest)
    if not steps:
        raise StageError(
            f"train.replicas is {parameters.replicas} and there are {len(train[0])} training "
            f"images: a batch needs at least {smallest}; lower train.replicas"
        )
    if first:
        prefix = f"{name}: " if name else ""
        print(f"{prefix}resuming after epoch {first} of {epochs}", flush=True)
    keras.utils.set_random_seed(parameters.seed)
    two = has_two_outputs(model.network)
    compile_model(model, parameters, steps)
    # Create the variables of the optimizer and the losses now, or TensorFlow traces the step twice.
    model.optimizer.build(model.trainable_variables)
    if two:
        labels = dict.fromkeys((MAIN, AUXILIARY), train[1][:1])
        model.compute_loss(y=labels, y_pred=labels)
    stopping = make_early_stopping(parameters.early_stopping)
    plateau = make_plateau(parameters)
    model.fit(
        make_training_batches(train, parameters, steps, two, first),
        validation_data=make_validation_batches(validation, parameters.batch_size, two),
        initial_epoch=first,
        epochs=first if state.stopped else epochs,
        steps_per_epoch=steps,
        callbacks=[
            RecordLearningRate(),
            keras.callbacks.TerminateOnNaN(),
            *plateau,
            *stopping,
            SaveState(state, [*plateau, *stopping], save),  # after the callbacks that it saves
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
    return make_history(state)


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


def compile_model(model: DataParallel, parameters: TrainParameters, steps: int) -> None:
    """Compile `model` with its loss, optimizer and metrics; an epoch has `steps` steps."""
    metrics = [METRICS[name](name=name) for name in parameters.metrics]
    loss, weights = make_loss(parameters), {MAIN: 1.0, AUXILIARY: parameters.auxiliary_weight}
    optimizer = make_optimizer(parameters, steps)
    if has_two_outputs(model.network):
        losses = dict.fromkeys(weights, loss)
        model.compile(optimizer, losses, loss_weights=weights, metrics={MAIN: metrics})
        model.share_loss = lambda labels, outputs: tf.add_n(
            [loss(labels[name], outputs[name]) * weight for name, weight in weights.items()]
        )
    else:
        model.compile(optimizer, loss, metrics=metrics)
        model.share_loss = loss


def make_loss(parameters: TrainParameters) -> keras.losses.Loss:
    """Return the loss that `parameters` name.

    Label smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016.
    """
    if parameters.loss == "mean_squared_error":
        return keras.losses.MeanSquaredError()
    return keras.losses.CategoricalCrossentropy(label_smoothing=parameters.label_smoothing)


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
