"""TODO stages.sources.fetch."""

import gzip
import hashlib
import io
import itertools
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import numpy as np
import requests
import urllib3
from tqdm import tqdm

from stages.core.files import atomic
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TRAIN_IMAGES, IdxFile

CHUNK = 1 << 18  # bytes
SLOWEST = 10_000  # bytes a second on average: a mirror below that is given up


class SourceError(Exception):
    """Why one source did not yield the right bytes."""


class TransientError(SourceError):
    """A fault that may be gone at the next attempt."""


Source = Callable[[IdxFile], AbstractContextManager[BinaryIO]]


def has_expected_hash(path: Path, file: IdxFile) -> bool:
    """Return whether the file at `path` holds exactly the catalogue's bytes."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def fetch(
    file: IdxFile, label: str, source: Source, raw: Path, attempts: int = 3, pause: float = 1.0
) -> None:
    """Store one file in `raw`; after a passing fault wait `pause` seconds, doubling, and retry."""
    for attempt in itertools.count(1):
        try:
            with atomic(raw / file.name) as part, source(file) as stream:
                store(stream, file, part)
        except TransientError as error:
            if attempt == attempts:
                raise SourceError(f"{error} (tried {attempts} times)") from error
            wait = pause * 2 ** (attempt - 1)
            print(f"{label}: {error}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
        else:
            return


def store(stream: BinaryIO, file: IdxFile, path: Path) -> None:
    """Write the payload of `stream`, gzipped or plain, to `path` and hold it to the catalogue."""
    digest, size = hashlib.sha256(), 0
    with (
        path.open("wb") as target,
        tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True) as bar,
    ):
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
    """Yield the uncompressed bytes of an IDX file in chunks, whichever way it is packed."""
    # A file is buffered, and a second layer would close it unasked.
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    plain: BinaryIO = buffered
    try:
        start = buffered.peek(4)[:4]
        if start.startswith(b"\x1f\x8b"):
            plain = gzip.GzipFile(fileobj=buffered)  # type: ignore[assignment]
        elif start.lstrip().startswith(b"<"):
            raise SourceError(f"{file.name} is a web page, expected IDX or gzip")
        while chunk := plain.read(CHUNK):
            yield chunk
    except EOFError as error:
        raise TransientError(f"{file.name} ended in the middle of its gzip stream") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{file.name} is not valid gzip: {error}") from error
    except OSError as error:
        raise SourceError(f"{file.name} cannot be read: {error.strerror or error}") from error


@contextmanager
def open_local(folder: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open an IDX file, or that name with `.gz`, in a local folder."""
    found = [path for path in (folder / file.name, folder / f"{file.name}.gz") if path.is_file()]
    if not found:
        raise SourceError(f"has no {file.name}, plain or with .gz")
    try:
        stream = found[0].open("rb")
    except OSError as error:
        raise SourceError(f"{found[0].name} cannot be opened: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def open_digits(file: IdxFile) -> Iterator[BinaryIO]:
    """Open one IDX file made from scikit-learn's 1,797 digits, the last 297 for testing.

    Each of the 8x8 pixels, 0 to 16, becomes 3x3 of 28x28, 0 to 255, in whole numbers only.
    """
    from sklearn.datasets import load_digits  # here, since only this dataset needs scikit-learn

    part = slice(None, 1500) if file.name.startswith("train") else slice(1500, None)
    images, labels = load_digits(return_X_y=True)
    if file.name in (TRAIN_IMAGES, TEST_IMAGES):
        small = images[part].reshape(-1, 8, 8).astype("uint16") * 255 // 16
        array = small.repeat(3, axis=1).repeat(3, axis=2).astype("uint8")
        array = np.pad(array, ((0, 0), (2, 2), (2, 2)))
    else:
        array = labels[part].astype("uint8")
    with io.BytesIO(idx.dump(array)) as stream:
        yield stream


class Body(io.RawIOBase):
    """A response's body as it comes in, given up where it trickles or does not end.

    Time-outs alone would wait for ever on a mirror that sends a byte now and then.
    """

    def __init__(self, response: requests.Response, most: int, patience: float) -> None:
        """Read `response`: at most `most` bytes, slower than SLOWEST for `patience` seconds."""
        self.response, self.most, self.patience = response, most, patience
        self.start, self.size = time.monotonic(), 0

    def readable(self) -> bool:
        """Return that it can be read, as BufferedReader asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what has come in, up to the size of `buffer`, and return how much that is."""
        chunk = self.response.raw.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        self.size += len(chunk)
        if self.size > self.most:
            raise SourceError(f"{self.response.url}: more than {self.most} bytes")
        seconds = time.monotonic() - self.start
        if chunk and seconds > self.patience and self.size < SLOWEST * seconds:
            raise SourceError(f"{self.response.url}: only {self.size} bytes in {seconds:.1f} s")
        return len(chunk)


@contextmanager
def open_mirror(
    mirror: str, file: IdxFile, timeout: tuple[float, float] = (10, 30), patience: float = 30
) -> Iterator[BinaryIO]:
    """Open `<mirror><name>.gz`, with `timeout` in seconds to connect and between two reads.

    A mirror that is slower than SLOWEST, from `patience` seconds on, is given up.
    """
    url = f"{mirror}{file.name}.gz"
    with requests.Session() as session:
        session.max_redirects = 5
        if urlsplit(url).scheme == "https":
            session.adapters.pop("http://")  # a redirect may not leave encryption
        try:
            with closing(session.get(url, stream=True, timeout=timeout)) as response:
                if response.status_code != requests.codes.ok:
                    passing = response.status_code == 429 or response.status_code >= 500
                    raise (TransientError if passing else SourceError)(
                        f"{response.url} answered {response.status_code} {response.reason}"
                    )
                response.raw.auto_close = False  # the reader around it asks once more at the end
                # gzip never adds more than this; a stream of empty blocks would never end.
                yield Body(response, file.size + (1 << 20), patience)  # type: ignore[misc]
        except (requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
            raise SourceError(f"{url}: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(f"{url}: {root_cause(error)}") from error


def root_cause(error: BaseException) -> str:
    """Return what first went wrong, without the layers that libraries wrap around it."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"
