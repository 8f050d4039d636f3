"""Sources that need no network: a local folder, and the digits that scikit-learn contains."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.sources import idx
from stages.sources.arrays import find_idx_files
from stages.sources.catalogue import TEST_IMAGES, TRAIN_IMAGES, IdxFile
from stages.sources.fetch import SourceError
from stages.sources.folder import hint_at


@contextmanager
def open_local(folder: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open an IDX file, in one of its usual spellings, in a local folder."""
    if not folder.is_dir():
        raise SourceError("is not a folder" if folder.exists() else "there is no such folder")
    found = find_idx_files(folder, file.name)
    if not found:
        raise SourceError(f"has no {file.name}, plain or with .gz{hint_at(folder)}")
    try:
        stream = found[0].open("rb")
    except OSError as error:
        raise SourceError(f"{found[0].name} cannot be opened: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def open_digits(file: IdxFile) -> Iterator[BinaryIO]:
    """Open one IDX file made from scikit-learn's 1,797 digits. The last 297 are the test set.

    Their pixels from 0 to 16 are scaled to 0 to 255 with integer arithmetic. Each of the 8x8 pixels
    becomes a square of 3x3 pixels, and a margin of 2 pixels on every side makes 28x28.
    """
    from sklearn.datasets import load_digits  # here, because only this dataset needs it

    part = slice(None, 1500) if file.name.startswith("train") else slice(1500, None)
    images, labels = load_digits(return_X_y=True)
    if file.name in (TRAIN_IMAGES, TEST_IMAGES):
        small = images[part].reshape(-1, 8, 8).astype("uint16") * 255 // 16
        array = small.repeat(3, axis=1).repeat(3, axis=2).astype("uint8")
        array = np.pad(array, ((0, 0), (2, 2), (2, 2)))
    else:
        array = labels[part].astype("uint8")
    with io.BytesIO(idx.dump(array)) as stream:
        yield stream
