"""Read and write the IDX format of MNIST's files.

An IDX file holds one array. It starts with two zero bytes, the type (8 means unsigned byte) and the
number of dimensions; then each dimension as a big-endian 32-bit integer; then the values.
Source: "the IDX file format", http://yann.lecun.com/exdb/mnist
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import StageError
from stages.core.files import Bytes, Pieces

PIECE = 1 << 22  # bytes read at a time
LFS_POINTER = b"version https://git-lfs"
UBYTE, INT = 0x08, 0x0C  # types of values
IMAGES = (3, 4)  # dimensions of grey images, and of coloured ones, which have 3 channels


def dump_header(shape: tuple[int, ...]) -> bytes:
    """Return the start of an IDX file that holds an array of unsigned bytes of this shape."""
    return struct.pack(f">HBB{len(shape)}I", 0, UBYTE, len(shape), *shape)


def dump(array: Bytes) -> bytes:
    """Return the content of an IDX file that holds `array`."""
    return dump_header(array.shape) + array.tobytes()


def read(path: Path, dimensions: int | tuple[int, ...], count: int | None = None) -> Bytes:
    """Return the array in an IDX file, or its first `count` entries: uint8, (n, ...).

    A file whose name ends in .gz is decompressed; any other is mapped into memory, so that only the
    parts in use are read. Raises StageError if the file is missing, if its number of dimensions is
    none of `dimensions`, or if its length does not match the shape in its header.
    """
    with _open(path) as stream:
        shape, entry = _read_header(path, stream, dimensions)
        n = shape[0] if count is None else min(count, shape[0])
        if n * entry and path.suffix != ".gz":
            return np.memmap(path, np.uint8, "r", stream.tell(), (n, *shape[1:]))
        return np.frombuffer(stream.read(n * entry), np.uint8).reshape(n, *shape[1:])


def read_pieces(path: Path, dimensions: int | tuple[int, ...]) -> Pieces:
    """Return the array in an IDX file like `read`, but never hold all of it in memory."""
    with _open(path) as stream:
        shape, entry = _read_header(path, stream, dimensions)

    def pieces() -> Iterator[Bytes]:
        with _open(path) as stream:
            stream.seek(4 + 4 * len(shape))
            step, left = max(1, PIECE // max(entry, 1)), shape[0]
            while left and entry:
                n = min(step, left)
                yield np.frombuffer(stream.read(n * entry), np.uint8).reshape(n, *shape[1:])
                left -= n

    return Pieces(shape, np.uint8, pieces())


def read_int_column(path: Path) -> Bytes:
    """Return as uint8 the first column of an IDX file of 32-bit integers with two dimensions.

    QMNIST's labels have this form; the other columns say who wrote the digit.
    """
    with _open(path) as stream:
        shape, entry = _read_header(path, stream, 2, INT)
        column = np.frombuffer(stream.read(shape[0] * entry), ">i4").reshape(shape)[:, 0]
    if column.size and not 0 <= column.min() <= column.max() <= 255:
        wrong = column.min() if column.min() < 0 else column.max()
        raise StageError(f"{path}: expected labels from 0 to 255, found {wrong}")
    return column.astype(np.uint8)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open an IDX file, plain or gzipped, and turn what can go wrong into a StageError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(_name_pointer(path) or f"{path}: not readable as gzip: {error}") from error
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to create it") from None
    except ValueError as error:  # a shape with a 0 in it, but too large for NumPy
        raise StageError(f"{path}: the shape in its header is impossible: {error}") from error


def _read_header(
    path: Path, stream: Any, dimensions: int | tuple[int, ...], kind: int = UBYTE
) -> tuple[tuple[int, ...], int]:
    """Return the shape of the array in an IDX file and the bytes of one entry; check the length."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    magic = stream.read(4)
    allowed = (dimensions,) if isinstance(dimensions, int) else dimensions
    expected = [bytes([0, 0, kind, number]) for number in allowed]
    if magic not in expected:
        names = " or ".join(each.hex() for each in expected)
        raise StageError(
            _name_pointer(path)
            or f"{path}: expected IDX magic {names}, found {magic.hex() or 'nothing'}"
        )
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise StageError(f"{path}: ends in its header, after {length} bytes")
    shape = struct.unpack(f">{magic[3]}I", header)
    sizes = (*shape, 4) if kind == INT else shape
    entry = int(np.prod(sizes[1:], dtype=object))
    if length != 4 + len(header) + shape[0] * entry:
        raise StageError(
            f"{path}: header says {' x '.join(map(str, sizes))} bytes, "
            f"found {length - 4 - len(header)}"
        )
    return shape, entry


def _name_pointer(path: Path) -> str:
    """Return a line if a file is what git shows instead of a file in Git LFS, else nothing."""
    with path.open("rb") as stream:
        pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    return f"{path}: is a Git LFS pointer instead of the file: git lfs pull" if pointer else ""
