"""The process that runs a training."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from stages.model import checkpoint
from stages.model.checkpoint import State
from stages.model.origin import Origin
from stages.model.parallel import DataParallel


class Worker:
    """A process that trains by itself. A subclass can share the work with other processes."""

    writes_results = True

    def __init__(self, replicas: int) -> None:
        """Compute all `replicas`."""
        self.replicas = replicas
        self.local_replicas = range(replicas)  # those that this process computes

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run the training, which is the block of the `with` statement."""
        yield

    def load_state(self, origin: Origin) -> State:
        """Return the state in which the training starts."""
        return checkpoint.load(origin)

    def replicate(self, model: keras.Model) -> DataParallel:
        """Return a copy of `model` to train and to predict with."""
        return DataParallel(model, self.replicas)
