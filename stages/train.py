"""Train the network on the training set and track its validation loss.

Reads data/processed/train.npz and validation.npz, and `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, and data/model/history.csv, one row
for each epoch. After an interruption, data/checkpoint holds the training up to its last complete
epoch, and the next run resumes from it. This stage never opens the file with the test set.

    python -m stages.train
"""

import sys

from stages.core.errors import StageError, run
from stages.core.files import write_csv
from stages.core.paths import CHECKPOINT, HISTORY, MODEL, TRAIN, VALIDATION
from stages.core.prepared import read_split
from stages.model.settings import ModelParameters, TrainParameters, check_together

FEW_STEPS = 100  # datasets/README.md has the accuracy after fewer steps


def warn_of_few_steps(images: int, parameters: TrainParameters) -> None:
    """Print a warning if the training has too few steps to learn much, and how to get more."""
    steps = parameters.epochs * -(-images // parameters.batch_size)
    if steps < FEW_STEPS:
        print(
            f"warning: {images} training images, train.batch_size {parameters.batch_size} and "
            f"train.epochs {parameters.epochs} make at most {steps} steps in all; fewer than "
            f"{FEW_STEPS} are often too few to learn well: lower train.batch_size, for example to "
            "16, or raise train.epochs",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    """Read the parameters and the data, train, and save."""
    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    check_together(model_parameters, parameters)
    train, validation = read_split(TRAIN), read_split(VALIDATION)
    warn_of_few_steps(len(train[0]), parameters)

    # Imported here because TensorFlow takes seconds to load, and a mistake in the parameters or the
    # data should be reported at once.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    from stages.model import checkpoint, cluster
    from stages.model.storage import save
    from stages.model.training import make_history, train_members

    workers = cluster.find_workers(parameters.replicas)
    configure_tensorflow(len(workers.list_replicas(workers.index, parameters.replicas)))
    origin = checkpoint.describe_origin(model_parameters, parameters)

    def save_epoch(state: checkpoint.State) -> None:
        if workers.index == 0:
            checkpoint.save(origin, state)
            write_csv(HISTORY, make_history(state))  # for users who watch the curves

    with cluster.report_failures(workers):
        workers.connect()
        state = cluster.agree(workers, origin)
        try:
            model, history = train_members(
                model_parameters, parameters, train, validation, state, save_epoch, workers
            )
        except KeyboardInterrupt:
            kept = f"{CHECKPOINT} holds all complete epochs; " if CHECKPOINT.exists() else ""
            raise StageError(f"interrupted; {kept}run `dvc repro` to continue") from None
        if workers.index == 0:
            save(model, parameters.loss, MODEL)
            write_csv(HISTORY, history)
            checkpoint.delete()
        workers.end()


if __name__ == "__main__":
    run(main)
