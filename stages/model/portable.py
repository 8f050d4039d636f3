"""Layers whose arithmetic gives the same bytes on every processor.

`copy_layers` turns a model into its portable form: it copies the model, and replaces each layer
whose class is in `PORTABLE`. `parallel.DataParallel` does the rest.
"""

import keras
import tensorflow as tf

from stages.model import arithmetic


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
            outputs, mean, variance = arithmetic.normalize(
                inputs, *map(tf.convert_to_tensor, (self.gamma, self.beta)), self.epsilon
            )
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
            return outputs
        factors = self.gamma / tf.sqrt(self.moving_variance + self.epsilon)
        return inputs * factors + (self.beta - self.moving_mean * factors)


class PortableConv2D(keras.layers.Conv2D):
    """Keras's convolution, with stride 1."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the activation of the convolution of `inputs` (n, height, width, channels)."""
        if self.padding == "same":
            around = [[(size - 1) // 2, size // 2] for size in self.kernel_size]
            inputs = tf.pad(inputs, [[0, 0], *around, [0, 0]])
        outputs = arithmetic.convolve(inputs, tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs = arithmetic.add_bias(outputs, tf.convert_to_tensor(self.bias))
        return self.activation(outputs)


class PortableGlobalAveragePooling2D(keras.layers.GlobalAveragePooling2D):
    """Keras's mean over height and width."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the means (n, channels) of `inputs` (n, height, width, channels)."""
        _, height, width, channels = inputs.shape
        places = tf.reshape(tf.transpose(inputs, (1, 2, 0, 3)), (height * width, -1))
        return tf.reshape(arithmetic.average_rows(places), (-1, channels))


class PortableDense(keras.layers.Dense):
    """Keras's dense layer, with or without softmax."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:  # noqa: ARG002  # Keras's signature
        """Return the activation of `inputs` (n, features) times the kernel plus the bias."""
        outputs = arithmetic.multiply_dense(inputs, tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs = arithmetic.add_bias(outputs, tf.convert_to_tensor(self.bias))
        if self.activation is not keras.activations.softmax:
            return self.activation(outputs)
        probabilities = arithmetic.softmax(outputs)
        probabilities.logits = outputs  # of which the loss is computed
        return probabilities


PORTABLE: dict[type[keras.Layer], type[keras.Layer]] = {
    keras.layers.BatchNormalization: PortableBatchNormalization,
    keras.layers.Conv2D: PortableConv2D,
    keras.layers.Dense: PortableDense,
    keras.layers.GlobalAveragePooling2D: PortableGlobalAveragePooling2D,
}


def copy_layers(model: keras.Model) -> keras.Model:
    """Return a copy of `model`, with the same weights, whose layers are portable."""

    def copy(layer: keras.Layer) -> keras.Layer:
        kind = PORTABLE.get(type(layer), type(layer))
        if kind is PortableConv2D and not layer.strides == layer.dilation_rate == (1, 1):
            kind = keras.layers.Conv2D
        return kind.from_config(layer.get_config())

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
