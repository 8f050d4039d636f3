"""What all forms of a custom dataset have in common: parts, visible files, classes and a split."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.core.errors import StageError
from stages.core.files import Bytes, Pieces
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

Chosen = npt.NDArray[np.bool_]

PARTS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}
# Files and folders that operating systems leave beside images.
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx"}


@dataclass(frozen=True)
class Part:
    """The training or the test part of a dataset."""

    read: Callable[[], Pieces]  # its images, uint8 (n, height, width) or (n, height, width, 3)
    labels: Bytes  # (n,)


def is_visible(name: str) -> bool:
    """Return whether a file is neither hidden nor one of the operating system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES


def list_visible(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder, without hidden files. A missing folder is empty."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_visible(path.name))


def check_classes(folder: Path, classes: list[str]) -> None:
    """Raise StageError unless `classes` are 2 to 256 different, printable names."""
    if not 2 <= len(classes) <= 256:
        raise StageError(f"{folder}: has {len(classes)} classes, expected 2 to 256")
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise StageError(f"{folder}: {name!r} cannot be a class name; use plain text")
        if classes.count(name) > 1:
            raise StageError(f"{folder}: two classes have the name {name!r}")


def check_counts(folder: Path, classes: list[str], counts: Mapping[str, Iterable[int]]) -> None:
    """Raise StageError unless each class has images in all parts."""
    for part, numbers in counts.items():
        missing = [repr(name) for name, n in zip(classes, numbers, strict=True) if not n]
        if missing:
            kind = f"{part} image" if part else "image"
            raise StageError(f"{folder}: has no {kind} of {', '.join(missing)}")


def choose_test(folder: Path, labels: Bytes, fraction: float, seed: int) -> dict[str, Chosen]:
    """Return which images are in each part: `fraction` of each class, at random, in the test part.

    Raises StageError if a class has too few images.
    """
    from sklearn.model_selection import train_test_split  # here, because few datasets need it

    test = np.zeros(len(labels), bool)
    try:
        _, chosen = train_test_split(
            np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise StageError(
            f"{folder}: cannot be split into a training and a test part with "
            f"download.test_fraction {fraction}: {error}"
        ) from error
    test[chosen] = True
    return {"train": ~test, "test": test}
