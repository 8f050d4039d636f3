"""The IDX format of MNIST's files: a magic number, the shape, then unsigned bytes.

Format: http://yann.lecun.com/exdb/mnist, "the IDX file format": two zero bytes, the type (8 is an
unsigned byte), the number of dimensions, each dimension as a big-endian 32-bit integer, the values.
"""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.core.errors import StageError

Bytes = npt.NDArray[np.uint8]


def dump(array: Bytes) -> bytes:
    """Return the IDX payload of an array of bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def read(path: Path, dimensions: int, count: int | None = None) -> Bytes:
    """Return the array in an IDX file, or its first `count` entries: uint8, (n, ...).

    A file whose name ends in .gz is unpacked. Raises StageError unless the file's magic number
    announces `dimensions` and the shape in its header matches its length.
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
            return np.frombuffer(stream.read(n * entry), np.uint8).reshape(n, *shape[1:])
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(f"{path}: not readable as gzip: {error}") from error
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to get it") from None
    except ValueError as error:  # no bytes in all, but dimensions that no array can have
        raise StageError(f"{path}: header says shape {shape}: {error}") from error
