"""Read the prepared splits, and check that they are what training expects.

A split is an `.npz` file that the stage preprocess writes. It holds two arrays of n images and
their labels:

    images    (n, height, width) or (n, height, width, 3)    float32    pixels in [0, 1]
    labels    (n, classes)                                   float32    one-hot: a single 1 in a row
"""

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from stages.core.errors import StageError, name_faults
from stages.core.files import Array, Floats, name_replacement, split_into_pieces

Split = tuple[Floats, Floats]  # images (n, height, width[, 3]) and labels (n, classes)

BLOCK = 1 << 20  # bytes read at a time


def read_split(path: Path) -> Split:
    """Return the images and labels of a prepared split.

    Both arrays are memory maps: the system reads a part from disk when it is used, and can free the
    memory again. Raises StageError if the file is missing or damaged, or is not a prepared split.
    The whole file is read once to check this.
    """
    remedy = f"; make it again: {name_replacement(path)}"
    with name_faults(path, ".npz", remedy), zipfile.ZipFile(path) as archive:
        # np.load would not close a damaged file.
        members = [archive.getinfo(f"{name}.npy") for name in ("images", "labels")]
        images, labels = (map_member(path, member) for member in members)
    check_split(path, images, labels)
    return images, labels


def map_member(path: Path, member: zipfile.ZipInfo) -> Array:
    """Return a memory map of an array in the `.npz` file at `path`, after checking its CRC-32.

    Raises ValueError for a compressed member, and for an array of Python objects, because such an
    array is stored as a pickle.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(30)  # ends with the lengths of the name and of the extra field
        stream.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
        start = stream.tell()
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{member.filename} has version {version} of the .npy format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        size = stream.tell() - start + math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        if fortran_order or size != member.file_size:
            raise ValueError(f"the header of {member.filename} does not match its content")
        array_start = stream.tell()
        stream.seek(start)
        checksum, left = 0, size
        while left and (block := stream.read(min(left, BLOCK))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    if left:
        raise ValueError(f"{member.filename} ends {left} bytes too early")
    if checksum != member.CRC:
        raise ValueError(f"{member.filename} has the wrong CRC-32")
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", array_start, shape)


def check_split(path: Path, images: Array, labels: Array) -> None:
    """Raise StageError unless `images` and `labels` have a prepared split's types and values."""

    def expect(condition: bool, expected: str, found: object) -> None:
        if not condition:
            raise StageError(f"{path}: expected {expected}, found {found}")

    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    for name, array, right, dimensions in (
        ("images", images, grey_or_colour, "3 dimensions, or 4 with 3 colours"),
        ("labels", labels, labels.ndim == 2, "2 dimensions"),
    ):
        found = f"{array.dtype} of shape {array.shape}"
        expect(array.dtype == np.float32, f"{name} as float32", found)
        expect(right, f"{name} with {dimensions}", found)
    expect(images.size > 0, "at least one image", f"shape {images.shape}")
    expect(len(images) == len(labels), f"{len(images)} labels", len(labels))
    for piece in split_into_pieces(images.shape):
        low, high = images[piece].min(), images[piece].max()  # NaN fails the comparison below
        expect(bool(low >= 0 and high <= 1), "pixels in [0, 1]", f"[{low}, {high}]")
        rows = labels[piece]
        one_hot = (np.count_nonzero(rows, axis=1) == 1) & ((rows == 1).sum(axis=1) == 1)
        expect(bool(one_hot.all()), "one-hot labels", "a row that is not one-hot")
