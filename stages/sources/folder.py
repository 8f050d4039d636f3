"""Read a custom dataset from the folder that `download.folder` names.

The folder holds either images as train/<class>/* and test/<class>/*; or four IDX files with MNIST's
names, plain or gzipped. IDX files may come with classes.txt: one class name per line, from label
0 or 1 on. Both kinds of folder become four IDX files, so later stages read every dataset in the
same way.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from stages.core.errors import StageError
from stages.core.files import Bytes, Pieces, write_atomically
from stages.core.terminal import print_line
from stages.sources import idx
from stages.sources.catalogue import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Dataset,
    IdxFile,
)

PARTS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}
SPELLINGS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
# Files and folders that operating systems leave beside images.
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx"}


@dataclass(frozen=True)
class Part:
    """The training or the test part of a dataset."""

    images: Pieces  # uint8 (n, height, width)
    labels: Bytes  # (n,)


def expand(folder: str) -> Path:
    """Return the path that `download.folder` means: `~` and variables are replaced."""
    return Path(os.path.expandvars(folder)).expanduser()


def convert_folder(folder: Path, target: Path) -> Dataset:
    """Convert the dataset in `folder`, and return its description.

    Writes its four IDX files to the folder `target`, with `.part` added to their names. Images are
    uint8 (n, height, width), from 0 (black) to 255. Labels are uint8 (n,), positions in the
    dataset's 2 to 256 `classes`. Never holds all images in memory.

    Raises StageError if the folder is missing, if a file in it is damaged, or if the dataset is
    incomplete: each class needs images in both parts, and all images must have the same size.
    """
    check_folder(folder)
    parts = find_parts(folder)
    classes, found = read_images(folder, parts) if parts else read_idx(folder)
    check_parts(folder, classes, found)
    files = []
    for part, names in PARTS.items():
        labels = found[part].labels
        for name, content in zip(
            names, (found[part].images, Pieces(labels.shape, np.uint8, [labels])), strict=True
        ):
            files.append(write_idx(target, name, content))
    return Dataset(
        title=unicodedata.normalize("NFC", folder.resolve().name),
        classes=tuple(classes),
        licence="not stated",
        files=(files[0], files[1], files[2], files[3]),
    )


def write_idx(target: Path, name: str, array: Pieces) -> IdxFile:
    """Write an IDX file with `.part` added to its name, and return its size and hash."""
    digest, size = hashlib.sha256(), 0
    with write_atomically(target / f"{name}.part") as part, part.open("wb") as stream:
        blocks = (piece.tobytes() for piece in array.pieces)
        for block in chain([idx.dump_header(array.shape)], blocks):
            stream.write(block)
            digest.update(block)
            size += len(block)
    return IdxFile(name, size, digest.hexdigest())


def check_folder(folder: Path) -> None:
    """Raise StageError, which says what is there instead, if `folder` is not a folder."""
    named = f"download.folder is {str(folder)!r}"
    if folder.is_dir():
        return
    if folder.suffix.lower() in ARCHIVES and folder.is_file():
        raise StageError(f"{named}: that is an archive; unpack it, and name the unpacked folder")
    if folder.exists():
        raise StageError(f"{named}: that is a file; name the folder that holds it")
    if folder.is_symlink():
        raise StageError(f"{named}: the link leads to {folder.readlink()}, which does not exist")
    tracked = folder.with_name(f"{folder.name}.dvc")
    remedy = f"; get it with `dvc pull {tracked}`" if tracked.exists() else ""
    raise StageError(f"{named}: there is no such folder{remedy}")


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
        kinds = r"idx3[-.]ubyte" if usual[2] == "images" else r"(idx1[-.]ubyte|idx2[-.]int)"
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
        raise StageError(f"{folder}: has no {name}, plain or with .gz{hint_at(folder)}")
    names = {path.name.removesuffix(".gz") for path in found}
    if len(names) > 1 and not found[0].name.startswith(name):
        raise StageError(
            f"{folder}: {' and '.join(sorted(names))} could all be {name}; keep the four files of "
            "one dataset"
        )
    return found[0]


def hint_at(folder: Path) -> str:
    """Return what a folder without a dataset has instead, as the end of a message."""
    folders = [path for path in list_visible(folder) if path.is_dir()]
    for inner in (*folders, *(deep for outer in folders for deep in list_visible(outer))):
        if inner.is_dir() and (find_parts(inner) or find_idx_files(inner, TRAIN_IMAGES)):
            return f"; the dataset is in {inner}, so set download.folder to that"
    archives = [path.name for path in list_visible(folder) if path.suffix.lower() in ARCHIVES]
    if archives and not any(find_idx_files(folder, name) for name in (TRAIN_IMAGES, TRAIN_LABELS)):
        return f"; unpack {archives[0]} first"
    text = ", and no train/<class> and test/<class> with images"
    if folders:
        text += f"; its folders are {', '.join(path.name for path in folders[:5])}"
    return text


def read_idx(folder: Path) -> tuple[list[str], dict[str, Part]]:
    """Return the class names and the parts of a folder with four IDX files.

    Labels need not be consecutive: a label without images is left out. Without classes.txt, the
    labels are the class names.
    """
    paths = {name: choose_idx_file(folder, name) for names in PARTS.values() for name in names}
    labels = {}
    for part, (_, name) in PARTS.items():
        is_int = "idx2" in paths[name].name.lower()
        labels[part] = idx.read_int_column(paths[name]) if is_int else idx.read(paths[name], 1)
    used = np.unique(np.concatenate(list(labels.values()))).tolist()
    names = read_names(folder, used)
    classes = [names[label] for label in used]
    check_classes(folder, list(names.values()))
    if unused := [repr(name) for label, name in names.items() if label not in used]:
        print_line(f"{folder}: left out {', '.join(unused)}, of which there are no images")
    positions = np.zeros(256, np.uint8)
    positions[used] = np.arange(len(used))
    return classes, {
        part: Part(idx.read_pieces(paths[images], 3), positions[labels[part]])
        for part, (images, _) in PARTS.items()
    }


def read_names(folder: Path, used: list[int]) -> dict[int, str]:
    """Return the name of each class by its label: those in classes.txt, or the labels themselves.

    The first line of classes.txt names label 0. It names label 1 if no image has label 0 and there
    is exactly one name for each label from 1 on.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return {label: str(label) for label in used}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not readable as UTF-8: {error}") from error
    first = int(bool(used) and used[0] > 0 and used[-1] == len(lines))
    if used and used[-1] >= first + len(lines):
        raise StageError(
            f"{folder}: there is a label {used[-1]}, but classes.txt has only names for the labels "
            f"{first} to {first + len(lines) - 1}"
        )
    return dict(enumerate(lines, first))


# Images


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


def read_images(folder: Path, parts: dict[str, Path]) -> tuple[list[str], dict[str, Part]]:
    """Return the class names and the parts of a folder with train/<class> and test/<class>.

    Class names that are numbers come first, in the order of their values. The others follow in
    alphabetical order. Names are compared in Unicode's form NFC: macOS stores another one.
    """
    for part in PARTS:
        if part not in parts:
            others = [path.name for path in list_visible(folder) if path.is_dir()]
            raise StageError(f"{folder}: has no folder {part}; its folders are {', '.join(others)}")
    folders: dict[str, dict[str, Path]] = {part: {} for part in PARTS}
    for part, place in parts.items():
        for path in list_visible(place):
            name = unicodedata.normalize("NFC", path.name)
            if not path.is_dir():
                raise StageError(f"{path}: expected a folder with the images of one class")
            if name in folders[part]:
                raise StageError(f"{place}: two folders have the name {name!r}")
            folders[part][name] = path
    classes = sorted(
        {name for found in folders.values() for name in found},
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name),
    )
    check_classes(folder, classes)
    names = {
        part: [list_names(found[name]) if name in found else np.empty(0, "S1") for name in classes]
        for part, found in folders.items()
    }
    check_counts(folder, classes, {part: [len(own) for own in names[part]] for part in PARTS})
    places = {part: [found[name] for name in classes] for part, found in folders.items()}
    path = next(alternate(places["train"], names["train"]))[1]
    shape = read_grey(path).shape
    result = {}
    for part in PARTS:
        labels = np.fromiter((label for label, _ in alternate(places[part], names[part])), np.uint8)
        pieces = read_in_order(part, len(labels), alternate(places[part], names[part]), path, shape)
        result[part] = Part(Pieces((len(labels), *shape), np.uint8, pieces), labels)
    return classes, result


def list_names(folder: Path) -> npt.NDArray[np.bytes_]:
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


def alternate(
    places: list[Path], names: list[npt.NDArray[np.bytes_]]
) -> Iterator[tuple[int, Path]]:
    """Yield the label and the path of each image.

    The classes alternate, so that the first few images show many of them.
    """
    for number in range(max(map(len, names))):
        for label, own in enumerate(names):
            if number < len(own):
                yield label, places[label] / os.fsdecode(bytes(own[number]))


def read_in_order(
    part: str,
    count: int,
    entries: Iterator[tuple[int, Path]],
    first: Path,
    shape: tuple[int, ...],
) -> Iterator[Bytes]:
    """Yield each image as uint8 (1, height, width). All must have the `shape` of the `first`."""
    for _, path in tqdm(entries, desc=part, unit=" images", total=count):
        image = read_grey(path)
        if image.shape != shape:
            raise StageError(
                f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {first} has "
                f"{shape[1]}x{shape[0]}; all images must have the same size"
            )
        yield image[np.newaxis]


def is_visible(name: str) -> bool:
    """Return whether a file is neither hidden nor one of the operating system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES


def list_visible(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder, without hidden files. A missing folder is empty."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_visible(path.name))


def read_grey(path: Path | BinaryIO) -> Bytes:
    """Return the grey values of an image file: uint8 (height, width), from 0 (black) to 255.

    `path` may also be the open file.

    Transparent pixels are shown on white. Colours become grey with the weights of ITU-R BT.601:
    0.299 red, 0.587 green and 0.114 blue. Of 16-bit values, the upper 8 bits are used. A photo is
    turned upright as its EXIF data says. Of several frames, the first is used.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode.startswith("I"):  # 16 bits; Pillow would clip all values above 255
                return (np.asarray(image) >> 8).astype(np.uint8)
            if image.has_transparency_data:
                background = Image.new("RGBA", image.size, "white")
                background.alpha_composite(image.convert("RGBA"))
                return np.asarray(ImageOps.exif_transpose(background.convert("L")))
            return np.asarray(ImageOps.exif_transpose(image).convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = explain(path, error) if isinstance(path, Path) else f"not a readable image: {error}"
        raise StageError(f"{path}: {cause}") from error


def explain(path: Path, error: Exception) -> str:
    """Return why the file at `path` is not an image, and the fix."""
    if path.is_dir():
        return "is a folder; the images of a class have to be directly in its folder"
    if not path.exists():
        return f"is a link to {path.readlink()}, which does not exist"
    try:
        with path.open("rb") as stream:
            start = stream.read(len(idx.LFS_POINTER))
    except OSError:
        return f"cannot be read: {error}"
    if start == idx.LFS_POINTER:
        return "is a Git LFS pointer instead of the image: git lfs pull"
    kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return f"not a readable image ({kinds}): {error}; delete or convert it: mogrify -format png"


# Checks


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
    """Raise StageError unless each class has images in both parts."""
    for part, numbers in counts.items():
        missing = [repr(name) for name, n in zip(classes, numbers, strict=True) if not n]
        if missing:
            raise StageError(f"{folder}: has no {part} image of {', '.join(missing)}")


def check_parts(folder: Path, classes: list[str], parts: dict[str, Part]) -> None:
    """Raise StageError unless each class has images in both parts, and all have the same size."""
    for name, part in parts.items():
        count = part.images.shape[0]
        if count != len(part.labels):
            raise StageError(f"{folder}: has {count} {name} images but {len(part.labels)} labels")
    counts = {
        name: np.bincount(part.labels, minlength=len(classes)) for name, part in parts.items()
    }
    check_counts(folder, classes, counts)
    shapes = [part.images.shape[1:] for part in parts.values()]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise StageError(
            f"{folder}: expected images of one size above 0, found {shapes[0]} pixels in train and "
            f"{shapes[1]} in test"
        )
