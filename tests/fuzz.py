"""Throw damaged files at what reads files, guided by the code that they reach.

A reader may raise StageError and nothing else; libFuzzer also stops at an input that takes longer
than a minute or more than 2 GB. The damage starts from a file in order. Which reader, idx,
parameters, arrays, digits, classes, table, package or picture, and in libFuzzer's options how long:

    python -m tests.fuzz idx -max_total_time=60
"""

import io
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports():
    import tarfile
    import zipfile

ROOT = Path(__file__).parents[1]
# libFuzzer limits the peak, which on Linux starts at that of the process that started this one.
INHERITED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
LIMITS = ["-timeout=60", f"-rss_limit_mb={INHERITED + 2000}", "-max_len=16384"]

Target = tuple[Callable[[Path], object], list[bytes]]  # what reads a file, and files in order


def idx() -> Target:
    from stages import idx

    def read(path: Path) -> None:
        assert idx.dump(idx.read(path, 3)) == path.read_bytes()

    return read, [bytes.fromhex("00000803 00000002 00000003 00000004") + bytes(24)]


def parameters() -> Target:
    from stages.hyperparameters import ModelParameters, TrainParameters

    def read(path: Path) -> None:
        for section in (ModelParameters, TrainParameters):
            section.read(path)

    return read, [(ROOT / "params.yaml").read_bytes()]


def arrays() -> Target:
    """What read_digits reads: an archive of arrays."""
    from stages.artifacts import read_digits

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in DIGITS.items():
            archive.writestr(name, content)
    return read_digits, [file.getvalue()]


def digits() -> Target:
    """As `arrays`, but with the archive around the damaged images in order."""
    from stages.artifacts import read_digits

    def read(path: Path) -> None:
        images = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", images)
            archive.writestr("labels.npy", DIGITS["labels.npy"])
        read_digits(path)

    return read, [DIGITS["images.npy"]]


def classes() -> Target:
    from stages.artifacts import read_classes

    return read_classes, [b'{"classes": ["0", "1"]}']


def table() -> Target:
    from stages.artifacts import read_csv

    return read_csv, [b"index,actual,predicted,confidence\n0,7,7,0.99\n"]


def package() -> Target:
    """The archive in an npm package, with the gzip stream around it in order."""
    from stages.catalogue import IdxFile
    from stages.download import SourceError, open_member
    from stages.parameters import StageError

    def read(path: Path) -> None:
        try:
            with open_member(path, IdxFile("images", 24, "")) as stream:
                assert len(stream.read()) == 24
        except SourceError as error:
            raise StageError(f"{path}: {error}") from error

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("package/images")
        member.size = 24
        archive.addfile(member, io.BytesIO(bytes(24)))
    return read, [file.getvalue()]


def picture() -> Target:
    from PIL import Image

    from tools import picture

    def read(path: Path) -> None:
        picture.read(path.read_bytes())

    files = {kind: io.BytesIO() for kind in picture.FORMATS}
    for kind, file in files.items():
        Image.linear_gradient("L").resize((32, 32)).save(file, kind)
    return read, [file.getvalue() for file in files.values()]


def array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DIGITS = {
    "images.npy": array_file(np.zeros((2, 3, 4), np.float32)),
    "labels.npy": array_file(np.eye(2, 10, dtype=np.float32)),
}


def main(name: str, *options: str) -> None:
    target: Callable[[], Target] = globals()[name]
    # Seconds to instrument: no library but the one whose code is to guide.
    library = {"parameters": "ruamel", "picture": "PIL"}.get(name, "stages")
    with atheris.instrument_imports(include=["stages", "tools", library]):
        from stages.parameters import StageError

        read, seeds = target()
    scratch = Path(tempfile.mkdtemp())
    path, corpus = scratch / "input", scratch / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def once(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(StageError):
            read(path)

    crash = f"-artifact_prefix={scratch}/"
    atheris.Setup([sys.argv[0], *LIMITS, crash, *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
