"""Read image files: from what they hold to uint8 pixels of one size.

All images of a dataset become grey values (height, width), from 0 (black) to 255, or colours
(height, width, 3). Transparent pixels are shown on white. A photo is turned upright as its EXIF
data says. Of several frames, the first is used.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from stages.core.errors import StageError
from stages.core.files import Array, Bytes
from stages.sources.idx import LFS_POINTER

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MAX_PIXELS = 64_000_000  # the camera of a large phone; half a gigabyte of memory at most
GREY_MODES = ("1", "L", "LA", "La")
# Lossy formats change a channel of a grey image by at most 1. A faint tint counts as grey, too.
MAX_TINT = 8

Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Form:
    """What all image files of a dataset become."""

    size: Size | None = None  # None keeps the size of the file
    colour: bool = False
    # The value that becomes 255, in files with more than 8 bits for each pixel, by the kind of
    # their NumPy type. A kind that is not listed is measured in each file.
    whites: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def open_image(path: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file. Only its header is read.

    Whatever is wrong with the file, also in the `with` block, becomes a StageError.
    """
    try:
        if isinstance(path, Path) and not path.is_file():
            raise OSError("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise StageError(
                        f"{path}: has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} "
                        "are allowed; shrink or delete it"
                    )
                yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = explain(path, error) if isinstance(path, Path) else f"not a readable image: {error}"
        raise StageError(f"{path}: {cause}") from error


def explain(path: Path, error: Exception) -> str:
    """Return why the file at `path` is not an image, and the fix."""
    if path.is_dir():
        return "is a folder; the images of a class have to be directly in its folder"
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which does not exist"
    if not path.is_file():
        return "is a pipe, a socket or a device, not a file; delete it"
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError:
        return f"cannot be read: {error}"
    if start == LFS_POINTER:
        return "is a Git LFS pointer instead of the image: git lfs pull"
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "is a HEIC file; save or export it as JPEG"
    kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return f"not a readable image ({kinds}): {error}; delete or convert it: mogrify -format png"


def read_pixels(path: Path | BinaryIO, form: Form) -> Bytes:
    """Return the pixels of an image file: uint8 (height, width), or (height, width, 3) in colour.

    `path` may also be the open file. Raises StageError if it is not a readable image.
    """
    with open_image(path) as image:
        return convert(image, form)


def convert(image: Image.Image, form: Form) -> Bytes:
    """Return the pixels of an open image.

    Colours become grey with the weights of ITU-R BT.601: 0.299 red, 0.587 green and 0.114 blue. An
    image of another size is scaled until it covers the new size, and its middle is cut out, as in
    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural
    networks", 2012, section 2; by cubic convolution (Keys, "Cubic convolution interpolation for
    digital image processing", 1981), which Pillow widens when an image shrinks.
    """
    if form.size:
        image.draft(image.mode, (2 * max(form.size),) * 2)  # JPEG can skip detail
    upright = ImageOps.exif_transpose(image)
    if (values := get_deep_values(upright)) is not None:
        upright = Image.fromarray(reduce_depth(values, form.whites))
    elif upright.has_transparency_data:
        background = Image.new("RGBA", upright.size, "white")
        background.alpha_composite(upright.convert("RGBA"))
        upright = background
    upright = upright.convert("RGB" if form.colour else "L")
    if form.size and upright.size != form.size:
        upright = ImageOps.fit(upright, form.size)
    return np.asarray(upright)


def get_deep_values(image: Image.Image) -> Array | None:
    """Return the values of an image with more than 8 bits for a pixel, or None for other images.

    Raises ValueError for values below 0, and for those that are not numbers.
    """
    if image.mode[0] not in "IF":
        return None
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high < np.inf:
        raise ValueError(f"its values are from {low} to {high}, expected 0 or more")
    return values


def reject_deep_colours(image: Any) -> None:
    """Raise ValueError for colours or transparency with 16 bits for each channel.

    Pillow reads only the upper 8 bits, which are 0 if a program used only the lower ones.
    """
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)  # BitsPerSample
    if image.format == "PNG" and image.tile:
        bits = (16, 16) if ";16" in str(image.tile[0].args) and image.mode[0] != "I" else (8,)
    if len(bits) > 1 and max(bits) > 8:
        raise ValueError("its colours have 16 bits, expected 8, or one grey channel")


def find_white(values: Array) -> float:
    """Return the value that becomes 255 if `values` are the brightest of a dataset.

    For integers, this is the largest with 8, 10, 12, 14 or more bits, as sensors have.
    """
    highest = values.max().item()
    if values.dtype.kind == "f":
        return float(highest) or 1.0
    bits = max(8, highest.bit_length() + highest.bit_length() % 2)
    return float(2**bits - 1)


def reduce_depth(values: Array, whites: Mapping[str, float]) -> Bytes:
    """Return values from 0 to white as uint8 from 0 to 255. Of integers, the upper bits stay."""
    white = whites.get(values.dtype.kind) or find_white(values)
    if values.dtype.kind == "f":
        levels = np.rint(values / np.float64(white) * 255)
    else:
        levels = values >> (int(white).bit_length() - 8)
    return np.asarray(np.minimum(levels, 255), np.uint8)


def is_coloured(pixels: Bytes) -> bool:
    """Return whether a pixel (..., 3) is clearly not grey."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    high, low = (pick(pick(red, green), blue) for pick in (np.maximum, np.minimum))
    return bool((high - low).max(initial=0) > MAX_TINT)


def measure_form(paths: Iterable[Path], size: Size | None, keep_colour: bool) -> Form:
    """Return what all the image files become, after a look at each of them.

    They become coloured if one of them has colours and `keep_colour` is set, and have the given
    `size`, or their own if it is None. Raises StageError if they differ in size then, or if one of
    them is not an image; its message says how many of its class are not.
    """
    whites: dict[str, float] = {}
    colour, first = False, None
    seen, failed = Counter[Path](), Counter[Path]()
    reason = ""
    for path in paths:
        seen[path.parent] += 1
        try:
            with open_image(path) as image:
                reject_deep_colours(image)
                own = image.size
                # For TIFF, Pillow returns the size of the upright image.
                if image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5:
                    own = own[::-1]
                if (values := get_deep_values(image)) is not None:
                    kind = values.dtype.kind
                    whites[kind] = max(whites.get(kind, 0), find_white(values))
                elif keep_colour and not colour and image.mode not in GREY_MODES:
                    colour = is_coloured(convert(image, Form(size, colour=True)))
        except StageError as error:
            reason = reason or str(error)
            failed[path.parent] += 1
            continue
        first = first or (path, own)
        if size is None and own != first[1]:
            raise StageError(
                f"{path}: {own[0]}x{own[1]} pixels, but {first[0]} has "
                f"{first[1][0]}x{first[1][1]}; all images must have the same size: set "
                f"download.size in params.yaml, for example to [{min(own[0], first[1][0])}, "
                f"{min(own[1], first[1][1])}]"
            )
    for folder, count in failed.items():
        raise StageError(f"{reason} ({count} of the {seen[folder]} files in {folder})")
    assert first is not None  # see check_counts
    return Form(size or first[1], colour, whites)
