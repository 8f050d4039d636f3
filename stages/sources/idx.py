"""Read and write the IDX format of MNIST's files.

An IDX file holds one array. It starts with two zero bytes, the type (8 means unsigned byte) and the
number of dimensions; then each dimension as a big-endian 32-bit integer; then the values.
Source: "the IDX file format", http://yann.lecun.com/exdb/mnist
"""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from stages.core.errors import StageError
from stages.core.files import Bytes


def dump(array: Bytes) -> bytes:
    """Return the content of an IDX file that holds `array`."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def read(path: Path, dimensions: int, count: int | None = None) -> Bytes:
    """Return the array in an IDX file, or its first `count` entries: uint8, (n, ...).

    A file whose name ends in .gz is decompressed; any other is mapped into memory, so that only the
    parts in use are read. Raises StageError if the file is missing, if it
    does not have `dimensions` dimensions, or if its length does not match the shape in its header.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            magic = stream.read(4)
            expected = bytes([0, 0, 8, dimensions])
            if magic != expected:
                raise StageError(
                    f"{path}: expected IDX magic {expected.hex()}, found {magic.hex() or 'nothing'}"
                )
            header = stream.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise StageError(f"{path}: ends in its header, after {length} bytes")
            shape = struct.unpack(f">{dimensions}I", header)
            entry = int(np.prod(shape[1:], dtype=object))
            if length != 4 + len(header) + shape[0] * entry:
                raise StageError(
                    f"{path}: header says {' x '.join(map(str, shape))} bytes, "
                    f"found {length - 4 - len(header)}"
                )
            n = shape[0] if count is None else min(count, shape[0])
            if n * entry and path.suffix != ".gz":
                return np.memmap(path, np.uint8, "r", stream.tell(), (n, *shape[1:]))
            return np.frombuffer(stream.read(n * entry), np.uint8).reshape(n, *shape[1:])
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(f"{path}: not readable as gzip: {error}") from error
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to create it") from None
    except ValueError as error:  # a shape with a 0 in it, but too large for NumPy
        raise StageError(f"{path}: header says shape {shape}: {error}") from error
