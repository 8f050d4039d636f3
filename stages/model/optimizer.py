"""Create the optimizer and its learning rate schedule."""

import math
from functools import cache
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from stages.model import arithmetic
from stages.model.architectures import AUXILIARY, MAIN
from stages.model.settings import TrainParameters


def make_optimizer(parameters: TrainParameters, steps: int) -> keras.optimizers.Optimizer:
    """Return the optimizer that `parameters` name; `steps` is the number of steps in an epoch."""
    momentum: dict[str, float] = {}
    if parameters.momentum:
        momentum["momentum"] = parameters.momentum
    if parameters.nesterov:
        momentum["nesterov"] = True
    rate = make_learning_rate(parameters, steps)
    if parameters.optimizer == "muon":
        optimizer = Muon(
            rate, exclude_layers=[MAIN, AUXILIARY], weight_decay=None, adam_weight_decay=None
        )
    else:
        kind = type(keras.optimizers.get(parameters.optimizer))
        kind = type(kind.__name__, (PortablePowers, kind), {})
        optimizer = kind(learning_rate=rate, **momentum)
    optimizer.total_steps = parameters.epochs * steps
    return optimizer


def make_learning_rate(
    parameters: TrainParameters, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate or its schedule; `steps` is the number of steps in an epoch.

    The plateau schedule is a callback instead, because it depends on the validation loss.
    """
    schedule, total = parameters.schedule, parameters.epochs * steps
    numbers = np.arange(total + 1, dtype=np.float64)
    period = schedule.every * steps
    match schedule.name:
        case "step":
            shares = arithmetic.power(np.float64(schedule.factor), numbers // period)
        case "exponential":
            shares = arithmetic.power(np.float64(schedule.factor), numbers / period)
        case "cosine":
            warmup = min(round(schedule.warmup * total), total - 1)
            progress = np.maximum(numbers - warmup, 0) / (total - warmup)
            shares = np.maximum(0.5 * (1 + arithmetic.cos(math.pi * progress)), 0)
            shares = np.where(numbers < warmup, numbers / max(warmup, 1), shares)
        case _:
            return parameters.learning_rate
    return LearningRates(parameters.learning_rate * shares)


class LearningRates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step, computed beforehand."""

    def __init__(self, rates: npt.ArrayLike) -> None:
        """Keep the `rates` of all steps."""
        self.rates = tf.cast(rates, tf.float32)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate of `step`, which counts from 0."""
        return tf.gather(self.rates, tf.minimum(tf.cast(step, tf.int64), len(self.rates) - 1))


class PortablePowers:
    """An optimizer of Keras whose powers, such as beta ** step, are the same on every processor."""

    total_steps: int

    def apply(self, *arguments: Any, **named: Any) -> None:
        """Update the variables as Keras does, with `look_up` instead of TensorFlow's power."""
        with patch.object(tf, "pow", self.look_up):
            super().apply(*arguments, **named)  # type: ignore[misc]

    @cache  # noqa: B019  # an optimizer lives as long as its training
    def compute_powers(self, base: float) -> tf.Tensor:
        """Return the powers of `base` for all steps."""
        with tf.init_scope():
            return arithmetic.power(base, tf.range(self.total_steps + 3.0))

    def look_up(self, base: tf.Tensor | float, exponent: tf.Tensor) -> tf.Tensor:
        """Return a constant `base` to the power of a step's number."""
        powers = self.compute_powers(float(tf.get_static_value(tf.convert_to_tensor(base))))
        return tf.gather(powers, tf.cast(exponent, tf.int64))


class RecordLearningRate(keras.callbacks.Callback):
    """Add the learning rate of the last step to the logs of each epoch."""

    def __init__(self, rate: float | keras.optimizers.schedules.LearningRateSchedule) -> None:
        """Record `rate`, which can be a schedule. The plateau schedule changes a constant rate."""
        super().__init__()
        self.rate = rate

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:  # noqa: ARG002  # Keras's signature
        """Evaluate the schedule at the last step; `iterations` is the number of the next one."""
        optimizer = self.model.optimizer
        if isinstance(self.rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = self.rate(optimizer.iterations - 1)
        else:
            rate = optimizer.learning_rate
        logs["learning_rate"] = float(rate)


class Muon(PortablePowers, keras.optimizers.Muon):
    """Keras's Muon, extended to the kernels of convolutions and portable across processors.

    Muon replaces the momentum of each weight matrix with the nearest orthogonal matrix and takes a
    step along it. Keras does this only for dense kernels. The kernel of a convolution is a matrix
    too: from its inputs (height, width and channels together) to its filters. See K. Jordan et al.,
    "Muon", 2024, https://kellerjordan.github.io/posts/muon/. Classifiers, biases and normalisation
    use Adam.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        """Create the optimizer's variables. A variable without a velocity does not use Adam."""
        super().build(variables)
        for number, variable in enumerate(variables):
            if len(variable.shape) == 4:
                self.adam_velocities[number] = None

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        """Return the kernel `x` as a matrix whose singular values are all near 1."""
        matrix = tf.reshape(x, (-1, x.shape[-1]))
        tall = matrix.shape[0] > matrix.shape[1]
        matrix = tf.transpose(matrix) if tall else matrix
        matrix /= tf.sqrt(arithmetic.add_up(matrix * matrix)) + 1e-7
        for _ in range(steps):
            square = arithmetic.multiply(matrix, tf.transpose(matrix))
            factor = self.muon_b * square + self.muon_c * arithmetic.multiply(square, square)
            matrix = self.muon_a * matrix + arithmetic.multiply(factor, matrix)
        return tf.reshape(tf.transpose(matrix) if tall else matrix, x.shape)

    def lr_adjust(self, x: tf.Tensor) -> tf.Tensor:
        """Return the step `x` of a kernel, scaled by the size of its matrix."""
        return tf.reshape(super().lr_adjust(tf.reshape(x, (-1, x.shape[-1]))), x.shape)
