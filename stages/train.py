"""Train the network on the training digits, watched on the validation digits.

Reads data/processed/{train,validation}.npz, `model` and `train` in params.yaml. Writes
data/model/model.keras, which `keras.models.load_model` opens, and data/model/history.csv, a row an
epoch. The test digits are in a file that this stage does not open.

    python -m stages.train
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd

from stages.core.errors import run
from stages.core.files import write_csv
from stages.core.paths import HISTORY, MODEL, TRAIN, VALIDATION
from stages.core.prepared import read_split
from stages.model.settings import ModelParameters, TrainParameters, check_together

if TYPE_CHECKING:
    import keras

    from stages.model.training import Split

# What Keras loads where it is installed, for features that are not used here: more than a second.
UNUSED: Any = {"matplotlib": None, "sklearn": None}


def trained(
    model_parameters: ModelParameters, parameters: TrainParameters, train: Split, validation: Split
) -> tuple[keras.Model, pd.DataFrame]:
    """Return the trained network and its history, whose columns stages.fit.fit describes.

    Each of several members has seeds of its own; the history is the mean of theirs.
    """
    # Only now, since TensorFlow takes seconds to load and a mistake in the parameters or the arrays
    # should not wait for it.
    import tensorflow as tf

    from stages.model import architectures, calibration, ensemble, portable, runtime
    from stages.model.training import fit

    runtime.configure_tensorflow(parameters.replicas)
    images, labels = train
    shape, classes = images.shape[1:], labels.shape[1]
    # TensorFlow's copy serves all members; the arrays, which nobody else holds, make room.
    train = tf.constant(images), tf.constant(labels)
    del images, labels
    members, histories = [], []
    for number in range(model_parameters.members):
        model = architectures.build(model_parameters.of_member(number), shape, classes)
        if number == 0:
            model.summary()
        if model_parameters.members > 1:
            print(f"Member {number + 1} of {model_parameters.members}", flush=True)
        twin = portable.make_portable(model, parameters.replicas)
        histories.append(fit(twin, train, validation, parameters.of_member(number)))
        if parameters.label_smoothing:
            calibration.calibrate(twin, *validation, parameters.batch_size)
        model.set_weights(twin.get_weights())
        members.append(model)
        # The twin and its optimizer, which refer to each other.
        del twin
        gc.collect()
    history = pd.concat(histories).groupby("epoch").mean().reset_index().astype({"chosen": int})
    model = ensemble.average_members(members)
    if model_parameters.test_time_augmentation:
        model = ensemble.average_over_shifts(model)
    return model, history


def main() -> None:
    """Read, train and save."""
    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    check_together(model_parameters, parameters)
    model, history = trained(
        model_parameters,
        parameters,
        read_split(TRAIN),
        read_split(VALIDATION),
    )

    from stages.model import storage

    storage.save(model, parameters.loss, MODEL)
    write_csv(HISTORY, history)


if __name__ == "__main__":
    sys.modules.update(UNUSED)
    run(main)
