"""Find the images of a custom dataset that has a folder for each class."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from stages.core.errors import StageError
from stages.core.files import Bytes, Pieces
from stages.sources.image_files import Form, Size, measure_form, read_pixels
from stages.sources.parts import (
    PARTS,
    Part,
    check_classes,
    check_counts,
    choose_test,
    is_visible,
    list_visible,
)

SPELLINGS = {"train": "train", "training": "train", "test": "test", "testing": "test"}

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
    for part in PARTS:
        if part not in places and "" not in places:
            others = [path.name for path in list_visible(folder) if path.is_dir()]
            (other,) = places.values()
            raise StageError(
                f"{folder}: has no folder {part}; its folders are {', '.join(others)}; to split "
                f"the images of {other.name}, set download.folder to {other}"
            )
    folders = {part: find_classes(place) for part, place in places.items()}
    classes = sorted(
        {name for found in folders.values() for name in found},
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name),
    )
    check_classes(folder, classes)
    files = {
        part: [
            (found[name], list_names(found[name])) if name in found else (folder, np.empty(0, "S1"))
            for name in classes
        ]
        for part, found in folders.items()
    }
    check_counts(
        folder, classes, {part: [len(names) for _, names in own] for part, own in files.items()}
    )
    lists: dict[str, Callable[[], Iterable[tuple[int, Path]]]] = {
        part: partial(alternate, files[part]) for part in sorted(files, reverse=True)
    }
    every = (path for entries in lists.values() for _, path in entries())
    form = measure_form(tqdm(every, desc=folder.name, unit=" images"), size, keep_colour)
    if "" in lists:
        whole = lists.pop("")
        chosen = choose_test(folder, list_labels(whole()), test_fraction, seed)
        lists |= {
            part: partial(lambda own: compress(whole(), own), own)
            for part, own in (("train", ~chosen), ("test", chosen))
        }
    return (
        classes,
        {
            part: Part(partial(read_in_order, part, lists[part], form), list_labels(lists[part]()))
            for part in PARTS
        },
        form,
    )


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


def list_names(folder: Path) -> Names:
    """Return the sorted names of the files in the folder of a class.

    The array needs a tenth of the memory of a list, and a class may have many images.
    """

    def scan() -> Iterator[bytes]:
        with os.scandir(os.fsencode(folder)) as entries:
            yield from (entry.name for entry in entries if is_visible(os.fsdecode(entry.name)))

    longest = max(map(len, scan()), default=1)
    names = np.fromiter(scan(), f"S{longest}")
    if any(not name.isascii() for name in names):
        order = [unicodedata.normalize("NFC", os.fsdecode(name)) for name in names]
        return names[sorted(range(len(order)), key=order.__getitem__)]
    names.sort()
    return names


def alternate(files: list[tuple[Path, Names]]) -> Iterator[tuple[int, Path]]:
    """Yield the label and the path of each image.

    The classes alternate, so that the first few images show many of them.
    """
    for number in range(max(len(names) for _, names in files)):
        for label, (place, names) in enumerate(files):
            if number < len(names):
                yield label, place / os.fsdecode(bytes(names[number]))


def list_labels(entries: Iterable[tuple[int, Path]]) -> Bytes:
    """Return the labels of some images."""
    return np.fromiter((label for label, _ in entries), np.uint8)


def read_in_order(
    part: str, entries: Callable[[], Iterable[tuple[int, Path]]], form: Form
) -> Pieces:
    """Return the images of a part, which are read one by one."""
    assert form.size is not None  # see measure_form
    width, height = form.size
    count = sum(1 for _ in entries())
    pieces = (
        read_pixels(path, form)[np.newaxis]
        for _, path in tqdm(entries(), desc=part, unit=" images", total=count)
    )
    return Pieces((count, height, width, *([3] if form.colour else [])), np.uint8, pieces)
