"""Train the network on the training set and track its validation loss.

Reads data/processed/train.npz and validation.npz, and `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, data/model/history.csv, one row for
each epoch, and data/model/trace.csv, hashes that tell where two trainings depart. After an
interruption, data/checkpoint holds the training up to its last complete epoch, and the next run
resumes from it. This stage never opens the file with the test set.

    python -m stages.train
"""

from __future__ import annotations

import gc
import math
import os
import sys
from typing import TYPE_CHECKING

from stages.core.errors import StageError, run
from stages.core.files import write_csv
from stages.core.paths import CHECKPOINT, HISTORY, MODEL, TRACE, TRAIN, VALIDATION
from stages.core.prepared import Split, read_split
from stages.model.settings import ModelParameters, TrainParameters, check_together

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

    from stages.model.checkpoint import State
    from stages.model.parallel import DataParallel
    from stages.model.worker import Worker

FEW_STEPS = 100  # datasets/README.md has the accuracy after fewer steps


def warn_of_few_steps(images: int, train: TrainParameters) -> None:
    """Print a warning if the training has too few steps to learn much, and how to get more."""
    steps = train.epochs * math.ceil(images / train.batch_size)
    if steps < FEW_STEPS:
        print(
            f"warning: {images} training images, train.batch_size {train.batch_size} and "
            f"train.epochs {train.epochs} make at most {steps} steps in all; fewer than "
            f"{FEW_STEPS} are often too few to learn well: lower train.batch_size, for example to "
            "16, or raise train.epochs",
            file=sys.stderr,
            flush=True,
        )


def find_worker(replicas: int) -> Worker:
    """Return this process, which trains alone unless TF_CONFIG names other workers."""
    if os.environ.get("TF_CONFIG"):
        from stages.cluster.worker import find_worker

        return find_worker(replicas)
    from stages.model.worker import Worker

    return Worker(replicas)


def train_network(
    network: DataParallel,
    training: Split,
    validation: Split,
    train: TrainParameters,
    state: State,
    save: Callable[[State], object] = lambda _: None,
    name: str = "",
) -> None:
    """Choose a loss and an optimizer, and fit `network` in place; it has a `name` in an ensemble.

    The training resumes from `state`, and calls `save` with the new state after each epoch.
    """
    from stages.model.optimizer import make_optimizer
    from stages.model.training import fit, make_loss, make_metrics, plan_steps

    steps = plan_steps(network, len(training[0]), train)
    network.compile(
        make_optimizer(train, steps),
        make_loss(train),
        make_metrics(train),
        train.auxiliary_weight,
    )
    fit(network, training, validation, train, steps, state, save, name)


def train_members(
    model: ModelParameters,
    train: TrainParameters,
    training: Split,
    validation: Split,
    replicate: Callable[[keras.Model], DataParallel],
    state: State,
    save: Callable[[State], object] = lambda _: None,
) -> keras.Model:
    """Train every member of the ensemble, and return their average.

    Each member has its own seeds. `replicate` returns the copy of a member that is trained. Members
    that are finished in `state` are not trained again.
    """
    from stages.model.architectures import build
    from stages.model.calibration import calibrate
    from stages.model.ensemble import average_members, average_over_shifts

    shape, classes = training[0].shape[1:], training[1].shape[1]
    members = []
    for number in range(model.members):
        member = build(model.for_member(number), shape, classes)
        members.append(member)
        if number == 0:
            member.summary()
        if number < len(state.finished):
            member.set_weights(state.finished[number])
            continue
        network = replicate(member)
        name = f"member {number + 1} of {model.members}" if model.members > 1 else ""
        train_network(network, training, validation, train.for_member(number), state, save, name)
        if train.label_smoothing:
            calibrate(network, *validation, train.batch_size)
        member.set_weights(network.get_weights())
        state.finish_member(member.get_weights())
        # The network and its optimizer refer to each other, so only gc frees them.
        del network
        gc.collect()
    trained = average_members(members)
    return average_over_shifts(trained) if model.test_time_augmentation else trained


def main() -> None:
    """Read the parameters and the data, train, and save."""
    model, train = ModelParameters.read(), TrainParameters.read()
    check_together(model, train)
    training, validation = read_split(TRAIN), read_split(VALIDATION)
    warn_of_few_steps(len(training[0]), train)

    # Imported here because TensorFlow takes seconds to load, and a mistake in the parameters or the
    # data should be reported at once.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    from stages.model import checkpoint, storage
    from stages.model.origin import describe_origin
    from stages.model.trace import make_trace
    from stages.model.training import make_history

    worker = find_worker(train.replicas)
    configure_tensorflow(len(worker.local_replicas))
    origin = describe_origin(model, train)

    def save_epoch(state: State) -> None:
        if worker.writes_results:
            checkpoint.save(origin, state)
            write_csv(HISTORY, make_history(state))  # for users who watch the curves

    with worker.run():
        state = worker.load_state(origin)
        try:
            trained = train_members(
                model, train, training, validation, worker.replicate, state, save_epoch
            )
        except KeyboardInterrupt:
            kept = f"{CHECKPOINT} holds all complete epochs; " if CHECKPOINT.exists() else ""
            raise StageError(f"interrupted; {kept}run `dvc repro` to continue") from None
        if worker.writes_results:
            storage.save(trained, train.loss, MODEL)
            write_csv(HISTORY, make_history(state))
            write_csv(TRACE, make_trace(state))
            checkpoint.delete()


if __name__ == "__main__":
    run(main)
