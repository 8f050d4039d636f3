"""Write the files that stages hand on, so that equal content means equal bytes, and read them back.

No time stamps, host names, or zip attributes of the operating system; sorted keys; LF line ends.
A file appears under its name only once it is complete.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.core.errors import StageError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path to write to beside `path`; rename it to `path` on success, else delete it.

    Raises StageError where the system refuses: a full disk, a folder without write permission.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StageError(f"{path}: cannot be written: {error.strerror or error}{where}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, there is nothing to delete
            part.unlink()


@contextmanager
def open_zip_member(archive: zipfile.ZipFile, name: str, size: int) -> Iterator[Any]:
    """Open an uncompressed member of about `size` bytes, the same on every system and day.

    Knowing the size, zipfile writes the plain header where that will do; asked for a 64-bit one, it
    writes other bytes before Python 3.11.4 than after.
    """
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3
    member.external_attr = 0o644 << 16
    member.file_size = size
    with archive.open(member, "w") as stream:
        yield stream


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an uncompressed `.npz`: deflated bytes would differ between builds of zlib."""
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            with open_zip_member(archive, f"{name}.npy", array.nbytes) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with its line ends as they are."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys and full precision; NaN is an error."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its row names; floats in the fewest digits that read back the same."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return the table in a CSV file, the columns named in `text` as strings."""
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to make it") from None
    except ValueError as error:
        raise StageError(f"{path}: not readable as CSV: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise StageError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to make it") from None
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path}: not readable as JSON: {error}") from error


def reject_zip_bombs(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError where a member of the archive at `path` would unpack to more than it holds.

    The project's own archives are not compressed, so nothing in them grows.
    """
    size = path.stat().st_size
    for member in archive.infolist():
        if member.file_size > size:
            raise ValueError(f"{member.filename} would unpack to {member.file_size} bytes")
