"""Train the network on the training digits, watched on the validation digits.

Reads data/processed/{train,validation}.npz, `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, and data/model/history.csv, a row an
epoch. The test digits are in a file that this stage does not open.

    python -m stages.train
"""

from pathlib import Path

from stages.artifacts import read_digits, write_csv
from stages.hyperparameters import ModelParameters, TrainParameters
from stages.parameters import run

PROCESSED = Path("data/processed")
MODEL = Path("data/model")


def main() -> None:
    """Build, fit and save the network."""
    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    train = read_digits(PROCESSED / "train.npz")
    validation = read_digits(PROCESSED / "validation.npz")

    # Only now, since TensorFlow takes seconds to load and a mistake above should not wait for it.
    from stages import network, runtime
    from stages.fit import fit

    runtime.settle(parameters.threads)
    images, labels = train
    model = network.build(model_parameters, images.shape[1:], labels.shape[1])
    model.summary()
    twin = network.portable(model)
    history = fit(twin, train, validation, parameters)
    model.set_weights(twin.get_weights())
    network.save(model, parameters.loss, MODEL / "model.keras")
    write_csv(MODEL / "history.csv", history)


if __name__ == "__main__":
    run(main)
