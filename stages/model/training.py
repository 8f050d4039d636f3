"""Fit a network: the order of the digits, the optimizer, the learning rate, when to stop."""

import re
import sys

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from stages.core.errors import StageError
from stages.model.architectures import AUXILIARY, MAIN, has_two_outputs
from stages.model.augmentation import augment
from stages.model.optimizer import RecordLearningRate, make_optimizer
from stages.model.parallel import DataParallel
from stages.model.settings import EarlyStopping, TrainParameters

Floats = npt.NDArray[np.float32]
# Images (n, height, width) and labels (n, classes), as arrays or as TensorFlow's copies of them.
Split = tuple[Floats | tf.Tensor, Floats | tf.Tensor]

METRICS = {
    "accuracy": keras.metrics.CategoricalAccuracy,
    "precision": keras.metrics.Precision,
    "recall": keras.metrics.Recall,
}


def fit(
    model: DataParallel, train: Split, validation: Split, parameters: TrainParameters
) -> pd.DataFrame:
    """Train `model`, a portable twin, in place and return its history, one row an epoch.

    Columns: epoch (from 1); learning_rate, of the epoch's last step; loss and each metric on the
    training digits as they were seen, and with the prefix val_ on the validation digits after the
    epoch; chosen, 1 for the epoch whose weights the model holds in the end.

    A branched network's has main_loss and auxiliary_loss too.

    Raises StageError where the training digits are fewer than threads, and where the loss stops
    being a number.
    """
    keras.utils.set_random_seed(parameters.seed)
    two = has_two_outputs(model.network)
    training = make_batches(train, parameters, two)
    steps = int(training.cardinality())
    if not steps:
        raise StageError(
            f"train.replicas is {parameters.replicas} and there are {len(train[0])} training digits: "
            "each thread needs one at least; lower train.replicas"
        )
    compile_model(model, parameters, steps)
    # Now, since TensorFlow traces a step that makes variables twice, which takes seconds.
    model.optimizer.build(model.trainable_variables)
    stopping = make_early_stopping(parameters.early_stopping)
    history = model.fit(
        training,
        validation_data=make_batches(validation, parameters, two, training=False),
        epochs=parameters.epochs,
        callbacks=[*make_callbacks(parameters), *stopping],
        shuffle=False,  # batches() does
        verbose="auto" if sys.stdout.isatty() else 2,
    ).history
    epochs = len(history.get("val_loss", []))
    if not epochs or not np.isfinite(history["loss"] + history["val_loss"]).all():
        raise StageError(
            f"the loss is no longer a number after {epochs} epochs: lower train.learning_rate, "
            f"now {parameters.learning_rate:g}, or use another train.optimizer"
        )
    # Of the two outputs the main one is judged: its metrics go by their plain names.
    table = pd.DataFrame({re.sub(f"{MAIN}_(?!loss)", "", name): history[name] for name in history})
    table.insert(0, "epoch", range(1, epochs + 1))
    chosen = stopping[0].best_epoch + 1 if stopping else epochs
    table["chosen"] = (table["epoch"] == chosen).astype(int)
    return table


def make_batches(
    split: Split, parameters: TrainParameters, two_outputs: bool, training: bool = True
) -> tf.data.Dataset:
    """Return batches in the order of `split`, or for training in one drawn anew each epoch.

    What is shuffled is the indices; each batch is gathered from the arrays in memory and its images
    moved as `parameters.augmentation` says. Two outputs each get the labels, by name. Digits left
    over for the last batch that are fewer than threads sit that epoch out.
    """
    images, labels = (tf.constant(array) for array in split)
    count, seed, augmentation = len(split[0]), parameters.seed, parameters.augmentation

    def gather(
        batch: tf.Tensor, draw: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | dict[str, tf.Tensor]]:
        pictures, targets = tf.gather(images, batch), tf.gather(labels, batch)
        if draw is not None:
            pictures = augment(pictures, draw, augmentation)
        return pictures, dict.fromkeys((MAIN, AUXILIARY), targets) if two_outputs else targets

    indices = tf.data.Dataset.range(count)
    if training:
        rest = count % parameters.batch_size
        indices = indices.shuffle(count, seed=seed)
        indices = indices.take(count - rest if rest < parameters.replicas else count)
    dataset = indices.batch(parameters.batch_size)
    if training and any(augmentation.model_dump().values()):
        # Two numbers for each batch, other ones each epoch, decide how its pictures are moved.
        draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
        dataset = tf.data.Dataset.zip(dataset, draws)
    # Plain operations: looking for Python's loops in them, to convert, would take time.
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(gather))
    # What TensorFlow tunes is fixed above, and its tuner can hold up an epoch's end for seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def compile_model(model: DataParallel, parameters: TrainParameters, steps: int) -> None:
    """Set the loss, the optimizer and the metrics of `model`; `steps` is those of one epoch."""
    metrics = [METRICS[name](name=name) for name in parameters.metrics]
    two = has_two_outputs(model.network)
    model.compile(
        optimizer=make_optimizer(parameters, steps),
        loss=dict.fromkeys((MAIN, AUXILIARY), make_loss(parameters))
        if two
        else make_loss(parameters),
        loss_weights={MAIN: 1.0, AUXILIARY: parameters.auxiliary_weight} if two else None,
        metrics={MAIN: metrics} if two else metrics,
    )


def make_loss(parameters: TrainParameters) -> keras.losses.Loss:
    """Return Keras's loss of that name.

    Smoothed labels: Szegedy et al., "Rethinking the Inception architecture", 2016.
    """
    if parameters.label_smoothing:
        return keras.losses.CategoricalCrossentropy(label_smoothing=parameters.label_smoothing)
    return keras.losses.get(parameters.loss)


def make_callbacks(parameters: TrainParameters) -> list[keras.callbacks.Callback]:
    """Return what runs beside training: the rate's record, a stop at NaN, the plateau's rule."""
    watchers = [RecordLearningRate(), keras.callbacks.TerminateOnNaN()]
    if parameters.schedule.name == "plateau":
        watchers.append(
            keras.callbacks.ReduceLROnPlateau(
                factor=parameters.schedule.factor,
                patience=parameters.schedule.every,
                min_delta=0.0,
            )
        )
    return watchers


def make_early_stopping(parameters: EarlyStopping) -> list[keras.callbacks.EarlyStopping]:
    """Return Keras's rule that stops when the validation loss stalls, or nothing."""
    if not parameters.enabled:
        return []
    return [
        keras.callbacks.EarlyStopping(
            patience=parameters.patience,
            min_delta=parameters.min_delta,
            restore_best_weights=True,
        )
    ]
