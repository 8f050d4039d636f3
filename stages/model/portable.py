"""Layers whose arithmetic gives the same bytes on every processor.

`copy_layers` turns a model into its portable form: it copies the model, and replaces each layer
whose class is in `PORTABLE`. `parallel.DataParallel` does the rest.
"""

import keras
import tensorflow as tf

ROWS = 48  # a multiple of the rows that oneDNN's and Eigen's kernels process at a time


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
            mean, variance = keras.ops.moments(inputs, list(range(inputs.shape.rank - 1)))
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
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


PORTABLE: dict[type[keras.Layer], type[keras.Layer]] = {
    keras.layers.BatchNormalization: PortableBatchNormalization,
    keras.layers.Dense: PortableDense,
}


def copy_layers(model: keras.Model) -> keras.Model:
    """Return a copy of `model`, with the same weights, whose layers are portable."""

    def copy(layer: keras.Layer) -> keras.Layer:
        return PORTABLE.get(type(layer), type(layer)).from_config(layer.get_config())

    network = keras.models.clone_model(model, clone_function=copy, recursive=True)
    network.set_weights(model.get_weights())
    return network


def find_averages(model: keras.Model) -> list[tuple[keras.Variable, float]]:
    """Return the moving averages of batch normalisation that training changes, with momentum."""
    found: list[tuple[keras.Variable, float]] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += find_averages(layer)
        elif isinstance(layer, PortableBatchNormalization) and layer.trainable:
            found += [(layer.moving_mean, layer.momentum), (layer.moving_variance, layer.momentum)]
    return found


def find_random_states(model: keras.Model) -> list[keras.Variable]:
    """Return the state of each random generator: its seed, and how often it was called."""
    weights = {id(weight) for weight in model.weights}
    return [each for each in model.non_trainable_variables if id(each) not in weights]
