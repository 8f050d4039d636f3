"""Train the network on the training digits, watched on the validation digits.

Reads data/processed/{train,validation}.npz, `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, and data/model/history.csv, a row an
epoch. The test digits are in a file that this stage does not open.

    python -m stages.train
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import read_digits, write_csv
from stages.hyperparameters import ModelParameters, TrainParameters
from stages.parameters import run

if TYPE_CHECKING:  # TensorFlow takes seconds to load, and a mistake below should not wait for it
    import keras
    import pandas as pd

    from stages.fit import Split

PROCESSED = Path("data/processed")
MODEL = Path("data/model")


def trained(
    model_parameters: ModelParameters, parameters: TrainParameters, train: Split, validation: Split
) -> tuple[keras.Model, pd.DataFrame]:
    """Return the network that the parameters describe, fitted, and its history, a row an epoch."""
    from stages import network
    from stages.fit import fit

    images, labels = train
    model = network.build(model_parameters, images.shape[1:], labels.shape[1])
    model.summary()
    twin = network.portable(model)
    history = fit(twin, train, validation, parameters)
    model.set_weights(twin.get_weights())
    return model, history


def main() -> None:
    """Build, fit and save the network."""
    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    train = read_digits(PROCESSED / "train.npz")
    validation = read_digits(PROCESSED / "validation.npz")

    from stages import network, runtime

    runtime.settle(parameters.threads)
    model, history = trained(model_parameters, parameters, train, validation)
    network.save(model, parameters.loss, MODEL / "model.keras")
    write_csv(MODEL / "history.csv", history)


if __name__ == "__main__":
    run(main)
