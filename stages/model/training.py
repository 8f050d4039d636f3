"""Train a network: data order, loss, metrics, callbacks, and the members of an ensemble."""

import gc
import re
import sys

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from stages.core.errors import StageError
from stages.core.files import Floats
from stages.model.architectures import AUXILIARY, MAIN, build, has_two_outputs
from stages.model.augmentation import augment
from stages.model.calibration import calibrate
from stages.model.ensemble import average_members, average_over_shifts
from stages.model.optimizer import RecordLearningRate, make_optimizer
from stages.model.parallel import DataParallel
from stages.model.portable import make_portable
from stages.model.settings import EarlyStopping, ModelParameters, TrainParameters

# Images (n, height, width) and labels (n, classes), as arrays or as TensorFlow's copies of them.
Split = tuple[Floats | tf.Tensor, Floats | tf.Tensor]

METRICS = {
    "accuracy": keras.metrics.CategoricalAccuracy,
    "precision": keras.metrics.Precision,
    "recall": keras.metrics.Recall,
}


def train_members(
    model_parameters: ModelParameters, parameters: TrainParameters, train: Split, validation: Split
) -> tuple[keras.Model, pd.DataFrame]:
    """Return the trained network and its history, whose columns `fit` describes.

    Each member of an ensemble has its own seeds; the history is the mean of theirs.
    """
    images, labels = train
    shape, classes = images.shape[1:], labels.shape[1]
    # TensorFlow's copy serves all members. Drop the NumPy arrays to free memory.
    train = tf.constant(images), tf.constant(labels)
    del images, labels
    members, histories = [], []
    for number in range(model_parameters.members):
        model = build(model_parameters.for_member(number), shape, classes)
        if number == 0:
            model.summary()
        if model_parameters.members > 1:
            print(f"Member {number + 1} of {model_parameters.members}", flush=True)
        portable = make_portable(model, parameters.replicas)
        histories.append(fit(portable, train, validation, parameters.for_member(number)))
        if parameters.label_smoothing:
            calibrate(portable, *validation, parameters.batch_size)
        model.set_weights(portable.get_weights())
        members.append(model)
        # The portable model and its optimizer refer to each other, so only gc frees them.
        del portable
        gc.collect()
    history = pd.concat(histories).groupby("epoch").mean().reset_index().astype({"chosen": int})
    model = average_members(members)
    if model_parameters.test_time_augmentation:
        model = average_over_shifts(model)
    return model, history


def fit(
    model: DataParallel, train: Split, validation: Split, parameters: TrainParameters
) -> pd.DataFrame:
    """Train `model`, a portable model, in place and return its history, one row for each epoch.

    Columns: epoch (from 1); learning_rate, of the epoch's last step; loss and each metric on the
    training images as augmented; the same with the prefix val_ on the validation images after the
    epoch; chosen, 1 for the epoch whose weights the model ends with. A branched network also has
    main_loss and auxiliary_loss.

    Raises StageError if there are fewer training images than replicas, or if the loss becomes NaN.
    """
    keras.utils.set_random_seed(parameters.seed)
    two = has_two_outputs(model.network)
    training = make_batches(train, parameters, two)
    steps = int(training.cardinality())
    if not steps:
        raise StageError(
            f"train.replicas is {parameters.replicas} and there are {len(train[0])} training "
            "images: each replica needs at least one; lower train.replicas"
        )
    compile_model(model, parameters, steps)
    # Create the optimizer's variables now, or TensorFlow traces the step twice.
    model.optimizer.build(model.trainable_variables)
    stopping = make_early_stopping(parameters.early_stopping)
    history = model.fit(
        training,
        validation_data=make_batches(validation, parameters, two, training=False),
        epochs=parameters.epochs,
        callbacks=[*make_callbacks(parameters), *stopping],
        shuffle=False,  # make_batches does
        verbose="auto" if sys.stdout.isatty() else 2,
    ).history
    epochs = len(history.get("val_loss", []))
    if not epochs or not np.isfinite(history["loss"] + history["val_loss"]).all():
        raise StageError(
            f"the loss is NaN or infinite after {epochs} epochs: lower train.learning_rate, "
            f"now {parameters.learning_rate:g}, or use another train.optimizer"
        )
    # Metrics are of the main output, so they need no prefix.
    table = pd.DataFrame({re.sub(f"{MAIN}_(?!loss)", "", name): history[name] for name in history})
    table.insert(0, "epoch", range(1, epochs + 1))
    chosen = stopping[0].best_epoch + 1 if stopping else epochs
    if stopping:
        ended = "early stopping after" if epochs < parameters.epochs else "trained all"
        print(f"{ended} {epochs} epochs; the weights are those of epoch {chosen}", flush=True)
    table["chosen"] = (table["epoch"] == chosen).astype(int)
    return table


def make_batches(
    split: Split, parameters: TrainParameters, two_outputs: bool, training: bool = True
) -> tf.data.Dataset:
    """Return batches of images and labels, for training in a new random order each epoch.

    Only indices are shuffled; each batch is gathered from the arrays in memory, and its images are
    augmented as `parameters.augmentation` says. A network with two outputs gets the labels for both
    by name. In training, a last batch with fewer images than replicas is left out.
    """
    images, labels = (tf.constant(array) for array in split)
    count, seed, augmentation = len(split[0]), parameters.seed, parameters.augmentation

    def gather(
        batch: tf.Tensor, draw: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | dict[str, tf.Tensor]]:
        batch_images, targets = tf.gather(images, batch), tf.gather(labels, batch)
        if draw is not None:
            batch_images = augment(batch_images, draw, augmentation)
        return batch_images, dict.fromkeys((MAIN, AUXILIARY), targets) if two_outputs else targets

    indices = tf.data.Dataset.range(count)
    if training:
        rest = count % parameters.batch_size
        indices = indices.shuffle(count, seed=seed)
        indices = indices.take(count - rest if rest < parameters.replicas else count)
    dataset = indices.batch(parameters.batch_size)
    if training and any(augmentation.model_dump().values()):
        # Two random numbers for each batch of each epoch decide how its images are augmented.
        draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
        dataset = tf.data.Dataset.zip(dataset, draws)
    # No Python control flow here, so skip AutoGraph, which is slow.
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(gather))
    # Nothing here is left to tune, and tf.data's tuner can delay the end of an epoch by seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def compile_model(model: DataParallel, parameters: TrainParameters, steps: int) -> None:
    """Compile `model` with its loss, optimizer and metrics; an epoch has `steps` steps."""
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
    """Return the loss that `parameters` name.

    Label smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016.
    """
    if parameters.label_smoothing:
        return keras.losses.CategoricalCrossentropy(label_smoothing=parameters.label_smoothing)
    return keras.losses.get(parameters.loss)


def make_callbacks(parameters: TrainParameters) -> list[keras.callbacks.Callback]:
    """Return the callbacks that record the learning rate, stop at NaN, and lower the rate."""
    result = [RecordLearningRate(), keras.callbacks.TerminateOnNaN()]
    if parameters.schedule.name == "plateau":
        result.append(
            keras.callbacks.ReduceLROnPlateau(
                factor=parameters.schedule.factor,
                patience=parameters.schedule.every,
                min_delta=0.0,
            )
        )
    return result


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
