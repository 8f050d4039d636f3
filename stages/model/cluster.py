"""Train on several workers, which TF_CONFIG names, and get the same bytes as on one.

TensorFlow carries the tensors, with collective operations over gRPC. This module only
exchanges tensors; parallel.py decides which worker computes what.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import tensorflow as tf

from stages.core.errors import StageError
from stages.model.addresses import accept_only, answers, check_count, read_tf_config
from stages.model.checkpoint import Origin, State, find_differences, load, pack, unpack
from stages.model.parallel import Group, Tensors, Workers
from stages.model.rendezvous import name_workers, wait_for_all, watch_connecting

GROUP_KEY = 2222  # TensorFlow's number for this group of workers; it uses small numbers itself
HOST = "host"  # the key of an origin under which a worker tells its name


def find_workers(replicas: int) -> Workers:
    """Return the workers that TF_CONFIG names, not yet connected, or a single worker.

    Raises StageError if TF_CONFIG is wrong.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Workers()
    addresses, index = read_tf_config(text)
    count = len(addresses)
    check_count(count, replicas)
    print(f"{count} worker{'s' * (count > 1)}, {replicas} replicas", flush=True)
    return Cluster(addresses, index) if count > 1 else Workers()


class Cluster(Workers):
    """Several workers, connected by TensorFlow's collective operations."""

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

    def end(self) -> None:
        """End this process after all workers have done their part; worker 0 ends last.

        The interpreter is not shut down in the usual way, because TensorFlow's server crashes then.
        """
        # Worker 0 has saved the result, which needs no other worker any more.
        with suppress(tf.errors.OpError) if self.index == 0 else nullcontext():
            self.exchange_bytes(b"")
        others = [address for address in self.addresses if address != self.addresses[self.index]]
        deadline = time.monotonic() + 10
        while self.index == 0 and any(map(answers, others)) and time.monotonic() < deadline:
            time.sleep(0.1)
        sys.stdout.flush()
        os._exit(0)

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


def agree(workers: Workers, origin: Origin) -> State:
    """Return the state from which all workers start: that in the checkpoint of worker 0.

    Raises StageError if the result of a worker would depend on anything else than that of worker 0.
    """
    state = load(origin) if workers.index == 0 else State()
    host = f"worker {workers.index} ({socket.gethostname()})"
    contents = workers.exchange_bytes(pack(origin | {HOST: host}, state))
    (first, state), *others = [unpack(content) for content in contents]
    for other, _ in others:
        name = other.pop(HOST)
        if differences := find_differences({**other, HOST: first[HOST]}, first):
            raise StageError(f"{name} has other {differences} than {first[HOST]}")
    return state


@contextmanager
def report_failures(workers: Workers) -> Iterator[None]:
    """End the process with one line if several workers cannot go on, and name the one that ended.

    A single worker's exceptions are not changed. With several, the interpreter is not shut down in
    the usual way, because TensorFlow's server crashes then.
    """
    try:
        yield
    except (StageError, OSError, KeyboardInterrupt, tf.errors.OpError) as error:
        if not isinstance(workers, Cluster):
            raise
        message = str(error) or "interrupted"
        if isinstance(error, tf.errors.OpError):
            message = name_failure(error, workers)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)


def name_failure(error: Exception, workers: Cluster) -> str:
    """Return a line that names the worker whose end caused an error of TensorFlow."""
    # Errors are passed on from worker to worker; the last one named is where they began.
    named = [int(number) for number in re.findall(r"replica:0/task:(\d+)", str(error))]
    gone = [number for number in named if number != workers.index][-1:] or [
        number for number, address in enumerate(workers.addresses) if not answers(address)
    ]
    names = name_workers(workers.addresses, gone)
    return f"{names} no longer answers" if gone else " ".join(str(error).split())
