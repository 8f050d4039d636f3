"""Create the optimizer and its learning rate schedule."""

import math

import keras
import tensorflow as tf

from stages.model.architectures import AUXILIARY, MAIN
from stages.model.portable import ROWS
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
        return Muon(
            rate, exclude_layers=[MAIN, AUXILIARY], weight_decay=None, adam_weight_decay=None
        )
    return type(keras.optimizers.get(parameters.optimizer))(learning_rate=rate, **momentum)


def make_learning_rate(
    parameters: TrainParameters, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate or its schedule; `steps` is the number of steps in an epoch.

    The plateau schedule is a callback instead, because it depends on the validation loss.
    """
    rate, schedule = parameters.learning_rate, parameters.schedule
    schedules = keras.optimizers.schedules
    match schedule.name:
        case "step":
            drops = range(1, math.ceil(parameters.epochs / schedule.every))
            if not drops:
                return rate
            # Steps count from 0, and a boundary is the last step before the rate changes.
            boundaries = [drop * schedule.every * steps - 1 for drop in drops]
            rates = [rate * schedule.factor**drop for drop in (0, *drops)]
            return schedules.PiecewiseConstantDecay(boundaries, rates)
        case "exponential":
            return schedules.ExponentialDecay(rate, schedule.every * steps, schedule.factor)
        case "cosine":
            total = parameters.epochs * steps
            warmup = min(round(schedule.warmup * total), total - 1)
            if not warmup:
                return schedules.CosineDecay(rate, total)
            return schedules.CosineDecay(
                0.0, total - warmup, warmup_target=rate, warmup_steps=warmup
            )
        case _:
            return rate


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


class Muon(keras.optimizers.Muon):
    """Keras's Muon, extended to the kernels of convolutions and portable across processors.

    Muon replaces the momentum of each weight matrix with the nearest orthogonal matrix and takes a
    step along it. Keras does this only for dense kernels. The kernel of a convolution is a matrix
    too: from its inputs (height, width and channels together) to its filters. See K. Jordan et al.,
    "Muon", 2024, https://kellerjordan.github.io/posts/muon/. Classifiers, biases and normalisation
    use Adam.
    """

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return len(variable.shape) != 4 and super()._should_use_adamw(variable)

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        """Return the kernel `x` as a matrix whose singular values are all near 1."""
        matrix = tf.reshape(x, (-1, x.shape[-1]))
        rows, columns = matrix.shape
        # Zeros do not change the result. portable.PortableDense explains why full blocks matter.
        padded = tf.pad(matrix, [[0, -rows % ROWS], [0, -columns % ROWS]])
        orthogonal = super().zeropower_via_newtonschulz5(padded, steps)
        return tf.reshape(orthogonal[:rows, :columns], x.shape)

    def lr_adjust(self, x: tf.Tensor) -> tf.Tensor:
        """Return the step `x` of a kernel, scaled by the size of its matrix."""
        return tf.reshape(super().lr_adjust(tf.reshape(x, (-1, x.shape[-1]))), x.shape)
