"""Write and read the files that stages exchange. Equal content always gives equal bytes.

The files hold no time stamps, no host names and no attributes of the operating system. Keys are
sorted and lines end with LF. A file gets its name only when it is complete.
"""

import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.core.errors import StageError, name_faults

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]  # raw pixels in [0, 255], raw labels
Floats = npt.NDArray[np.float32]  # pixels in [0, 1], one-hot labels, probabilities

PIECE = 1 << 22  # values processed at a time


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` at the end of the `with` block.

    After an exception in the block, `path` is unchanged and the temporary file is deleted. Raises
    StageError if the file cannot be written, for example because the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as stream:  # or a power cut could leave the name and half of the bytes
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StageError(f"{path}: cannot be written: {error.strerror or error}{where}") from error
    finally:
        with suppress(OSError):  # the file was renamed, or never created
            part.unlink()


def name_replacement(path: Path) -> str:
    """Return the command that makes a damaged output again.

    The output can be a link to a file in DVC's cache. `dvc repro` would bring that back as it is.
    """
    return f'find -L {path} "$(dvc cache dir)" -samefile {path} -delete && dvc repro'


@contextmanager
def open_zip_member(archive: zipfile.ZipFile, name: str, size: int) -> Iterator[Any]:
    """Open an uncompressed member of about `size` bytes for writing.

    Its bytes do not depend on the date, the system or the version of Python. zipfile uses `size` to
    choose between the plain header and the 64-bit header. Python 3.11.4 changed the 64-bit header.
    """
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3
    member.external_attr = 0o644 << 16
    member.file_size = size
    with archive.open(member, "w") as stream:
        yield stream


@dataclass(frozen=True)
class Pieces:
    """An array that is computed piece by piece, because all of it may not fit in memory."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    pieces: Iterable[Array]  # along the first axis


def split_into_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of at most PIECE values that cover an array along its first axis."""
    count, step = shape[0], max(1, PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def write_npz(path: Path, arrays: Mapping[str, Array | Pieces]) -> None:
    """Write arrays to an uncompressed `.npz`, because compressed bytes depend on zlib's build."""
    with write_atomically(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            dtype = np.dtype(array.dtype)
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects, which would have to be pickled")
            header = {"descr": dtype.str, "fortran_order": False, "shape": array.shape}
            size = math.prod(array.shape) * dtype.itemsize
            with open_zip_member(archive, f"{name}.npy", size) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for piece in array.pieces if isinstance(array, Pieces) else [array]:
                    stream.write(piece.tobytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` as it is."""
    with write_atomically(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 and keep its line ends. What UTF-8 cannot hold is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys and full precision. NaN raises ValueError."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index. A float has only as many digits as its value needs."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return the table in a CSV file. The columns named in `text` are read as strings.

    Raises StageError if the file is missing or damaged.
    """
    with name_faults(path, "CSV"):
        return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises StageError if it is missing or damaged."""
    with name_faults(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def reject_zip_bombs(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError if a member of the archive at `path` is larger than the archive itself.

    The project writes its archives uncompressed, so no member of them can be larger.
    """
    size = path.stat().st_size
    for member in archive.infolist():
        if member.file_size > size:
            raise ValueError(f"{member.filename} would unpack to {member.file_size} bytes")
