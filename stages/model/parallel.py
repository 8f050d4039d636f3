"""Split each batch over replicas, and add their results in a fixed order.

A replica computes its share of every batch. The result depends on the number of replicas, but not
on how many of them are computed at the same time.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from stages.core.files import Floats
from stages.model.architectures import AUXILIARY, MAIN, has_two_outputs
from stages.model.portable import copy_layers, find_averages, find_random_states

Node = tuple[int, int]  # the replicas from the first number up to, but not including, the second
Tensors = list[tf.Tensor]


class Share(NamedTuple):
    """The results of one replica for its share of a batch."""

    outputs: Any  # nested as the outputs of the network
    averages: Tensors  # what the share adds to each moving average
    gradients: Tensors  # of the loss, for each trainable variable


class DataParallel(keras.Model):
    """A copy of a model that trains and predicts with the same bytes on every processor.

    Its layers are portable, and each replica computes one share of a batch. This is faster than
    splitting each operation, because threads would wait for each other after every layer. Batch
    normalisation uses the statistics of the share, which Hoffer, Hubara and Soudry, "Train longer,
    generalize better", 2017, call ghost batch normalization.

    Save the original instead of the copy: plain Keras can open its standard layers.
    """

    def __init__(self, model: keras.Model, replicas: int) -> None:
        """Copy `model` with its weights. A subclass may compute fewer replicas than all."""
        super().__init__()
        self.network = copy_layers(model)
        self.replicas = replicas
        self.local_replicas = range(replicas)  # those that this process computes
        # The fixed signature avoids a second trace for a last batch that is smaller.
        self.main_output = tf.function(
            lambda images: self(images)[MAIN] if has_two_outputs(model) else self(images),
            input_signature=[tf.TensorSpec((None, *model.input_shape[1:]))],
            autograph=False,
        )

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        metrics: list[keras.metrics.Metric],
        auxiliary_weight: float,
    ) -> None:
        """Choose how to train. The loss of an auxiliary output is added with a weight."""
        if not has_two_outputs(self.network):
            self.loss_of = loss
            super().compile(optimizer, loss, metrics=metrics)
        else:
            weights = {MAIN: 1.0, AUXILIARY: auxiliary_weight}
            self.loss_of = lambda labels, outputs: tf.add_n(
                [loss(labels[name], outputs[name]) * weight for name, weight in weights.items()]
            )
            losses = dict.fromkeys(weights, loss)
            super().compile(optimizer, losses, loss_weights=weights, metrics={MAIN: metrics})
            # Keras creates a metric for each loss, and the optimizer its variables, when they are
            # first used. Inside of a step, TensorFlow would trace it twice.
            labels = {name: tf.ones(self.network.output[name].shape[1:])[None] for name in weights}
            for each in labels.values():
                each.logits = each
            self.compute_loss(y=labels, y_pred=labels)
        optimizer.build(self.trainable_variables)

    def predict_probabilities(self, images: Floats, batch_size: int) -> Floats:
        """Return the main output's probabilities (n, classes) float32 for `images`."""
        starts = range(0, len(images), batch_size)
        return np.concatenate([self.main_output(images[i : i + batch_size]) for i in starts])

    def call(self, images: tf.Tensor, training: bool = False) -> Any:
        """Return the network's outputs for `images` (n, height, width[, 3]), in their order."""
        count = tf.shape(images)[0]
        rest = [[0, 0]] * (images.shape.rank - 1)
        # No share may be empty, because oneDNN's pooling fails on an empty batch.
        padded = tf.pad(images, [[0, tf.maximum(self.replicas - count, 0)], *rest])
        bounds = self.find_bounds(tf.shape(padded)[0])
        shares = {
            replica: Share(self.network(padded[slice(*bounds[replica])], training=training), [], [])
            for replica in self.local_replicas
        }
        outputs, _, _ = self.gather(shares, tf.shape(padded)[0])
        return join(outputs, count, shares)

    def train_step(self, data: tuple[tf.Tensor, Any]) -> dict[str, tf.Tensor]:
        """Take one step on images and labels, and return the metrics of the epoch so far.

        The gradients of the replicas are added in the order of a binary tree. The moving averages
        are updated with the share of each replica in turn.
        """
        images, labels = data
        count = tf.shape(images)[0]
        bounds = self.find_bounds(count)
        shares = {
            replica: self.train_share(replica, images, labels, *bounds[replica])
            for replica in self.local_replicas
        }
        outputs, averages, gradients = self.gather(shares, count)
        for of_share in averages:
            for (average, momentum), value in zip(
                find_averages(self.network), of_share, strict=True
            ):
                average.assign(average * momentum + value)
        joined = join(outputs, count, shares)
        loss = self.compute_loss(y=labels, y_pred=joined)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=count)
        self.optimizer.apply(gradients, self.trainable_variables)
        metrics: dict[str, tf.Tensor] = self.compute_metrics(images, labels, joined)
        return metrics

    def train_share(
        self, replica: int, images: tf.Tensor, labels: Any, start: tf.Tensor, stop: tf.Tensor
    ) -> Share:
        """Return the results of a replica, whose share of a batch is from `start` to `stop`.

        The state that layers change is given to them and read back, so replicas do not affect each
        other. Random numbers depend only on the seed, the step and the replica. Moving averages
        start at 0, so that their new value is what this share adds to them.
        """
        step = self.optimizer.iterations * self.replicas + replica
        averages = [average for average, _ in find_averages(self.network)]
        state = [(average, tf.zeros_like(average)) for average in averages]
        for position, random in enumerate(find_random_states(self.network), start=1):
            # Two layers may have been given the same seed.
            seed = (random.value[0] + position) % 2**32
            state.append((random, tf.stack([seed, tf.cast(step, seed.dtype)])))
        with tf.GradientTape() as tape, keras.StatelessScope(state) as scope:
            outputs = self.network(images[start:stop], training=True)
            share_labels = tf.nest.map_structure(lambda label: label[start:stop], labels)
            # Keras's compute_loss has the same value, but also counts it.
            loss = tf.add_n([self.loss_of(share_labels, outputs), *self.losses])
            # The loss of a batch is a mean over its images.
            loss *= tf.cast(stop - start, loss.dtype) / tf.cast(tf.shape(images)[0], loss.dtype)
        gradients = tape.gradient(
            loss, self.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return Share(outputs, [scope.get_current_value(average) for average in averages], gradients)

    def find_bounds(self, count: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Return where the share of each replica starts and ends in a batch of `count` images."""
        return [*pairwise(count * i // self.replicas for i in range(self.replicas + 1))]

    def gather(
        self,
        shares: dict[int, Share],
        count: tf.Tensor,  # noqa: ARG002  # for subclasses
    ) -> tuple[list[Tensors], list[Tensors], Tensors]:
        """Return the outputs and averages of each replica, and the sum of all gradients.

        `count` is the number of images in the batch. The outputs are as `list_outputs` returns
        them. A subclass whose `shares` are not of all replicas adds those of others.
        """
        leaves = {(replica, replica + 1): share.gradients for replica, share in shares.items()}
        outputs = [list_outputs(share.outputs) for share in shares.values()]
        averages = [share.averages for share in shares.values()]
        return outputs, averages, add_tree(leaves, (0, self.replicas))


def list_outputs(outputs: Any) -> Tensors:
    """Return each output and, if it comes from softmax, the input of softmax after it.

    `PortableDense` keeps that in an attribute of the output, for the loss.
    """
    return [
        tensor
        for output in tf.nest.flatten(outputs)
        for tensor in (output, getattr(output, "logits", None))
        if tensor is not None
    ]


def join(outputs: list[Tensors], count: tf.Tensor, shares: dict[int, Share]) -> Any:
    """Return the outputs of all replicas for the first `count` images, nested as in `shares`."""
    joined = (tf.concat(parts, 0)[:count] for parts in zip(*outputs, strict=True))

    def take(example: tf.Tensor) -> tf.Tensor:
        output = next(joined)
        if hasattr(example, "logits"):
            output.logits = next(joined)
        return output

    return tf.nest.map_structure(take, next(iter(shares.values())).outputs)


def add_tree(sums: dict[Node, Tensors], node: Node) -> Tensors:
    """Return the sums at `node` of a binary tree, from the sums at nodes below it.

    Floating-point addition depends on the order; the tree fixes it, whoever adds first.
    """
    if node in sums:
        return sums[node]
    middle = sum(node) // 2
    left, right = add_tree(sums, (node[0], middle)), add_tree(sums, (middle, node[1]))
    return [a + b for a, b in zip(left, right, strict=True)]
