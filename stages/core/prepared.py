"""Read the prepared splits and the class names, and check that they are what training expects.

A split is an `.npz` file that the stage preprocess writes. It holds two arrays of n images and
their labels:

    images    (n, height, width)    float32    pixels in [0, 1]; 0 is the background
    labels    (n, classes)          float32    one-hot: a single 1 in each row
"""

import zipfile
from pathlib import Path

import numpy as np

from stages.core.errors import StageError
from stages.core.files import Array, Floats, read_json, reject_zip_bombs


def read_member(archive: zipfile.ZipFile, name: str) -> Array:
    """Return one array of an `.npz`. Arrays of Python objects, which are pickles, are refused."""
    with archive.open(name) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def read_classes(path: Path) -> list[str]:
    """Return the class names, by label, from the dataset.json that the stage download writes."""
    content = read_json(path)
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise StageError(f"{path}: expected a list of class names under 'classes'")
    return classes


def read_split(path: Path) -> tuple[Floats, Floats]:
    """Return the images and labels of a prepared split.

    Raises StageError if the file is missing or damaged, or holds anything but a prepared split.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # np.load leaves damaged files open
            reject_zip_bombs(archive, path)
            images, labels = (read_member(archive, f"{name}.npy") for name in ("images", "labels"))
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to create it") from None
    except KeyError as error:
        raise StageError(f"{path}: expected the arrays images and labels: {error}") from error
    except Exception as error:  # zipfile and NumPy raise many types for damaged files
        raise StageError(
            f"{path}: not a readable .npz: {error}; delete it and run `dvc repro`"
        ) from error
    check_split(path, images, labels)
    return images, labels


def check_split(path: Path, images: Array, labels: Array) -> None:
    """Raise StageError unless `images` and `labels` have a prepared split's types and values."""

    def expect(condition: bool, expected: str, found: object) -> None:
        if not condition:
            raise StageError(f"{path}: expected {expected}, found {found}")

    for name, array, dimensions in (("images", images, 3), ("labels", labels, 2)):
        found = f"{array.dtype} of shape {array.shape}"
        expect(array.dtype == np.float32, f"{name} as float32", found)
        expect(array.ndim == dimensions, f"{name} with {dimensions} dimensions", found)
    expect(images.size > 0, "at least one image", f"shape {images.shape}")
    expect(len(images) == len(labels), f"{len(images)} labels", len(labels))
    low, high = images.min(), images.max()  # NaN fails the comparison below
    expect(bool(low >= 0 and high <= 1), "pixels in [0, 1]", f"[{low}, {high}]")
    one_hot = (np.count_nonzero(labels, axis=1) == 1) & ((labels == 1).sum(axis=1) == 1)
    expect(bool(one_hot.all()), "one-hot labels", "a row that is not one-hot")
