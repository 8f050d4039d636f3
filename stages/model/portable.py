"""TODO stages.model.portable."""

from typing import Any

import keras
import tensorflow as tf

from stages.model.parallel import DataParallel

ROWS = 48  # a multiple of the rows that oneDNN's and Eigen's kernels take at a time


def make_portable(model: keras.Model, threads: int) -> "DataParallel":
    """Return a twin of `model`, same weights, whose arithmetic is the same on every processor.

    Train and predict with the twin, which uses `threads`; save the original, whose standard layers
    open anywhere.
    """
    twin = keras.models.clone_model(model, clone_function=make_portable_layer, recursive=True)
    twin.set_weights(model.get_weights())
    return DataParallel(twin, threads)


def make_portable_layer(layer: keras.Layer) -> keras.Layer:
    """Return a copy of `layer`, of the portable kind where there is one."""
    kinds: dict[Any, Any] = {
        keras.layers.BatchNormalization: PortableBatchNormalization,
        keras.layers.Dense: PortableDense,
    }
    kind = kinds.get(type(layer), type(layer))
    return kind.from_config(layer.get_config())


class PortableBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer with a square root and a division.

    Keras multiplies by a reciprocal square root, for which processors have a fast approximation
    that differs between makers.
    """

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        mask: None = None,  # noqa: ARG002  # Keras's signature
    ) -> tf.Tensor:
        """Return `inputs` normalised by the batch in training, else by the moving averages."""
        if training and self.trainable:
            mean, variance = keras.ops.moments(inputs, self._reduction_axes)
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma / keras.ops.sqrt(variance + self.epsilon)
        return inputs * scale + (self.beta - mean * scale)


class PortableDense(keras.layers.Dense):
    """Keras's layer with its matrices padded to round numbers of rows.

    The last rows of a product, where they are no whole block of the kernel's, are summed by another
    kernel, which rounds differently. Without such a rest, an output does not depend on what else
    is in the batch, nor the weights' gradient, whose rows are the input features, on the processor.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:  # noqa: ARG002  # Keras's signature
        """Return the activation of `inputs` (n, features) times the kernel plus the bias."""
        count, features = tf.shape(inputs)[0], inputs.shape[1]
        padded = tf.pad(inputs, [[0, -count % ROWS], [0, -features % ROWS]])
        kernel = tf.pad(self.kernel, [[0, -features % ROWS], [0, 0]])
        outputs = tf.matmul(padded, kernel)[:count]
        if self.use_bias:
            outputs += self.bias
        return self.activation(outputs)
