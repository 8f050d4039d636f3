"""The trained model and how to prepare an image for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stages.core.errors import StageError
from stages.core.files import read_json
from stages.core.paths import DATASET, LOCK, MODEL, RAW
from stages.core.prepared import read_classes
from stages.evaluate import EvaluateParameters
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES
from tools.predict import picture
from tools.predict.picture import Floats, Look
from tools.verify.lockfile import compute_md5, list_files, read_lock

LOOKED_AT = 1000  # training images that show how all of them look

Ranking = list[tuple[str, float]]  # class names and their probabilities, likeliest first


@dataclass(frozen=True)
class Classifier:
    """The trained network, and how to bring a picture to it."""

    title: str  # of the dataset it was trained on
    classes: list[str]
    prepare: Callable[[Floats], Floats]  # from (height, width, 3) to the network's (height, width)
    probabilities: Callable[[Floats], Floats]  # from (n, height, width) to (n, classes)

    def rank(self, images: Floats) -> list[Ranking]:
        """Return every class and its probability for each of the prepared images."""
        return [
            sorted(zip(self.classes, shares, strict=True), key=lambda entry: -entry[1])
            for shares in self.probabilities(images).tolist()
        ]


def load_classifier() -> Classifier:
    """Return the model in data/model, which computes as in the evaluate stage.

    Warns where it is not the one that dvc.lock records; raises StageError where there is none, or
    one of another dataset.
    """
    if not MODEL.exists():
        raise StageError(f"{MODEL}: not found; run `make repro` to train it")
    parameters, classes = EvaluateParameters.read(), read_classes(DATASET)
    look = Look.of(idx.read(RAW / TRAIN_IMAGES, 3, LOOKED_AT), classes)
    recorded = list_files(read_lock() if LOCK.exists() else {}, "outs").get(MODEL.as_posix())
    if recorded is None or recorded.md5 != compute_md5(MODEL):
        print(f"warning: {MODEL} is not the model that {LOCK} records", file=sys.stderr)

    # Only now, since TensorFlow takes seconds to load and a mistake above should not wait for it.
    from stages.model import portable, runtime, storage

    runtime.configure_tensorflow(parameters.threads)
    model = storage.load(MODEL)
    twin = portable.make_portable(model, parameters.threads)
    fits = (model.inputs[0].shape[1:], model.outputs[0].shape[1])
    if fits != (look.shape, len(classes)):
        raise StageError(
            f"{MODEL}: was trained on {fits[1]} classes of {fits[0]} pixels, but {RAW} holds "
            f"{len(classes)} of {look.shape}; run `make repro` to train one that fits"
        )

    prepare = partial(picture.prepare, look=look)
    probabilities = partial(twin.probabilities, batch_size=parameters.batch_size)
    return Classifier(read_json(DATASET).get("title", "images"), classes, prepare, probabilities)
