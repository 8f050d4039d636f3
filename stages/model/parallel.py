"""TODO stages.model.parallel."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stages.model.architectures import MAIN, Floats, has_two_outputs


class DataParallel(keras.Model):
    """A network that computes equal shares of each batch side by side, one thread each.

    Faster than splitting each operation, for whose end threads wait after every layer. What is
    normalised over the batch is normalised over the share: Hoffer, Hubara and Soudry, "Train
    longer, generalize better", 2017, call it ghost batch normalization.
    """

    def __init__(self, network: keras.Model, threads: int) -> None:
        """Wrap `network`, whose weights become this model's."""
        super().__init__()
        self.network = network
        self.replicas = threads
        # Traced once for any number of images, not again for a last batch that is smaller.
        self.main_output = tf.function(
            lambda images: self(images)[MAIN] if has_two_outputs(network) else self(images),
            input_signature=[tf.TensorSpec((None, *network.input_shape[1:]))],
            autograph=False,
        )

    def probabilities(self, images: Floats, batch_size: int) -> Floats:
        """Return the main output's probabilities (n, classes) float32 for `images`."""
        starts = range(0, len(images), batch_size)
        return np.concatenate([self.main_output(images[i : i + batch_size]) for i in starts])

    def call(self, images: tf.Tensor, training: bool = False) -> Any:
        """Return the network's outputs for `images` (n, height, width), in their order."""
        count = tf.shape(images)[0]
        # No share may be empty: oneDNN's pooling fails on that.
        padded = tf.pad(images, [[0, tf.maximum(self.replicas - count, 0)], [0, 0], [0, 0]])
        bounds = [tf.shape(padded)[0] * i // self.replicas for i in range(self.replicas + 1)]
        shares = [self.network(padded[i:j], training=training) for i, j in pairwise(bounds)]
        return tf.nest.map_structure(lambda *each: join_replicas(each, count), *shares)


def join_replicas(shares: Sequence[tf.Tensor], count: tf.Tensor) -> tf.Tensor:
    """Return the first `count` probabilities of all shares, one after the other."""
    probabilities = tf.concat(shares, 0)[:count]
    if all(hasattr(share, "_keras_logits") for share in shares):
        # Where Keras's cross-entropy looks for what softmax was given: exact near 0 and 1.
        logits = tf.concat([share._keras_logits for share in shares], 0)
        probabilities._keras_logits = logits[:count]
    return probabilities
