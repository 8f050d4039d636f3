"""Layers whose arithmetic gives the same bytes on every processor."""

from typing import Any

import keras
import tensorflow as tf

from stages.model.parallel import DataParallel, Workers, get_traced_step

ROWS = 48  # a multiple of the rows that oneDNN's and Eigen's kernels process at a time


def make_portable(
    model: keras.Model, replicas: int, workers: Workers | None = None
) -> DataParallel:
    """Return a copy of `model`, with the same weights, that computes the same bytes everywhere.

    Train and predict with the copy, which splits each batch into `replicas` parts. Save the
    original: plain Keras can open its standard layers.
    """
    network = keras.models.clone_model(model, clone_function=make_portable_layer, recursive=True)
    network.set_weights(model.get_weights())
    for layer in network._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, keras.random.SeedGenerator):
                draw_by_step(value)
    return DataParallel(network, replicas, workers)


def draw_by_step(generator: keras.random.SeedGenerator) -> None:
    """Make the random numbers of a layer depend only on its seed, the step and the replica.

    Keras's generator counts its calls instead. Its count depends on which replicas a worker
    computes, and a resumed training would have to restore it.
    """
    seed, count_calls = int(generator.state.numpy()[0]), generator.next

    def draw(ordered: bool = True) -> tf.Tensor:
        step = get_traced_step()
        if step is None:
            return count_calls(ordered)
        step.draws += 1
        numbers = (seed + step.draws) % 2**32, step.number
        return tf.stack([tf.cast(number, tf.uint32) for number in numbers])

    generator.next = draw


def make_portable_layer(layer: keras.Layer) -> keras.Layer:
    """Return a copy of `layer`, using the portable class if there is one."""
    kinds: dict[Any, Any] = {
        keras.layers.BatchNormalization: PortableBatchNormalization,
        keras.layers.Dense: PortableDense,
    }
    kind = kinds.get(type(layer), type(layer))
    return kind.from_config(layer.get_config())


class PortableBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, computed with a square root and a division.

    Keras multiplies by a reciprocal square root. Processors approximate it in hardware, and the
    approximation differs between vendors.
    """

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        mask: None = None,  # noqa: ARG002  # Keras's signature
    ) -> tf.Tensor:
        """Return `inputs`, normalised by the batch or, outside training, by the moving averages."""
        if training and self.trainable:
            mean, variance = keras.ops.moments(inputs, self._reduction_axes)
            step = get_traced_step()
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                if step is None:
                    average.assign(average * self.momentum + value * (1.0 - self.momentum))
                else:  # DataParallel updates the averages, in the order of the replicas
                    step.averages.append((average, self.momentum))
                    step.statistics.append(value)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma / keras.ops.sqrt(variance + self.epsilon)
        return inputs * scale + (self.beta - mean * scale)


class PortableDense(keras.layers.Dense):
    """Keras's dense layer, with its matrices padded to full blocks of rows.

    Rows left over after the last full block go through different code, which rounds
    differently. Padding to full blocks avoids that. An output then does not depend on the other
    images in the batch, and the gradient of the weights does not depend on the processor.
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
