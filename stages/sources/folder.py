"""Read a custom dataset from the folder that `download.folder` names.

The folder holds either images as train/<class>/*.png and test/<class>/*.png; or MNIST's four IDX
files, plain or gzipped. IDX files may come with classes.txt: one class name per line, from label 0
on. Both kinds of folder become four IDX files, so later stages read every dataset in the same way.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from stages.core.errors import StageError
from stages.core.files import Bytes
from stages.sources import idx
from stages.sources.catalogue import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Dataset,
    IdxFile,
)

Arrays = dict[str, Bytes]  # by the name of the IDX file

PARTS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}


def read_folder(folder: Path) -> tuple[Dataset, dict[str, bytes]]:
    """Return a description of the dataset in `folder`, and the content of its four IDX files.

    The contents are keyed by the names of the IDX files. Images are uint8 (n, height, width), from
    0 (black) to 255. Labels are uint8 (n,), positions in the dataset's 2 to 256 `classes`.

    Raises StageError if the folder is missing, if a file in it is damaged, or if the dataset is
    incomplete: each class needs images in both parts, and all images must have the same size.
    """
    if not folder.is_dir():
        raise StageError(f"download.folder is {str(folder)!r}: there is no such folder")
    has_parts = any((folder / part).is_dir() for part in PARTS)
    classes, arrays = read_images(folder) if has_parts else read_idx(folder)
    check_arrays(folder, classes, arrays)
    payloads = {name: idx.dump(array) for name, array in arrays.items()}

    def describe(name: str) -> IdxFile:
        payload = payloads[name]
        return IdxFile(name, len(payload), hashlib.sha256(payload).hexdigest())

    dataset = Dataset(
        title=folder.resolve().name,
        classes=tuple(classes),
        licence="not stated",
        files=(
            describe(TRAIN_IMAGES),
            describe(TRAIN_LABELS),
            describe(TEST_IMAGES),
            describe(TEST_LABELS),
        ),
    )
    return dataset, payloads


def read_idx(folder: Path) -> tuple[list[str], Arrays]:
    """Return the class names and the arrays of a folder with four IDX files.

    Without classes.txt, the labels are the class names.
    """
    arrays = {}
    for images, labels in PARTS.values():
        for name, dimensions in ((images, 3), (labels, 1)):
            found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
            if not found:
                raise StageError(
                    f"{folder}: has no {name}, plain or with .gz, and no train/<class>/*.png"
                )
            arrays[name] = idx.read(found[0], dimensions)
    names = folder / "classes.txt"
    if names.is_file():
        try:
            classes = names.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise StageError(f"{names}: not readable as UTF-8: {error}") from error
    else:
        highest = max(int(arrays[labels].max(initial=0)) for _, labels in PARTS.values())
        classes = [str(label) for label in range(highest + 1)]
    check_classes(folder, classes)
    return classes, arrays


def read_images(folder: Path) -> tuple[list[str], Arrays]:
    """Return the class names and the arrays of a folder with train/<class> and test/<class>.

    Class names that are numbers come first, in the order of their values. The others follow in
    alphabetical order.
    """
    found = {path.name for part in PARTS for path in list_visible(folder / part)}
    classes = sorted(
        found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )
    check_classes(folder, classes)
    arrays: Arrays = {}
    first: tuple[Path, tuple[int, ...]] | None = None
    for part, (images_name, labels_name) in PARTS.items():
        entries = [
            (number, label, path)
            for label, name in enumerate(classes)
            for number, path in enumerate(list_visible(folder / part / name))
        ]
        entries.sort()  # the classes alternate, so that the first few images show many of them
        images = []
        for _, _, path in tqdm(entries, desc=part, unit=" images"):
            image = read_grey(path)
            first = first or (path, image.shape)
            if image.shape != first[1]:
                raise StageError(
                    f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {first[0]} has "
                    f"{first[1][1]}x{first[1][0]}; all images must have the same size"
                )
            images.append(image)
        arrays[images_name] = np.stack(images) if images else np.empty((0, 0, 0), np.uint8)
        arrays[labels_name] = np.array([label for _, label, _ in entries], np.uint8)
    return classes, arrays


def list_visible(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder, without hidden files. A missing folder is empty."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise StageError(f"{folder}: expected a folder with the images of one class")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_grey(path: Path | BinaryIO) -> Bytes:
    """Return the grey values of a PNG file: uint8 (height, width), from 0 (black) to 255.

    `path` may also be the open file.

    Transparent pixels are shown on white. Colours become grey with the weights of ITU-R BT.601:
    0.299 red, 0.587 green and 0.114 blue. Of 16-bit values, the upper 8 bits are used.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode.startswith("I"):  # 16 bits; Pillow would clip all values above 255
                return (np.asarray(image) >> 8).astype(np.uint8)
            if image.has_transparency_data:
                background = Image.new("RGBA", image.size, "white")
                background.alpha_composite(image.convert("RGBA"))
                return np.asarray(background.convert("L"))
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StageError(f"{path}: not a readable PNG image: {error}") from error


def check_classes(folder: Path, classes: list[str]) -> None:
    """Raise StageError unless `classes` are 2 to 256 different, printable names."""
    if not 2 <= len(classes) <= 256:
        raise StageError(f"{folder}: has {len(classes)} classes, expected 2 to 256")
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise StageError(f"{folder}: {name!r} cannot be a class name; use plain text")
        if classes.count(name) > 1:
            raise StageError(f"{folder}: two classes have the name {name!r}")


def check_arrays(folder: Path, classes: list[str], arrays: Arrays) -> None:
    """Raise StageError unless each class has images in both parts, and all have the same size."""
    for part, (images_name, labels_name) in PARTS.items():
        images, labels = arrays[images_name], arrays[labels_name]
        if len(images) != len(labels):
            raise StageError(f"{folder}: has {len(images)} {part} images but {len(labels)} labels")
        counts = np.bincount(labels, minlength=len(classes))
        if len(counts) > len(classes):
            raise StageError(
                f"{folder}: {labels_name} has label {len(counts) - 1}, but there are only names "
                f"for the labels 0 to {len(classes) - 1}"
            )
        if not counts.all():
            missing = [repr(classes[label]) for label in np.flatnonzero(counts == 0)]
            raise StageError(f"{folder}: has no {part} image of {', '.join(missing)}")
    shapes = [arrays[images].shape[1:] for images, _ in PARTS.values()]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise StageError(f"{folder}: train images of {shapes[0]} pixels, test images {shapes[1]}")
