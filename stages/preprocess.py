"""Normalise the raw images and split them into a training, a validation and a test set.

Reads data/raw and `preprocess` in params.yaml. Writes data/processed/{train,validation,test}.npz,
each with images (n, height, width) or, in colour, (n, height, width, 3) float32 in [0, 1], and
labels (n, classes) float32 one-hot.

    python -m stages.preprocess
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from sklearn.model_selection import train_test_split

from stages.core.dataset import read_classes
from stages.core.errors import StageError, run
from stages.core.files import Bytes, Floats, Pieces, split_into_pieces, write_npz
from stages.core.paths import DATASET, PROCESSED, RAW
from stages.core.settings import Section
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

Indices = npt.NDArray[np.int32]


class PreprocessParameters(Section):
    """How the raw training images are split into a training and a validation set."""

    section: ClassVar = "preprocess"

    validation_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=2**32)
    stratify: bool


def read_raw(images_path: Path, labels_path: Path, classes: int) -> tuple[Bytes, Bytes]:
    """Return images (n, height, width), or (n, height, width, 3), and labels (n,), both uint8.

    Raises StageError if a file is missing or damaged, or if the two do not match.
    """
    images, labels = idx.read(images_path, idx.IMAGES), idx.read(labels_path, 1)
    if images.size == 0:
        raise StageError(f"{images_path}: holds no pixels: its shape is {images.shape}")
    if len(images) != len(labels):
        raise StageError(f"{labels_path}: expected {len(images)} labels, found {len(labels)}")
    if labels.max() >= classes:
        raise StageError(f"{labels_path}: expected labels below {classes}, found {labels.max()}")
    return images, labels


def split(labels: Bytes, parameters: PreprocessParameters, classes: int) -> tuple[Indices, Indices]:
    """Return the indices of the training and of the validation images, in random order.

    Raises StageError if a class would have no image in one of the two sets.
    """
    fraction = parameters.validation_fraction
    try:
        train, validation = train_test_split(
            np.arange(len(labels), dtype=np.int32),
            test_size=fraction,
            random_state=parameters.seed,
            stratify=labels if parameters.stratify else None,
        )
    except ValueError as error:
        raise StageError(f"preprocess.validation_fraction is {fraction}: {error}") from error
    for name, indices in (("training", train), ("validation", validation)):
        counts = np.bincount(labels[indices], minlength=classes)
        if not counts.all():
            raise StageError(
                f"preprocess.validation_fraction is {fraction}: after the split of {len(labels)} "
                f"images, the {name} set has no image of class {int(counts.argmin())}; "
                "change the fraction, or add images"
            )
    return train, validation


def normalise(images: Bytes) -> Floats:
    """Return pixels from [0, 255] as float32 in [0, 1]."""
    return np.divide(images, np.float32(255), dtype=np.float32)


def one_hot(labels: Bytes, classes: int) -> Floats:
    """Return labels (n,) as rows (n, classes) float32 with a single 1 each."""
    return np.eye(classes, dtype=np.float32)[labels]


def write_split(name: str, images: Bytes, labels: Bytes, indices: Indices, classes: int) -> None:
    """Write the images and labels at `indices` as a prepared split, piece by piece."""
    shape = images.shape[1:]
    pieces = [indices[piece] for piece in split_into_pieces((len(indices), *shape))]
    arrays = {
        "images": Pieces(
            (len(indices), *shape), np.float32, (normalise(images[piece]) for piece in pieces)
        ),
        "labels": Pieces(
            (len(indices), classes),
            np.float32,
            (one_hot(labels[piece], classes) for piece in pieces),
        ),
    }
    write_npz(PROCESSED / f"{name}.npz", arrays)
    print(f"{name}: {len(indices)} images of {shape} pixels")


def main() -> None:
    """Write the three splits."""
    parameters = PreprocessParameters.read()
    classes = len(read_classes(DATASET))
    images, labels = read_raw(RAW / TRAIN_IMAGES, RAW / TRAIN_LABELS, classes)
    test_images, test_labels = read_raw(RAW / TEST_IMAGES, RAW / TEST_LABELS, classes)
    if images.shape[1:] != test_images.shape[1:]:
        raise StageError(
            f"{RAW / TEST_IMAGES}: expected images of {images.shape[1:]} as in {TRAIN_IMAGES}, "
            f"found {test_images.shape[1:]}"
        )
    train, validation = split(labels, parameters, classes)
    every = np.arange(len(test_labels), dtype=np.int32)
    write_split("train", images, labels, train, classes)
    write_split("validation", images, labels, validation, classes)
    write_split("test", test_images, test_labels, every, classes)


if __name__ == "__main__":
    run(main)
