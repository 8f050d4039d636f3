"""Fetch IDX files from a source into the raw folder, and check their size and SHA-256.

A source is a function that opens one file of a dataset for reading, plain or gzipped. local.py,
npm.py and mirror.py define the sources.
"""

import gzip
import hashlib
import io
import itertools
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from stages.core.errors import StageError
from stages.core.files import read_json, write_atomically
from stages.core.terminal import print_line
from stages.sources.catalogue import Dataset, IdxFile
from stages.sources.idx import LFS_POINTER

CHUNK = 1 << 18  # bytes

Source = Callable[[IdxFile], AbstractContextManager[BinaryIO]]


class SourceError(Exception):
    """A source did not give the expected bytes. The message says why."""


class TransientError(SourceError):
    """A fault of a source that a retry may fix, such as a lost connection."""


def has_expected_hash(path: Path, file: IdxFile) -> bool:
    """Return whether the file at `path` has the size and SHA-256 of the catalogue."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def list_missing(dataset: Dataset, raw: Path) -> list[IdxFile]:
    """Return the files of `dataset` that are not in the folder `raw`, or have other bytes there."""
    return [file for file in dataset.files if not has_expected_hash(raw / file.name, file)]


def remove_other_dataset(dataset: Dataset, description: Mapping[str, object], raw: Path) -> None:
    """Delete files of another dataset, so that the folder `raw` never holds files of two datasets.

    `description` is the content that dataset.json will have. Without dataset.json, no stage reads
    the other files. So this function deletes dataset.json first, and the caller writes it last.
    """
    try:
        same = read_json(raw / "dataset.json") == description
    except StageError:
        same = False
    if not same:
        (raw / "dataset.json").unlink(missing_ok=True)
        for file in list_missing(dataset, raw):
            (raw / file.name).unlink(missing_ok=True)


def fetch_file(
    file: IdxFile, label: str, source: Source, raw: Path, attempts: int = 3, pause: float = 1.0
) -> None:
    """Fetch one file from `source` into the folder `raw`. Messages call the source `label`.

    After a TransientError, wait `pause` seconds and retry; each further pause is twice as long.
    Raises SourceError after the last of `attempts`, and at once if a retry cannot help.
    """
    for attempt in itertools.count(1):
        try:
            with write_atomically(raw / file.name) as part, source(file) as stream:
                store(stream, file, part)
        except TransientError as error:
            if attempt == attempts:
                raise SourceError(f"{error} (tried {attempts} times)") from error
            wait = pause * 2 ** (attempt - 1)
            print_line(f"{label}: {error}; trying again in {wait:g} s", sys.stderr)
            time.sleep(wait)
        else:
            return


def store(stream: BinaryIO, file: IdxFile, path: Path) -> None:
    """Write the uncompressed content of `stream` to `path`, and check its size and SHA-256.

    Raises SourceError if they differ from the catalogue's, and TransientError if bytes are missing.
    """
    digest, size = hashlib.sha256(), 0
    bar = tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True)
    with path.open("wb") as target, bar:
        for chunk in read_payload(stream, file):
            target.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            size += len(chunk)
            if size > file.size:
                raise SourceError(f"{file.name} is larger than {file.size} bytes")
    if size < file.size:
        raise TransientError(f"{file.name} ended after {size} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise SourceError(f"{file.name} has SHA-256 {digest.hexdigest()}, expected {file.sha256}")


def read_payload(stream: BinaryIO, file: IdxFile) -> Iterator[bytes]:
    """Yield the uncompressed content of `stream`, which is plain or gzipped, in chunks."""
    # An opened file is already a BufferedReader. A second one around it would close the file when
    # Python deletes that second one.
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    plain: BinaryIO = buffered
    try:
        start = buffered.peek(len(LFS_POINTER))[: len(LFS_POINTER)]
        if start.startswith(b"\x1f\x8b"):
            plain = gzip.GzipFile(fileobj=buffered)  # type: ignore[assignment]
        elif start.lstrip().startswith(b"<"):
            raise SourceError(f"{file.name} is a web page, expected IDX or gzip")
        elif start == LFS_POINTER:
            raise SourceError(f"{file.name} is a Git LFS pointer instead of the file: git lfs pull")
        while chunk := plain.read(CHUNK):
            yield chunk
    except EOFError as error:
        raise TransientError(f"{file.name} ended in the middle of its gzip stream") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{file.name} is not valid gzip: {error}") from error
    except OSError as error:
        raise SourceError(f"{file.name} cannot be read: {error.strerror or error}") from error
