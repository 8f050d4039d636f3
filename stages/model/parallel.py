"""Split each batch over replicas that compute side by side."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stages.core.files import Floats
from stages.model.architectures import MAIN, has_two_outputs


class DataParallel(keras.Model):
    """A network that splits each batch into equal shares, one for each replica.

    This is faster than splitting each operation, because threads would wait for each other after
    every layer. Batch normalisation uses the statistics of the share, which Hoffer, Hubara and
    Soudry, "Train longer, generalize better", 2017, call ghost batch normalization.
    """

    def __init__(self, network: keras.Model, replicas: int) -> None:
        """Wrap `network`; its weights become the weights of this model."""
        super().__init__()
        self.network = network
        self.replicas = replicas
        # The fixed signature avoids a second trace for a last batch that is smaller.
        self.main_output = tf.function(
            lambda images: self(images)[MAIN] if has_two_outputs(network) else self(images),
            input_signature=[tf.TensorSpec((None, *network.input_shape[1:]))],
            autograph=False,
        )

    def predict_probabilities(self, images: Floats, batch_size: int) -> Floats:
        """Return the main output's probabilities (n, classes) float32 for `images`."""
        starts = range(0, len(images), batch_size)
        return np.concatenate([self.main_output(images[i : i + batch_size]) for i in starts])

    def call(self, images: tf.Tensor, training: bool = False) -> Any:
        """Return the network's outputs for `images` (n, height, width), in their order."""
        count = tf.shape(images)[0]
        # No share may be empty, because oneDNN's pooling fails on an empty batch.
        padded = tf.pad(images, [[0, tf.maximum(self.replicas - count, 0)], [0, 0], [0, 0]])
        bounds = [tf.shape(padded)[0] * i // self.replicas for i in range(self.replicas + 1)]
        shares = [self.network(padded[i:j], training=training) for i, j in pairwise(bounds)]
        return tf.nest.map_structure(lambda *each: join_shares(each, count), *shares)


def join_shares(shares: Sequence[tf.Tensor], count: tf.Tensor) -> tf.Tensor:
    """Return the first `count` probabilities of all shares, one after the other."""
    probabilities = tf.concat(shares, 0)[:count]
    if all(hasattr(share, "_keras_logits") for share in shares):
        # Keras's cross-entropy reads the input of softmax from here: exact near 0 and 1.
        logits = tf.concat([share._keras_logits for share in shares], 0)
        probabilities._keras_logits = logits[:count]
    return probabilities
