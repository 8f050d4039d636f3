"""Find the images of a custom dataset that has a folder for each class."""

import os
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.core.errors import StageError
from stages.core.files import Bytes, Pieces
from stages.sources.image_files import Form, Size, measure_form, read_pixels
from stages.sources.parts import Part, check_classes, check_counts, choose_test, list_visible

SPELLINGS = {"train": "train", "training": "train", "test": "test", "testing": "test"}

# Paths below the dataset's folder. An array needs a fifth of the memory of a list of names.
Names = npt.NDArray[np.bytes_]


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders with the training and the test images, as far as there are any."""
    parts: dict[str, Path] = {}
    for path in list_visible(folder):
        part = SPELLINGS.get(path.name.lower())
        if part and path.is_dir():
            if part in parts:
                raise StageError(f"{folder}: has both {parts[part].name} and {path.name}; keep one")
            parts[part] = path
    return parts


def has_classes(folder: Path) -> bool:
    """Return whether a folder without parts has the classes themselves: two folders with files."""
    inner = (path for path in list_visible(folder) if path.is_dir())
    return sum(any(not path.is_dir() for path in list_visible(place)) for place in inner) >= 2


def read_images(
    folder: Path, size: Size | None, keep_colour: bool, test_fraction: float, seed: int
) -> tuple[list[str], dict[str, Part], Form]:
    """Return the class names, the parts and the form of the images in a folder.

    The folder has train/<class> and test/<class>, or only <class>. Then `test_fraction` of each
    class becomes the test part, as `seed` chooses.

    Class names that are numbers come first, in the order of their values. The others follow in
    alphabetical order. Names are compared in Unicode's form NFC: macOS stores another one.
    """
    places = find_parts(folder) or {"": folder}
    if len(places) == 1 and "" not in places:
        ((part, place),) = places.items()
        others = [path.name for path in list_visible(folder) if path.is_dir()]
        raise StageError(
            f"{folder}: has no folder {'test' if part == 'train' else 'train'}; its folders are "
            f"{', '.join(others)}; to split the images of {place.name}, set download.folder to "
            f"{place}"
        )
    folders = {part: find_classes(places[part]) for part in sorted(places, reverse=True)}
    classes = sorted(
        {name for found in folders.values() for name in found},
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name),
    )
    check_classes(folder, classes)
    names = {
        part: [list_names(folder, found[name]) if name in found else [] for name in classes]
        for part, found in folders.items()
    }
    check_counts(
        folder, classes, {part: [len(each) for each in own] for part, own in names.items()}
    )
    images = {part: alternate(own) for part, own in names.items()}
    every = (name for own, _ in images.values() for name in own)
    paths = (locate(folder, name) for name in tqdm(every, desc=folder.name, unit=" images"))
    form = measure_form(paths, size, keep_colour)
    if "" in images:
        own, labels = images.pop("")
        for part, chosen in choose_test(folder, labels, test_fraction, seed).items():
            images[part] = own[chosen], labels[chosen]
    parts = {
        part: Part(partial(read_in_order, folder, part, own, form), labels)
        for part, (own, labels) in images.items()
    }
    return classes, parts, form


def find_classes(place: Path) -> dict[str, Path]:
    """Return the folders of the classes by their names. In a part, there may be nothing else."""
    found: dict[str, Path] = {}
    for path in list_visible(place):
        name = unicodedata.normalize("NFC", path.name)
        if not path.is_dir():
            if place.name.lower() not in SPELLINGS:
                continue
            raise StageError(f"{path}: expected a folder with the images of one class")
        if name in found:
            raise StageError(f"{place}: two folders have the name {name!r}")
        found[name] = path
    return found


def list_names(folder: Path, place: Path) -> list[bytes]:
    """Return the sorted paths below `folder` of the files in the folder of a class."""
    paths = sorted(list_visible(place), key=lambda path: unicodedata.normalize("NFC", path.name))
    return [os.fsencode(path.relative_to(folder)) for path in paths]


def locate(folder: Path, name: bytes) -> Path:
    """Return the path of a file with this name below `folder`."""
    return folder / os.fsdecode(bytes(name))


def alternate(names: list[list[bytes]]) -> tuple[Names, Bytes]:
    """Return the names and the labels of a part's images, from the names of each class.

    The classes alternate, so that the first few images show many of them.
    """
    labels = np.repeat(np.arange(len(names)), [len(own) for own in names])
    numbers = np.concatenate([np.arange(len(own)) for own in names])
    order = np.lexsort((labels, numbers))
    return np.concatenate([np.array(own, "S") for own in names])[order], labels[order].astype("u1")


def read_in_order(folder: Path, part: str, names: Names, form: Form) -> Pieces:
    """Return the images of a part, which are read one by one."""
    assert form.size is not None  # see measure_form
    width, height = form.size
    pieces = (
        read_pixels(locate(folder, name), form)[np.newaxis]
        for name in tqdm(names, desc=part, unit=" images")
    )
    return Pieces((len(names), height, width, *([3] if form.colour else [])), np.uint8, pieces)
