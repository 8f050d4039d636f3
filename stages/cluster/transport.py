"""Exchange tensors between workers, with TensorFlow's collective operations over gRPC."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from stages.cluster.failures import watch_connecting
from stages.cluster.port import accept_only
from stages.cluster.rendezvous import wait_for_all
from stages.model.parallel import Tensors

GROUP_KEY = 2222  # TensorFlow's number for this group of workers; it uses small numbers itself


class Group(NamedTuple):
    """Tensors of one kind to exchange. Those of all keys have the same shapes."""

    own: dict[Any, Tensors]  # of this worker
    keys_of: Callable[[int], Sequence[Any]]  # the keys that a worker, given by its number, has


class Transport:
    """The connection of this worker with all others."""

    def __init__(self, addresses: list[str], index: int) -> None:
        """Keep the addresses of all workers and the index of this one."""
        self.addresses, self.index, self.count = addresses, index, len(addresses)

    def connect(self) -> None:
        """Wait for the other workers. Raises StageError if one does not come in time."""
        wait_for_all(self.addresses, self.index)
        with watch_connecting(self.addresses, self.index):
            # The strategy starts TensorFlow's server, and looks after the other workers.
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
            self._number = tf.Variable(0)  # of the last gather
            self.gather = tf.function(self._gather, autograph=False, reduce_retracing=True)
            accept_only(self.addresses[self.index])
            self.gather(tf.zeros(1))

    def exchange(self, *groups: Group) -> list[dict[Any, Tensors]]:
        """Return the tensors of all workers, for each group. They are sent together.

        A worker with fewer keys than another sends zeros too, since all send the same size.
        """
        rows = []
        for own, keys_of in groups:
            filled = [flatten(tensors) for tensors in own.values()]
            slots = max(len(keys_of(worker)) for worker in range(self.count))
            rows += filled + [tf.zeros_like(filled[0])] * (slots - len(filled))
        received = self._gather(tf.concat(rows, 0))
        columns = iter(tf.split(received, [tf.size(row) for row in rows], axis=1))
        result = []
        for own, keys_of in groups:
            example = next(iter(own.values()))
            keys = [keys_of(worker) for worker in range(self.count)]
            every = {}
            for slot in range(max(map(len, keys))):
                column = next(columns)
                for worker, worker_keys in enumerate(keys):
                    if slot < len(worker_keys):
                        every[worker_keys[slot]] = unflatten(column[worker], example)
            result.append(every)
        return result

    def exchange_bytes(self, content: bytes) -> list[bytes]:
        """Return the `content` of every worker, in their order."""
        lengths = self.gather(tf.constant([len(content)], tf.int64)).numpy()[:, 0]
        padded = content.ljust(int(lengths.max() + 8) // 8 * 8, b"\0")
        received = self.gather(tf.constant(np.frombuffer(padded, np.int64))).numpy()
        return [row.tobytes()[:length] for row, length in zip(received, lengths, strict=True)]

    def _gather(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the tensors of all workers, stacked; all have the same shape and one axis.

        All workers gather in the same order, so the tensors with equal numbers belong together.
        """
        received = tf.raw_ops.CollectiveGatherV2(
            input=tensor[tf.newaxis],
            group_size=self.count,
            group_key=GROUP_KEY,
            instance_key=self._number.assign_add(1),
            ordering_token=[],
        )
        return tf.ensure_shape(received, (self.count, tensor.shape[0]))


def flatten(tensors: Tensors) -> tf.Tensor:
    """Return the values of all tensors, one after the other."""
    return tf.concat([tf.zeros([0]), *(tf.reshape(tensor, [-1]) for tensor in tensors)], 0)


def unflatten(values: tf.Tensor, example: Tensors) -> Tensors:
    """Return tensors with the shapes of `example`, from their values one after the other."""
    if not example:
        return []
    parts = tf.split(values, [tf.size(tensor) for tensor in example], num=len(example))
    return [
        tf.ensure_shape(tf.reshape(part, tf.shape(tensor)), tensor.shape)
        for part, tensor in zip(parts, example, strict=True)
    ]
