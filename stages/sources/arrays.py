"""Find and read a custom dataset of arrays: IDX files, an .npz file or CSV files."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.errors import StageError, name_faults
from stages.core.files import Array, Bytes, Pieces
from stages.core.terminal import print_line
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES
from stages.sources.parts import PARTS, Part, check_classes, choose_test, list_visible

ROWS = 4096  # of a CSV file, read at a time


def find_arrays(folder: Path) -> Callable[[], dict[str, Part]] | None:
    """Return the function that opens the parts in a folder, or None if it holds no arrays.

    Images are (n, height, width) or (n, height, width, channels); labels are those of the files. A
    dataset without a test part has only the part "".
    """
    if find_idx_files(folder, TRAIN_IMAGES):
        return partial(open_idx, folder)
    files = [path for path in list_visible(folder) if path.is_file()]
    for pattern, open_files in ((r"\.npz$", open_npz), (r"\.csv(\.gz)?$", open_csv)):
        if found := [path for path in files if re.search(pattern, path.name, re.IGNORECASE)]:
            return partial(open_files, found)
    return None


def read_arrays(
    folder: Path, parts: dict[str, Part], test_fraction: float, seed: int
) -> tuple[list[str], dict[str, Part]]:
    """Return the class names and the parts of a dataset that is stored as arrays.

    Labels need not be consecutive: a label without images is left out. Without classes.txt, the
    labels are the class names. The part "" is split as for images (see image_folders.py).
    """
    for name, part in parts.items():
        if (count := part.read().shape[0]) != len(part.labels):
            raise StageError(
                f"{folder}: has {count} {name or 'training'} images but {len(part.labels)} labels"
            )
    used = np.unique(np.concatenate([part.labels for part in parts.values()])).tolist()
    names = read_names(folder, used)
    check_classes(folder, list(names.values()))
    if unused := [repr(name) for label, name in names.items() if label not in used]:
        print_line(f"{folder}: left out {', '.join(unused)}, of which there are no images")
    positions = np.zeros(256, np.uint8)
    positions[used] = np.arange(len(used))
    found = {name: Part(part.read, positions[part.labels]) for name, part in parts.items()}
    if whole := found.pop("", None):
        for name, own in choose_test(folder, whole.labels, test_fraction, seed).items():
            found[name] = Part(partial(select, whole.read, own), whole.labels[own])
    return [names[label] for label in used], found


def select(read: Callable[[], Pieces], chosen: Array) -> Pieces:
    """Return the images at which `chosen` (n,) is true."""

    def pieces() -> Iterator[Bytes]:
        start = 0
        for piece in whole.pieces:
            yield piece[chosen[start : start + len(piece)]]
            start += len(piece)

    whole = read()
    return Pieces((int(chosen.sum()), *whole.shape[1:]), np.uint8, pieces())


def read_names(folder: Path, used: list[int]) -> dict[int, str]:
    """Return the name of each class by its label: those in classes.txt, or the labels themselves.

    The first line of classes.txt names label 0. It names label 1 if no image has label 0 and there
    is exactly one name for each label from 1 on.
    """
    path = folder / "classes.txt"
    if not path.exists():
        return {label: str(label) for label in used}
    if not path.is_file():
        raise StageError(f"{path}: expected a text file with a class name in each line")
    with name_faults(path, "UTF-8"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = int(bool(used) and used[0] > 0 and used[-1] == len(lines))
    if used and used[-1] >= first + len(lines):
        raise StageError(
            f"{folder}: there is a label {used[-1]}, but classes.txt has only names for the labels "
            f"{first} to {first + len(lines) - 1}"
        )
    return dict(enumerate(lines, first))


# IDX files


def find_idx_files(folder: Path, name: str) -> list[Path]:
    """Return the files in `folder` that hold the IDX file `name`, most likely first.

    Takes the name as published, with a dot as Kaggle and 7-Zip write it, with a prefix as in
    emnist-letters-train-images-idx3-ubyte, and `test` for `t10k`, plain or with .gz; also such a
    file inside a folder of that name.
    """
    spelling = re.escape(name)
    if usual := re.match(r"(train|t10k)-(images|labels)", name):
        part = "train" if usual[1] == "train" else "(t10k|test)"
        kinds = r"idx[34][-.]ubyte" if usual[2] == "images" else r"(idx1[-.]ubyte|idx2[-.]int)"
        spelling = rf"(.*[-_.])?{part}[-_.]{usual[2]}[-.]{kinds}"
    pattern = re.compile(rf"{spelling}(\.gz)?", re.IGNORECASE)
    matching = [path for path in list_visible(folder) if pattern.fullmatch(path.name)]
    inside = [path for outer in matching if outer.is_dir() for path in list_visible(outer)]
    named = [path for path in (*matching, *inside) if pattern.fullmatch(path.name)]
    found = [path for path in named if path.is_file()]
    return sorted(found, key=lambda path: (not path.name.startswith(name), path.suffix == ".gz"))


def choose_idx_file(folder: Path, name: str) -> Path:
    """Return the file in `folder` that holds the IDX file `name`. Raises StageError if unclear."""
    found = find_idx_files(folder, name)
    if not found:
        raise StageError(f"{folder}: has no {name}, plain or with .gz")
    names = {path.name.removesuffix(".gz") for path in found}
    if len(names) > 1 and not found[0].name.startswith(name):
        raise StageError(
            f"{folder}: {' and '.join(sorted(names))} could all be {name}; keep the four files of "
            "one dataset"
        )
    return found[0]


def open_idx(folder: Path) -> dict[str, Part]:
    """Return the parts of a folder with four IDX files."""
    parts = {}
    for part, names in PARTS.items():
        images, labels = (choose_idx_file(folder, name) for name in names)
        is_int = "idx2" in labels.name.lower()
        parts[part] = Part(
            partial(idx.read_pieces, images, idx.IMAGES),
            idx.read_int_column(labels) if is_int else idx.read(labels, 1),
        )
    return parts


# NumPy's .npz, with the names that keras.datasets uses


def open_npz(paths: list[Path]) -> dict[str, Part]:
    """Return the parts in an .npz file with x_train, y_train, x_test and y_test."""
    path, *others = paths
    if others:
        raise StageError(f"{path.parent}: has {path.name} and {others[0].name}; keep one")
    return {
        part: Part(
            partial(load, path, f"x_{part}"),
            np.concatenate([piece.ravel() for piece in load(path, f"y_{part}").pieces]),
        )
        for part in PARTS
    }


def load(path: Path, name: str) -> Pieces:
    """Return an array in an .npz file. All of it is in memory, because the file is compressed."""
    # np.load does not close a damaged file that it has opened itself.
    with (
        name_faults(path, ".npz"),
        path.open("rb") as stream,
        np.load(stream, allow_pickle=False) as arrays,
    ):
        if name not in arrays:
            raise StageError(
                f"{path}: expected the arrays x_train, y_train, x_test and y_test, found "
                f"{', '.join(arrays) or 'none'}"
            )
        values = idx.to_bytes(path, arrays[name])
    return Pieces(values.shape, np.uint8, [values])


# CSV files, as on Kaggle: a row for each image, with its label and its pixels


def open_csv(paths: list[Path]) -> dict[str, Part]:
    """Return the parts in CSV files, or the part "" if only one file has labels."""
    folder = paths[0].parent
    tables = {path: table for path in paths if (table := open_table(path))}
    if not tables:
        raise StageError(
            f"{paths[0]}: expected a column label and the pixels of a square image in each row, or "
            "rows of numbers without a header, with the label first"
        )
    if others := [path.name for path in paths if path not in tables]:
        print_line(f"{folder}: left out {', '.join(others)}, without labels and pixels")
    parts = {
        "test" if "test" in path.name.lower() else "train": part for path, part in tables.items()
    }
    if len(parts) < len(tables):
        names = " and ".join(path.name for path in tables)
        raise StageError(f"{folder}: has {names}; keep one for training and one with test in it")
    return parts if len(parts) > 1 else {"": parts.popitem()[1]}


def open_table(path: Path) -> Part | None:
    """Return the square images and labels in a CSV file, or None if it has no labels or pixels.

    The images are read piece by piece.
    """
    with name_faults(path, "CSV"):
        row = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    names = [name.strip().lower() for name in row]
    header = 0 if "label" in names else None
    if len(names) <= 2 or (header is None and not all(name.isdecimal() for name in names)):
        return None
    side = math.isqrt(len(names) - 1)
    if side**2 != len(names) - 1:
        raise StageError(
            f"{path}: expected a label and the pixels of a square image in each row, found "
            f"{len(names)} columns"
        )
    column = names.index("label") if header == 0 else 0
    read: Callable[..., Any] = partial(pd.read_csv, path, header=header, dtype=np.int64)
    with name_faults(path, "CSV"):
        labels = idx.to_bytes(path, read(usecols=[column]).to_numpy()[:, 0])

    def pieces() -> Iterator[Bytes]:
        with name_faults(path, "CSV"), read(chunksize=ROWS) as chunks:
            for chunk in chunks:
                pixels = np.delete(chunk.to_numpy(), column, axis=1)
                yield idx.to_bytes(path, pixels).reshape(-1, side, side)

    return Part(lambda: Pieces((len(labels), side, side), np.uint8, pieces()), labels)
