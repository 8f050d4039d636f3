"""Read a dataset of one's own from the folder that `download.folder` names.

The folder holds pictures as train/<class>/*.png and test/<class>/*.png; or MNIST's four IDX files,
plain or gzipped, and where the classes have names, classes.txt with one a line, from label 0 on.
Either way four IDX files come out, so no later stage has to know.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.catalogue import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Dataset,
    IdxFile,
)

Bytes = npt.NDArray[np.uint8]
Arrays = dict[str, Bytes]  # by the name of the IDX file

PARTS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}


def read_folder(folder: Path) -> tuple[Dataset, dict[str, bytes]]:
    """Return what the dataset in `folder` is, and the payload of each of its four IDX files.

    Raises StageError where the folder does not hold a whole dataset.
    """
    if not folder.is_dir():
        raise StageError(f"download.folder is {str(folder)!r}: there is no such folder")
    pictures = any((folder / part).is_dir() for part in PARTS)
    classes, arrays = read_images(folder) if pictures else read_idx(folder)
    check_arrays(folder, classes, arrays)
    payloads = {name: idx.dump(array) for name, array in arrays.items()}

    def described(name: str) -> IdxFile:
        payload = payloads[name]
        return IdxFile(name, len(payload), hashlib.sha256(payload).hexdigest())

    dataset = Dataset(
        title=folder.resolve().name,
        classes=tuple(classes),
        licence="not stated",
        files=(
            described(TRAIN_IMAGES),
            described(TRAIN_LABELS),
            described(TEST_IMAGES),
            described(TEST_LABELS),
        ),
    )
    return dataset, payloads


def read_idx(folder: Path) -> tuple[list[str], Arrays]:
    """Return the class names, and the arrays in the four IDX files, of a folder."""
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
    """Return the class names, and the arrays, of the pictures in train/<class> and test/<class>.

    Class names that are numbers come in the order of their values, before all others.
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
        entries.sort()  # each class in turn, so that the first few pictures show many
        images = []
        for _, _, path in tqdm(entries, desc=part, unit=" pictures"):
            image = read_grey(path)
            first = first or (path, image.shape)
            if image.shape != first[1]:
                raise StageError(
                    f"{path}: {image.shape[1]}x{image.shape[0]} pixels, and {first[0]} has "
                    f"{first[1][1]}x{first[1][0]}: make all pictures of one size"
                )
            images.append(image)
        arrays[images_name] = np.stack(images) if images else np.empty((0, 0, 0), np.uint8)
        arrays[labels_name] = np.array([label for _, label, _ in entries], np.uint8)
    return classes, arrays


def list_visible(folder: Path) -> list[Path]:
    """Return what is in a folder, by name; without hidden files, and empty where it is missing."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise StageError(f"{folder}: expected a folder with the pictures of one class")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_grey(path: Path) -> Bytes:
    """Return the pixels of a PNG file (height, width), 0 to 255.

    What is transparent is laid on white; colours are weighed by ITU-R BT.601, 0.299 red, 0.587
    green and 0.114 blue; of 16 bits the upper 8 count.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                return (np.asarray(picture) >> 8).astype(np.uint8)
            if picture.has_transparency_data:
                paper = Image.new("RGBA", picture.size, "white")
                paper.alpha_composite(picture.convert("RGBA"))
                return np.asarray(paper.convert("L"))
            return np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StageError(f"{path}: not a readable PNG picture: {error}") from error


def check_classes(folder: Path, classes: list[str]) -> None:
    """Raise StageError unless `classes` are 2 to 256 different names."""
    if not 2 <= len(classes) <= 256:
        raise StageError(f"{folder}: has {len(classes)} classes, expected 2 to 256")
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise StageError(f"{folder}: {name!r} cannot be the name of a class: use plain text")
        if classes.count(name) > 1:
            raise StageError(f"{folder}: two classes have the name {name!r}")


def check_arrays(folder: Path, classes: list[str], arrays: Arrays) -> None:
    """Raise StageError unless every class has images in both parts, all of one shape."""
    for part, (images_name, labels_name) in PARTS.items():
        images, labels = arrays[images_name], arrays[labels_name]
        if len(images) != len(labels):
            raise StageError(f"{folder}: has {len(images)} {part} images and {len(labels)} labels")
        counts = np.bincount(labels, minlength=len(classes))
        if len(counts) > len(classes):
            raise StageError(
                f"{folder}: {labels_name} has label {len(counts) - 1}, and there are names for "
                f"the labels 0 to {len(classes) - 1}"
            )
        if not counts.all():
            missing = [repr(classes[label]) for label in np.flatnonzero(counts == 0)]
            raise StageError(f"{folder}: has no {part} image of {', '.join(missing)}")
    shapes = [arrays[images].shape[1:] for images, _ in PARTS.values()]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise StageError(f"{folder}: train images of {shapes[0]} pixels, test images {shapes[1]}")
