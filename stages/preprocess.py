"""Turn the raw digits into normalised arrays: one split each for training, validation and testing.

Reads data/raw and `preprocess` in params.yaml. Writes data/processed/{train,validation,test}.npz,
each with images (n, height, width) float32 in [0, 1] and labels (n, classes) float32 one-hot.

    python -m stages.preprocess
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from sklearn.model_selection import train_test_split

from stages.core.errors import StageError, run
from stages.core.files import write_npz
from stages.core.paths import DATASET, PROCESSED, RAW
from stages.core.prepared import read_classes
from stages.core.settings import Section
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class PreprocessParameters(Section):
    """How the validation digits are split off the training digits."""

    section: ClassVar = "preprocess"

    validation_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=2**32)
    stratify: bool


def read_raw(images_path: Path, labels_path: Path, classes: int) -> tuple[Bytes, Bytes]:
    """Return images (n, height, width) and labels (n,) in [0, classes), both uint8.

    Raises StageError where a file is damaged or the two do not belong together.
    """
    images, labels = idx.read(images_path, 3), idx.read(labels_path, 1)
    if images.size == 0:
        raise StageError(f"{images_path}: holds no pixels, its shape is {images.shape}")
    if len(images) != len(labels):
        raise StageError(f"{labels_path}: expected {len(images)} labels, found {len(labels)}")
    if labels.max() >= classes:
        raise StageError(f"{labels_path}: expected labels below {classes}, found {labels.max()}")
    return images, labels


def split(labels: Bytes, parameters: PreprocessParameters, classes: int) -> tuple[Indices, Indices]:
    """Return the indices of the training and the validation digits, in shuffled order.

    Raises StageError where the split would leave a set, or a class of a set, empty.
    """
    fraction = parameters.validation_fraction
    try:
        train, validation = train_test_split(
            np.arange(len(labels)),
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
                f"preprocess.validation_fraction is {fraction}: of {len(labels)} digits, no "
                f"{name} digit is of class {int(counts.argmin())}"
            )
    return train, validation


def normalise(images: Bytes) -> Floats:
    """Return pixels from [0, 255] as float32 in [0, 1]."""
    return np.divide(images, np.float32(255), dtype=np.float32)


def one_hot(labels: Bytes, classes: int) -> Floats:
    """Return class indices (n,) as rows (n, classes) float32 with a single 1."""
    return np.eye(classes, dtype=np.float32)[labels]


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
    for name, subset_images, subset_labels in (
        ("train", images[train], labels[train]),
        ("validation", images[validation], labels[validation]),
        ("test", test_images, test_labels),
    ):
        arrays = {
            "images": normalise(subset_images),
            "labels": one_hot(subset_labels, classes),
        }
        write_npz(PROCESSED / f"{name}.npz", arrays)
        print(f"{name}: {len(subset_labels)} images of {subset_images.shape[1:]} pixels")


if __name__ == "__main__":
    run(main)
