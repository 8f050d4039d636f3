"""Exchange tensors between workers, with TensorFlow's collective operations over gRPC."""

import numpy as np
import tensorflow as tf

from stages.cluster.failures import watch_connecting
from stages.cluster.rendezvous import wait_for_all
from stages.model.parallel import Tensors

GROUP_KEY = 2222  # TensorFlow's number for this group of workers; it uses small numbers itself


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
            self._gather = tf.function(self.gather, autograph=False, reduce_retracing=True)
            # When the second gather ends, all workers have ended the first, and need no other
            # connections any more.
            for _ in range(2):
                self._gather(tf.zeros(1))

    def gather(self, tensor: tf.Tensor) -> tf.Tensor:
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

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Return the `content` of every worker, in their order."""
        lengths = self._gather(tf.constant([len(content)], tf.int64)).numpy()[:, 0]
        padded = content.ljust(int(lengths.max() + 8) // 8 * 8, b"\0")
        received = self._gather(tf.constant(np.frombuffer(padded, np.int64))).numpy()
        return [row.tobytes()[:length] for row, length in zip(received, lengths, strict=True)]


def flatten(tensors: Tensors) -> tf.Tensor:
    """Return the values of all tensors, one after the other."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def unflatten(values: tf.Tensor, examples: Tensors) -> Tensors:
    """Return tensors with the shapes of `examples`, from the first of `values`."""
    sizes = [tf.size(tensor) for tensor in examples]
    parts = tf.split(values[: tf.add_n(sizes)], sizes, num=len(examples))
    return [
        tf.ensure_shape(tf.reshape(part, tf.shape(tensor)), tensor.shape)
        for part, tensor in zip(parts, examples, strict=True)
    ]
