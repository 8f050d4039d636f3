"""Throw damaged files at what reads them, guided by coverage: `make fuzz SECONDS=60`.

Each target may raise StageError and nothing else; libFuzzer also stops at 2 GB of memory and at an
input that takes longer than 10 seconds. Every run starts from files that the project itself writes.

    python tests/fuzz.py TARGET [SECONDS]
"""

import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import stages  # noqa: F401  # before NumPy: it sets what that reads when loaded

with atheris.instrument_imports(include=["stages", "tools", "ruamel", "zipfile", "numpy.lib"]):
    import numpy as np

    from stages import idx
    from stages.artifacts import read_classes, read_csv, read_digits, write_npz
    from stages.parameters import PARAMETERS, StageError, read_yaml
    from tools.recipe import check

SCRATCH = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
INPUT = SCRATCH / "input"


def fuzz_idx(path: Path) -> None:
    array = idx.read(path, 3)
    assert idx.dump(array) == path.read_bytes()


def fuzz_parameters(path: Path) -> None:
    check(read_yaml(path))


def fuzz_digits(path: Path) -> None:
    images, labels = read_digits(path)
    assert len(images) == len(labels)


def fuzz_array(path: Path) -> None:
    """As fuzz_digits, but with the archive around the damaged array in order."""
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", SEEDS["array"][1])
    fuzz_digits(path)


def fuzz_classes(path: Path) -> None:
    read_classes(path)


def fuzz_table(path: Path) -> None:
    read_csv(path, text=("actual",))


def array_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


IMAGES = np.zeros((2, 3, 4), np.float32)
LABELS = np.eye(2, 10, dtype=np.float32)
write_npz(INPUT, {"images": IMAGES, "labels": LABELS})

SEEDS = {
    "idx": [idx.dump(np.zeros((2, 3, 4), np.uint8))],
    "parameters": [(ROOT / PARAMETERS).read_bytes()],
    "digits": [INPUT.read_bytes()],
    "array": [array_file(IMAGES), array_file(LABELS)],
    "classes": [b'{"classes": ["0", "1"]}'],
    "table": [b"index,actual,predicted,confidence\n0,7,7,0.99\n"],
}


def main(target: str, seconds: str = "60") -> None:
    test = globals()[f"fuzz_{target}"]

    def once(data: bytes) -> None:
        INPUT.write_bytes(data)
        try:
            test(INPUT)
        except StageError as error:
            assert str(error).startswith(("/", "params.yaml")), error

    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2000", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={ROOT}/reports/", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
