"""One of several workers of a training. Each computes some of the replicas."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, islice

import keras
import numpy as np
import tensorflow as tf

from stages.cluster.addresses import check_count, read_tf_config
from stages.cluster.transport import Transport
from stages.core.errors import StageError
from stages.core.files import Floats
from stages.model.checkpoint import State, pack, unpack
from stages.model.origin import Origin, find_differences
from stages.model.parallel import DataParallel, Node, Share, Tensors, add_tree, list_outputs
from stages.model.worker import Worker

HOST = "host"  # the key of an origin under which a worker tells its name


def find_worker(replicas: int) -> Worker:
    """Return this worker, as TF_CONFIG describes it. Raises StageError if TF_CONFIG is wrong."""
    addresses, index = read_tf_config(os.environ["TF_CONFIG"])
    count = len(addresses)
    check_count(count, replicas)
    print(f"{count} worker{'s' * (count > 1)}, {replicas} replicas", flush=True)
    return ClusterWorker(Transport(addresses, index), replicas) if count > 1 else Worker(replicas)


class ClusterWorker(Worker):
    """A process that shares a training with other workers."""

    def __init__(self, transport: Transport, replicas: int) -> None:
        """Compute this worker's part of `replicas`. Only worker 0 writes results."""
        super().__init__(replicas)
        self.transport = transport
        self.writes_results = transport.index == 0
        self.local_replicas = list_replicas(transport.index, transport.count, replicas)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Connect the workers, and run the block; worker 0 needs the others no longer after it.

        Raises StageError if another worker no longer answers.
        """
        with self.transport.connect():
            try:
                yield
                with suppress(StageError) if self.writes_results else nullcontext():
                    self.transport.gather_bytes(b"")
            except tf.errors.OpError as error:  # TensorFlow wraps what `exchange` raises
                if not self.transport.failure:
                    raise
                raise StageError(self.transport.failure) from error

    def load_state(self, origin: Origin) -> State:
        """Return the state from which all workers start: that in the checkpoint of worker 0.

        Raises StageError if a worker and worker 0 differ in anything that the result depends on.
        """
        state = super().load_state(origin) if self.writes_results else State()
        host = f"worker {self.transport.index} ({socket.gethostname()})"
        contents = self.transport.gather_bytes(pack(origin | {HOST: host}, state))
        (first, state), *others = [unpack(content) for content in contents]
        for other, _ in others:
            name = other.pop(HOST)
            if differences := find_differences({**other, HOST: first[HOST]}, first):
                raise StageError(f"{name} and {first[HOST]} differ in {differences}")
        return state

    def replicate(self, model: keras.Model) -> DataParallel:
        """Return a copy of `model` that shares its replicas with the other workers."""
        return ClusterModel(model, self.replicas, self.transport)


class ClusterModel(DataParallel):
    """A network whose replicas are computed by several workers."""

    def __init__(self, model: keras.Model, replicas: int, transport: Transport) -> None:
        """Copy `model` with its weights."""
        super().__init__(model, replicas)
        self.transport = transport
        self.local_replicas = list_replicas(transport.index, transport.count, replicas)

    def gather(
        self, shares: dict[int, Share], count: tf.Tensor
    ) -> tuple[list[Tensors], list[Tensors], Tensors]:
        """Return the outputs and averages of all replicas, and the sum of all gradients.

        Each worker adds the gradients of its replicas as far as the tree allows. Then all exchange
        everything at once. Outputs are padded to equal numbers of rows.
        """
        rows = (count + self.replicas - 1) // self.replicas
        results = []
        for share in shares.values():
            outputs = list_outputs(share.outputs)
            padded = [tf.pad(each, [[0, rows - tf.shape(each)[0]], [0, 0]]) for each in outputs]
            results.append(padded + share.averages)
        leaves = {(replica, replica + 1): share.gradients for replica, share in shares.items()}
        own = find_largest_nodes(self.local_replicas, (0, self.replicas))
        sums = [add_tree(leaves, node) for node in own]

        parts = []  # of what each worker sends: its replicas, its nodes, and examples of tensors
        for worker in range(self.transport.count):
            replicas = list_replicas(worker, self.transport.count, self.replicas)
            nodes = find_largest_nodes(replicas, (0, self.replicas))
            parts.append((replicas, nodes, results[0] * len(replicas) + sums[0] * len(nodes)))
        vector = tf.concat([tf.reshape(each, [-1]) for each in chain(*results, *sums)], 0)
        received = tf.numpy_function(self.exchange, [vector], tf.float32)
        tensors = iter(unflatten(received, [each for *_, examples in parts for each in examples]))
        every: list[Tensors] = []
        tree: dict[Node, Tensors] = {}
        for replicas, nodes, _ in parts:
            every += [[*islice(tensors, len(results[0]))] for _ in replicas]
            tree |= {node: [*islice(tensors, len(sums[0]))] for node in nodes}
        shapes = zip(every, self.find_bounds(count), strict=True)
        return (
            [[tensor[: j - i] for tensor in result[: len(outputs)]] for result, (i, j) in shapes],
            [result[len(outputs) :] for result in every],
            add_tree(tree, (0, self.replicas)),
        )

    def exchange(self, values: Floats) -> Floats:
        """Return the values (n,) of all workers, one after the other."""
        return np.frombuffer(b"".join(self.transport.gather_bytes(values.tobytes())), np.float32)


def unflatten(values: tf.Tensor, examples: Tensors) -> Tensors:
    """Return tensors with the shapes of `examples`, which contain `values` in this order."""
    sizes = [tf.size(tensor) for tensor in examples]
    return [
        tf.ensure_shape(tf.reshape(part, tf.shape(tensor)), tensor.shape)
        for part, tensor in zip(tf.split(values, sizes, num=len(sizes)), examples, strict=True)
    ]


def list_replicas(worker: int, workers: int, replicas: int) -> range:
    """Return the replicas that one of several workers computes."""
    return range(worker * replicas // workers, (worker + 1) * replicas // workers)


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
