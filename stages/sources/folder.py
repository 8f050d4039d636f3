"""Read a custom dataset from the folder that `download.folder` names.

The folder holds either image files as train/<class>/* and test/<class>/*, or as <class>/*; or
arrays: four IDX files with MNIST's names, an .npz file with the names of Keras's datasets, or CSV
files. Arrays may come with classes.txt: one class name per line, from label 0 or 1 on. All of them
become four IDX files, so later stages read every dataset in the same way.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.errors import StageError
from stages.core.files import Pieces, write_atomically
from stages.sources import idx
from stages.sources.arrays import find_arrays, find_idx_files, read_arrays
from stages.sources.catalogue import TRAIN_IMAGES, TRAIN_LABELS, Dataset, IdxFile
from stages.sources.image_files import Form, Size, convert, is_coloured
from stages.sources.image_folders import find_parts, has_classes, read_images
from stages.sources.parts import PARTS, Part, check_counts, list_visible

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def expand(folder: str) -> Path:
    """Return the path that `download.folder` means: `~` and variables are replaced."""
    return Path(os.path.expandvars(folder)).expanduser()


def convert_folder(
    folder: Path,
    target: Path,
    *,
    size: Size | None = None,
    keep_colour: bool = True,
    test_fraction: float = 0.2,
    seed: int = 42,
) -> Dataset:
    """Convert the dataset in `folder`, and return its description.

    Writes its four IDX files to the folder `target`, with `.part` added to their names. Images are
    uint8 (n, height, width), from 0 (black) to 255, or (n, height, width, 3) if one of them has
    colours and `keep_colour` is set. Labels are uint8 (n,), positions in the dataset's `classes`.
    Never holds all images in memory, unless they are in an .npz file.

    Raises StageError if the folder is missing, if a file in it is damaged, or if the dataset is
    incomplete: each class needs images in both parts, and all images must have the same size.
    """
    check_folder(folder)
    form = Form(size)
    if find_parts(folder) or holds_classes(folder):
        classes, parts, form = read_images(folder, size, keep_colour, test_fraction, seed)
    elif open_arrays := find_arrays(folder):
        classes, parts = read_arrays(folder, open_arrays(), test_fraction, seed)
        parts = form_arrays(folder, parts, size, keep_colour)
    else:
        raise StageError(f"{folder}: has no {TRAIN_IMAGES}, plain or with .gz{hint_at(folder)}")
    check_parts(folder, classes, parts)
    files = []
    for name, (images, labels) in PARTS.items():
        part = parts[name]
        files.append(write_idx(target, images, part.read()))
        files.append(write_idx(target, labels, Pieces(part.labels.shape, "u1", [part.labels])))
        pixels = idx.read(target / f"{images}.part", idx.IMAGES)
        if (level := pixels.min()) == pixels.max():
            raise StageError(
                f"{folder}: all pixels of the {name} images have one level, {level} of 255, so "
                "there is nothing to learn; check how the images were written"
            )
    title = unicodedata.normalize("NFC", folder.resolve().name)
    return Dataset(
        title=title.encode(errors="backslashreplace").decode(),  # a name may not be UTF-8
        classes=tuple(classes),
        licence="not stated",
        files=(files[0], files[1], files[2], files[3]),
        whites=form.whites,
    )


def write_idx(target: Path, name: str, array: Pieces) -> IdxFile:
    """Write an IDX file with `.part` added to its name."""
    path = target / f"{name}.part"
    with write_atomically(path) as part, part.open("wb") as stream:
        stream.write(idx.dump_header(array.shape))
        for piece in array.pieces:
            stream.write(piece.tobytes())
    with path.open("rb") as stream:
        return IdxFile(name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def check_folder(folder: Path) -> None:
    """Raise StageError, which says what is there instead, if `folder` is not a folder."""
    if folder.is_dir():
        return
    tracked = folder.with_name(f"{folder.name}.dvc")
    if folder.suffix.lower() in ARCHIVES and folder.is_file():
        found = "that is an archive; unpack it, and name the unpacked folder"
    elif folder.exists():
        found = "that is a file; name the folder that holds it"
    elif folder.is_symlink():
        found = f"the link leads to {folder.readlink()}, which does not exist"
    elif tracked.exists():
        found = f"there is no such folder; get it with `dvc pull {tracked}`"
    else:
        found = "there is no such folder"
    raise StageError(f"download.folder is {str(folder)!r}: {found}")


def find_inner(folder: Path) -> Path | None:
    """Return a folder with a dataset that lies one or two levels below `folder`."""
    folders = [path for path in list_visible(folder) if path.is_dir()]
    for inner in (*folders, *(deep for outer in folders for deep in list_visible(outer))):
        if inner.is_dir() and (find_parts(inner) or find_arrays(inner)):
            return inner
    return None


def holds_classes(folder: Path) -> bool:
    """Return whether the folders in `folder` are classes with images."""
    return (
        has_classes(folder)
        and not find_idx_files(folder, TRAIN_IMAGES)
        and find_inner(folder) is None
    )


def hint_at(folder: Path) -> str:
    """Return what a folder without a dataset has instead, as the end of a message."""
    if inner := find_inner(folder):
        return f"; the dataset is in {inner}, so set download.folder to that"
    names = [path.name for path in list_visible(folder)]
    archives = [name for name in names if Path(name).suffix.lower() in ARCHIVES]
    if archives and not any(find_idx_files(folder, name) for name in (TRAIN_IMAGES, TRAIN_LABELS)):
        return f"; unpack {archives[0]} first"
    text = ", no train/<class> and test/<class> with images, no .npz and no .csv"
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        text += f"; it holds {', '.join(names[:5])}{more}; datasets/README.md says what can be read"
    return text


def form_arrays(
    folder: Path, parts: dict[str, Part], size: Size | None, keep_colour: bool
) -> dict[str, Part]:
    """Return parts whose images are in one form: in colour if one of them has colours."""
    colour = False
    for name, part in parts.items():
        whole = part.read()
        shape = whole.shape
        if len(shape) not in idx.IMAGES or shape[3:] not in ((), (1,), (3,)) or 0 in shape[1:]:
            raise StageError(
                f"{folder}: expected images (n, height, width), or (n, height, width, 3) in "
                f"colour, found {shape} in {name}"
            )
        if keep_colour and shape[3:] == (3,):
            colour = colour or any(map(is_coloured, whole.pieces))
    form = Form(size, colour)
    return {
        name: Part(partial(convert_arrays, part.read, form), part.labels)
        for name, part in parts.items()
    }


def convert_arrays(read: Callable[[], Pieces], form: Form) -> Pieces:
    """Return images, which are arrays, in another form."""
    whole = read()
    count, height, width, *channels = whole.shape
    size, end = form.size or (width, height), [3] if form.colour else []
    if (size, end) == ((width, height), channels):
        return whole
    squeeze = (..., 0) if channels == [1] else ...
    pieces = (
        np.stack([convert(Image.fromarray(image[squeeze]), form) for image in piece])
        for piece in whole.pieces
        if len(piece)
    )
    return Pieces((count, size[1], size[0], *end), np.uint8, pieces)


def check_parts(folder: Path, classes: list[str], parts: dict[str, Part]) -> None:
    """Raise StageError unless each class has images in both parts, and all have the same size."""
    counts = {
        name: np.bincount(part.labels, minlength=len(classes)) for name, part in parts.items()
    }
    check_counts(folder, classes, counts)
    train, test = (parts[name].read().shape[1:] for name in PARTS)
    if train != test:
        raise StageError(
            f"{folder}: expected images of one size, found {train} pixels in train and {test} in "
            "test; set download.size in params.yaml"
        )
