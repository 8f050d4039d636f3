"""Read batches of images and labels from the prepared splits.

Which images a training step sees, and how they are augmented, depends only on the seed, the epoch
and the step. So a training can start at any epoch, and every worker reads the same batches.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from stages.core.prepared import Split
from stages.model.architectures import AUXILIARY, MAIN
from stages.model.augmentation import augment
from stages.model.settings import TrainParameters


def count_steps(images: int, batch_size: int, smallest: int) -> int:
    """Return the number of steps in an epoch over a training set of `images` images.

    If the last batch has fewer than `smallest` images, it is left out.
    """
    steps, rest = divmod(images, batch_size)
    return steps + 1 if rest >= smallest else steps


def make_training_batches(
    split: Split,
    parameters: TrainParameters,
    steps: int,
    two_outputs: bool,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Return the batches of all epochs from `first_epoch` on, one epoch after the other.

    An epoch has `steps` batches, in its own random order. Images are augmented as
    `parameters.augmentation` says.
    """
    return read_batches(
        tf.data.Dataset.range(first_epoch * steps, parameters.epochs * steps),
        split,
        two_outputs,
        lambda step: select_batch(split, parameters, steps, int(step)),
        lambda step, images: augment_batch(parameters, step, images),
    )


def read_batch(split: Split, parameters: TrainParameters, steps: int, step: int) -> Split:
    """Return the batch of one step, which counts from 0 over all epochs."""
    images, labels = select_batch(split, parameters, steps, step)
    return augment_batch(parameters, tf.constant(step, tf.int64), images), labels


def select_batch(split: Split, parameters: TrainParameters, steps: int, step: int) -> Split:
    """Return the images, not augmented, and the labels of a step."""
    epoch, position = divmod(step, steps)
    size = parameters.batch_size
    order = shuffle(parameters.seed, epoch, len(split[0]))
    indices = order[position * size : (position + 1) * size]
    return split[0][indices], split[1][indices]


@lru_cache(maxsize=2)  # the batches of the next epoch are read before the last one has ended
def shuffle(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of `count` images in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def augment_batch(parameters: TrainParameters, step: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Return the images of a step, augmented as `parameters.augmentation` says."""
    augmentation = parameters.augmentation
    if not any(augmentation.model_dump().values()):
        return images
    seed = tf.stack([tf.constant(parameters.seed, tf.int64), step])
    return augment(images, seed, augmentation)


def make_validation_batches(split: Split, size: int, two_outputs: bool) -> tf.data.Dataset:
    """Return the batches of one pass over `split`, in its order, of `size` images each."""
    images, labels = split

    def read(number: np.int64) -> Split:
        batch = slice(number * size, (number + 1) * size)
        return np.array(images[batch]), np.array(labels[batch])

    numbers = tf.data.Dataset.range(math.ceil(len(images) / size))
    return read_batches(numbers, split, two_outputs, read, lambda _, batch_images: batch_images)


def read_batches(
    numbers: tf.data.Dataset,
    split: Split,
    two_outputs: bool,
    read: Callable[[np.int64], Split],
    change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.data.Dataset:
    """Return a dataset with one batch for each number. Batches are read before they are needed.

    `read` returns the images and labels for a number. `change` takes the number and these images,
    and returns the images for the network. A network with two outputs gets the labels for both, by
    name.
    """

    def load(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | dict[str, tf.Tensor]]:
        batch = tf.numpy_function(read, [number], [tf.float32, tf.float32])
        for tensor, array in zip(batch, split, strict=True):
            tensor.set_shape((None, *array.shape[1:]))
        images, labels = batch
        labels = dict.fromkeys((MAIN, AUXILIARY), labels) if two_outputs else labels
        return change(number, images), labels

    # There is nothing to tune here, and tf.data's tuner can delay the end of an epoch by seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    # There is no Python control flow to convert, and AutoGraph is slow.
    load = tf.autograph.experimental.do_not_convert(load)
    return numbers.map(load).prefetch(2).with_options(options)
