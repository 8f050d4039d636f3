"""Train the network on the training set and track its validation loss.

Reads data/processed/train.npz and validation.npz, and `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, and data/model/history.csv, one row
for each epoch. This stage never opens the file with the test set.

    python -m stages.train
"""

from stages.core.errors import run
from stages.core.files import write_csv
from stages.core.paths import HISTORY, MODEL, TRAIN, VALIDATION
from stages.core.prepared import read_split
from stages.model.settings import ModelParameters, TrainParameters, check_together


def main() -> None:
    """Read the parameters and the data, train, and save."""
    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    check_together(model_parameters, parameters)
    splits = [read_split(path) for path in (TRAIN, VALIDATION)]

    # Imported here because TensorFlow takes seconds to load, and a mistake in the parameters or the
    # data should be reported at once.
    from stages.model.runtime import configure_tensorflow
    from stages.model.storage import save
    from stages.model.training import train_members

    configure_tensorflow(parameters.replicas)
    # pop, so that the arrays are freed as soon as TensorFlow has its own copy.
    model, history = train_members(model_parameters, parameters, splits.pop(0), splits.pop(0))
    save(model, parameters.loss, MODEL)
    write_csv(HISTORY, history)


if __name__ == "__main__":
    run(main)
