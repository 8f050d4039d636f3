"""Read and write the IDX format of MNIST's files.

An IDX file holds one array. It starts with two zero bytes, the type (8 means unsigned byte) and the
number of dimensions; then each dimension as a big-endian 32-bit integer; then the values.
Source: "the IDX file format", http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import StageError, name_faults
from stages.core.files import Array, Bytes, Pieces, split_into_pieces

LFS_POINTER = b"version https://git-lfs"  # starts what git shows instead of a file in Git LFS
UBYTE, INT = 0x08, 0x0C  # types of values
IMAGES = (3, 4)  # dimensions of grey images, and of coloured ones, which have 3 channels

Dimensions = int | tuple[int, ...]


def dump_header(shape: tuple[int, ...]) -> bytes:
    """Return the start of an IDX file that holds an array of unsigned bytes of this shape."""
    return struct.pack(f">HBB{len(shape)}I", 0, UBYTE, len(shape), *shape)


def dump(array: Bytes) -> bytes:
    """Return the content of an IDX file that holds `array`."""
    return dump_header(array.shape) + array.tobytes()


def read(path: Path, dimensions: Dimensions, count: int | None = None) -> Bytes:
    """Return the array in an IDX file, or its first `count` entries: uint8, (n, ...).

    A file whose name ends in .gz is decompressed; any other is mapped into memory, so that only the
    parts in use are read. Raises StageError if the file is missing, if its number of dimensions is
    none of `dimensions`, or if its length does not match the shape in its header.
    """
    with _open(path) as stream:
        total, *rest = _read_header(path, stream, dimensions)
        shape = (total if count is None else min(count, total), *rest)
        size = math.prod(shape)
        if size and path.suffix != ".gz":
            return np.memmap(path, np.uint8, "r", stream.tell(), shape)
        return np.frombuffer(stream.read(size), np.uint8).reshape(shape)


def read_pieces(path: Path, dimensions: Dimensions) -> Pieces:
    """Return the array in an IDX file like `read`, but never hold all of it in memory."""
    with _open(path) as stream:
        shape = _read_header(path, stream, dimensions)

    def pieces() -> Iterator[Bytes]:
        with _open(path) as stream:
            stream.seek(4 + 4 * len(shape))
            for piece in split_into_pieces(shape):
                own = (piece.stop - piece.start, *shape[1:])
                yield np.frombuffer(stream.read(math.prod(own)), np.uint8).reshape(own)

    return Pieces(shape, np.uint8, pieces())


def read_int_column(path: Path) -> Bytes:
    """Return as uint8 the first column of an IDX file of 32-bit integers with two dimensions.

    QMNIST's labels have this form; the other columns say who wrote the digit.
    """
    with _open(path) as stream:
        shape = _read_header(path, stream, 2, INT)
        table = np.frombuffer(stream.read(4 * math.prod(shape)), ">i4").reshape(shape)
    return to_bytes(path, table[:, 0])


def to_bytes(path: Path, values: Array) -> Bytes:
    """Return integers from 0 to 255 as uint8. Raises StageError for other values."""
    if values.dtype.kind not in "iu":
        raise StageError(f"{path}: expected integers from 0 to 255, found {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        wrong = values.min() if values.min() < 0 else values.max()
        raise StageError(f"{path}: expected values from 0 to 255, found {wrong}")
    return values.astype(np.uint8, copy=False)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open an IDX file, plain or gzipped, and turn what can go wrong into a StageError."""
    with name_faults(path, "IDX"):
        with path.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise StageError(f"{path}: is a Git LFS pointer instead of the file: git lfs pull")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream


def _read_header(
    path: Path, stream: Any, dimensions: Dimensions, kind: int = UBYTE
) -> tuple[int, ...]:
    """Return the shape of the array in an IDX file. Raises StageError if its length differs."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    magic = stream.read(4)
    allowed = (dimensions,) if isinstance(dimensions, int) else dimensions
    expected = [bytes([0, 0, kind, number]) for number in allowed]
    if magic not in expected:
        names = " or ".join(each.hex() for each in expected)
        raise StageError(f"{path}: expected IDX magic {names}, found {magic.hex() or 'nothing'}")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise StageError(f"{path}: ends in its header, after {length} bytes")
    shape = struct.unpack(f">{magic[3]}I", header)
    sizes, found = (*shape, 4) if kind == INT else shape, length - 4 - len(header)
    if found != math.prod(sizes):
        raise StageError(f"{path}: header says {' x '.join(map(str, sizes))} bytes, found {found}")
    return shape
