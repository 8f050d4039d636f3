"""One of several workers of a training. Each computes some of the replicas."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import keras
import tensorflow as tf

from stages.cluster.addresses import check_count, read_tf_config
from stages.cluster.failures import end_process, find_silent
from stages.cluster.transport import Group, Transport
from stages.core.errors import StageError
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
        """Connect the workers, run the block, and end this process; worker 0 ends last.

        So nothing runs after the `with` statement.
        """
        addresses, index = self.transport.addresses, self.transport.index
        with end_process(addresses, index):
            self.transport.connect()
            yield
            # Worker 0 has saved the result, and needs no other worker any more.
            with suppress(tf.errors.OpError) if index == 0 else nullcontext():
                self.transport.exchange_bytes(b"")
            deadline = time.monotonic() + 10
            while index == 0 and time.monotonic() < deadline:
                if len(find_silent(addresses, index)) == len(addresses) - 1:
                    break
                time.sleep(0.1)

    def load_state(self, origin: Origin) -> State:
        """Return the state from which all workers start: that in the checkpoint of worker 0.

        Raises StageError if the result of a worker would depend on anything else than that of
        worker 0.
        """
        state = super().load_state(origin) if self.writes_results else State()
        host = f"worker {self.transport.index} ({socket.gethostname()})"
        contents = self.transport.exchange_bytes(pack(origin | {HOST: host}, state))
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
        self.local_replicas = self.list_replicas(transport.index)

    def list_replicas(self, worker: int) -> range:
        """Return the replicas that a worker computes."""
        return list_replicas(worker, self.transport.count, self.replicas)

    def list_nodes(self, worker: int) -> list[Node]:
        """Return the nodes of the binary tree at which a worker adds its gradients."""
        return find_largest_nodes(self.list_replicas(worker), (0, self.replicas))

    def gather(
        self, shares: dict[int, Share], count: tf.Tensor
    ) -> tuple[list[Tensors], list[Tensors], Tensors]:
        """Return the outputs and averages of all replicas, and the sum of all gradients.

        All workers exchange everything at once. Outputs are padded to equal shapes for that.
        """
        rows = (count + self.replicas - 1) // self.replicas
        outputs = {
            replica: [
                tf.pad(tensor, [[0, rows - tf.shape(tensor)[0]], [0, 0]])
                for tensor in list_outputs(share.outputs)
            ]
            for replica, share in shares.items()
        }
        averages = {replica: share.averages for replica, share in shares.items()}
        leaves = {(replica, replica + 1): share.gradients for replica, share in shares.items()}
        sums = {node: add_tree(leaves, node) for node in self.list_nodes(self.transport.index)}
        outputs, averages, sums = self.transport.exchange(
            Group(outputs, self.list_replicas),
            Group(averages, self.list_replicas),
            Group(sums, self.list_nodes),
        )
        bounds = enumerate(self.find_bounds(count))
        return (
            [[tensor[: stop - start] for tensor in outputs[i]] for i, (start, stop) in bounds],
            [averages[replica] for replica in range(self.replicas)],
            add_tree(sums, (0, self.replicas)),
        )


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
