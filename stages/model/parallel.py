"""Split each batch over replicas, on one worker or several, and add their results in a fixed order.

A replica computes its share of every batch. A worker is a process that computes one or more
replicas. The result depends on the number of replicas, but not on the number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from stages.core.files import Floats
from stages.model.architectures import MAIN, has_two_outputs

Node = tuple[int, int]  # the replicas from the first number up to, but not including, the second
Tensors = list[tf.Tensor]


class Group(NamedTuple):
    """Tensors of one kind to exchange. Those of all keys have the same shapes."""

    own: dict[Any, Tensors]  # of this worker
    keys_of: Callable[[int], Sequence[Any]]  # the keys that a worker, given by its number, has


class Workers:
    """The workers of one training. This class is a single worker; `cluster.Cluster` has several."""

    index = 0
    count = 1

    def connect(self) -> None:
        """Wait until all workers have started."""

    def end(self) -> None:
        """Finish the training. With several workers, this ends the process."""

    def list_replicas(self, worker: int, replicas: int) -> range:
        """Return the replicas that `worker` computes, of `replicas` in all."""
        return range(worker * replicas // self.count, (worker + 1) * replicas // self.count)

    def exchange(self, *groups: Group) -> list[dict[Any, Tensors]]:
        """Return the tensors of all workers, for each group."""
        assert all(list(own) == list(keys_of(self.index)) for own, keys_of in groups)
        return [own for own, _ in groups]

    def exchange_bytes(self, content: bytes) -> list[bytes]:
        """Return the `content` of every worker, in their order."""
        return [content]


@dataclass
class ReplicaStep:
    """One training step of one replica, while TensorFlow traces it."""

    number: tf.Tensor  # int64; no other step of any replica has the same
    draws: int = 0  # seeds drawn so far
    averages: list[tuple[Any, float]] = field(default_factory=list)  # variables and their momentum
    statistics: Tensors = field(default_factory=list)  # the share's value for each of `averages`


_tracing: list[ReplicaStep] = []


@contextmanager
def trace(step: ReplicaStep) -> Iterator[ReplicaStep]:
    """Make `step` the one that layers find with `get_traced_step`."""
    _tracing.append(step)
    try:
        yield step
    finally:
        _tracing.pop()


def get_traced_step() -> ReplicaStep | None:
    """Return the step that is being traced, or None outside of training."""
    return _tracing[-1] if _tracing else None


class DataParallel(keras.Model):
    """A network that splits each batch into shares, one for each replica.

    This is faster than splitting each operation, because threads would wait for each other after
    every layer. Batch normalisation uses the statistics of the share, which Hoffer, Hubara and
    Soudry, "Train longer, generalize better", 2017, call ghost batch normalization.
    """

    def __init__(self, network: keras.Model, replicas: int, workers: Workers | None = None) -> None:
        """Wrap `network`; its weights become the weights of this model."""
        super().__init__()
        self.network = network
        self.replicas = replicas
        self.workers = workers or Workers()
        # The loss of labels and outputs; compute_loss has the same value, but also counts it.
        self.share_loss: Callable[[Any, Any], tf.Tensor]
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
        shares = {
            replica: self.network(padded[i:j], training=training)
            for replica, (i, j) in self._find_bounds(tf.shape(padded)[0]).items()
        }
        (every,) = self.workers.exchange(self._group_outputs(shares, tf.shape(padded)[0]))
        return self._join(every, shares, tf.shape(padded)[0], count)

    def train_step(self, data: tuple[tf.Tensor, Any]) -> dict[str, tf.Tensor]:
        """Take one step on images and labels, and return the metrics of the epoch so far.

        The gradients of the replicas are added in the order of a binary tree. The averages of batch
        normalisation are updated with the statistics of each replica in turn.
        """
        images, labels = data
        count = tf.shape(images)[0]
        shares, statistics, gradients = {}, {}, {}
        for replica, (i, j) in self._find_bounds(count).items():
            step = ReplicaStep(self.optimizer.iterations * self.replicas + replica)
            with trace(step), tf.GradientTape() as tape:
                shares[replica] = self.network(images[i:j], training=True)
                share_labels = tf.nest.map_structure(lambda y, i=i, j=j: y[i:j], labels)
                loss = tf.add_n([self.share_loss(share_labels, shares[replica]), *self.losses])
                # The loss of a batch is a mean over its images.
                loss *= tf.cast(j - i, loss.dtype) / tf.cast(count, loss.dtype)
            gradients[replica, replica + 1] = tape.gradient(
                loss, self.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            statistics[replica] = step.statistics
            averages = step.averages  # the same for every replica

        every_output, every_statistic, sums = self.workers.exchange(
            self._group_outputs(shares, count),
            Group(statistics, self._list_replicas),
            Group(
                {node: add_tree(gradients, node) for node in self._list_nodes(self.workers.index)},
                self._list_nodes,
            ),
        )
        for replica in range(self.replicas):
            for (average, momentum), value in zip(averages, every_statistic[replica], strict=True):
                average.assign(average * momentum + value * (1.0 - momentum))
        outputs = self._join(every_output, shares, count, count)
        self._loss_tracker.update_state(
            self.compute_loss(y=labels, y_pred=outputs), sample_weight=count
        )
        self.optimizer.apply(add_tree(sums, (0, self.replicas)), self.trainable_variables)
        metrics: dict[str, tf.Tensor] = self.compute_metrics(images, labels, outputs)
        return metrics

    def _list_replicas(self, worker: int) -> range:
        return self.workers.list_replicas(worker, self.replicas)

    def _list_nodes(self, worker: int) -> list[Node]:
        return find_largest_nodes(self._list_replicas(worker), (0, self.replicas))

    def _find_bounds(self, count: tf.Tensor) -> dict[int, tuple[tf.Tensor, tf.Tensor]]:
        """Return where the shares of this worker's replicas start and end in a batch."""
        bounds = [*pairwise(count * i // self.replicas for i in range(self.replicas + 1))]
        return {replica: bounds[replica] for replica in self._list_replicas(self.workers.index)}

    def _group_outputs(self, shares: dict[int, Any], count: tf.Tensor) -> Group:
        """Return the outputs of a batch of `count` images, with equal shapes for all replicas.

        Probabilities keep their logits, the input of softmax, from which Keras computes the
        cross-entropy.
        """
        rows = -(-count // self.replicas)
        own = {
            replica: [
                tf.pad(tensor, [[0, rows - tf.shape(tensor)[0]], [0, 0]])
                for output in tf.nest.flatten(outputs)
                for tensor in list_logits(output)
            ]
            for replica, outputs in shares.items()
        }
        return Group(own, self._list_replicas)

    def _join(
        self, every: dict[int, Tensors], shares: dict[int, Any], size: tf.Tensor, count: tf.Tensor
    ) -> Any:
        """Return the outputs of the first `count` of `size` images, nested as those of a share."""
        bounds = pairwise(size * i // self.replicas for i in range(self.replicas + 1))
        parts = [[tensor[: j - i] for tensor in every[k]] for k, (i, j) in enumerate(bounds)]
        joined = [tf.concat(each, 0)[:count] for each in zip(*parts, strict=True)]
        example = next(iter(shares.values()))
        outputs = []
        for output in tf.nest.flatten(example):
            outputs.append(joined.pop(0))
            if len(list_logits(output)) == 2:
                outputs[-1]._keras_logits = joined.pop(0)
        return tf.nest.pack_sequence_as(example, outputs)


def list_logits(output: tf.Tensor) -> Tensors:
    """Return probabilities and, if they come from softmax, its input."""
    return [output, output._keras_logits] if hasattr(output, "_keras_logits") else [output]


def find_largest_nodes(replicas: range, node: Node) -> list[Node]:
    """Return the largest nodes of the binary tree below `node` that contain only `replicas`."""
    start, stop = node
    if replicas.start <= start and stop <= replicas.stop:
        return [node]
    if stop <= replicas.start or replicas.stop <= start:
        return []
    middle = (start + stop) // 2
    return find_largest_nodes(replicas, (start, middle)) + find_largest_nodes(
        replicas, (middle, stop)
    )


def add_tree(sums: dict[Node, Tensors], node: Node) -> Tensors:
    """Return the sums at `node` of a binary tree, from the sums at nodes below it.

    Floating-point addition depends on the order; the tree fixes it for any number of workers.
    """
    if node in sums:
        return sums[node]
    middle = sum(node) // 2
    left, right = add_tree(sums, (node[0], middle)), add_tree(sums, (middle, node[1]))
    return [a + b for a, b in zip(left, right, strict=True)]
