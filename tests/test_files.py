"""The files that stages exchange: their bytes, and what happens if they are damaged."""

import io
import json
import os
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.checks import get_refusal
from helpers.damage import damaged, many_examples
from hypothesis import given
from hypothesis import strategies as st

from stages.core.dataset import read_classes
from stages.core.errors import StageError
from stages.core.files import (
    read_csv,
    read_json,
    write_atomically,
    write_csv,
    write_json,
    write_npz,
    write_text,
)
from stages.core.prepared import check_split, read_split

IMAGES = np.linspace(0, 1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
LABELS = np.array([[0, 1, 0], [1, 0, 0]], np.float32)
SPLIT = {"images": IMAGES, "labels": LABELS}
LATE = np.zeros((5000, 1, 1), np.float32)  # the last image is not in the first piece
LATE[-1] = 2
NAN = IMAGES + np.float32("nan")
OBJECTS = np.array([{"a": 1}], object)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "split.npz"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Arrays


def test_split_is_read_back_as_written(path):
    """Also by plain NumPy."""
    write_npz(path, SPLIT)
    with np.load(path, allow_pickle=False) as arrays:
        assert list(arrays) == ["images", "labels"]
        for found in (read_split(path), arrays.values()):
            for array, expected in zip(found, SPLIT.values(), strict=True):
                np.testing.assert_array_equal(array, expected, strict=True)


def test_npz_does_not_depend_on_date_or_umask(tmp_path, monkeypatch):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    before = os.umask(0o022)
    try:
        write_npz(first, SPLIT)
        os.umask(0o077)
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda: 2e9)
            write_npz(second, SPLIT)
    finally:
        os.umask(before)
    assert first.read_bytes() == second.read_bytes()
    assert sha256(first.read_bytes()).hexdigest()[:16] == "05c6044dadd24428"


def test_object_arrays_are_refused(path):
    """Python objects are pickled in an `.npz`, and a pickle can run code."""
    with pytest.raises(ValueError, match="holds Python objects"):
        write_npz(path, {"images": OBJECTS})
    assert names(path.parent) == []


@pytest.mark.parametrize(
    ("save", "arrays", "message"),
    [
        (np.savez, {"images": OBJECTS}, "images.npy holds Python objects"),
        (np.savez_compressed, {"images": np.zeros((999, 9, 9), "f4")}, "images.npy is compressed"),
        (np.savez, {"images": np.asfortranarray(IMAGES)}, "the header of images.npy does not mat"),
        (np.savez, {"image": IMAGES}, "\"There is no item named 'images.npy' in the archive"),
    ],
)
def test_other_npz_is_refused(path, save, arrays, message):
    save(path, labels=LABELS, **arrays)
    assert get_refusal(read_split, path).startswith(f"{path}: not readable as .npz: {message}")


def test_missing_file_is_named_with_the_fix(path):
    for read in (read_split, read_json, read_csv):
        with pytest.raises(StageError, match=f"{path}: not found; run `dvc repro`"):
            read(path)


def array_file(array: np.ndarray = IMAGES) -> bytes:
    """Return the content of an `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def split_file() -> bytes:
    """Return the content of a split."""
    stream = io.BytesIO()
    np.savez(stream, images=IMAGES, labels=LABELS)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"<html>", array_file()],
    ids=["empty", "start of a zip", "web page", "single array"],
)
def test_other_file_is_named_with_the_fix(path, content):
    path.write_bytes(content)
    with pytest.raises(
        StageError, match=f"{path}: not readable as .npz: .*; make it again: find -L {path} "
    ):
        read_split(path)


def test_split_with_a_flipped_bit_is_right_or_refused(path):
    """Once for every byte of the file."""
    write_npz(path, SPLIT)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            images, labels = read_split(path)
        except StageError:
            refused += 1
        else:  # the bit is in a part of the zip header that is not read
            assert images.tobytes() + labels.tobytes() == IMAGES.tobytes() + LABELS.tobytes()
    assert refused > IMAGES.nbytes + LABELS.nbytes


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype("f8"), LABELS, r"images as float32, found float64 of shape \(2, 3, 4\)"),
        (IMAGES, LABELS.astype("u1"), r"labels as float32, found uint8 of shape \(2, 3\)"),
        (IMAGES[..., None], LABELS, r"images with 3 dimensions, .* of shape \(2, 3, 4, 1\)"),
        (np.stack([IMAGES] * 4, axis=-1), LABELS, r"images with 3 .*colours, found .*, 4\)"),
        (IMAGES, LABELS[0], r"labels with 2 dimensions, found float32 of shape \(3,\)"),
        (IMAGES[:0], LABELS[:0], r"at least one image, found shape \(0, 3, 4\)"),
        (IMAGES[:, :0], LABELS, r"at least one image, found shape \(2, 0, 4\)"),
        (IMAGES, LABELS[:1], "2 labels, found 1"),
        (IMAGES, LABELS[:0], "2 labels, found 0"),
        (NAN, LABELS, r"pixels in \[0, 1\], found \[nan, nan\]"),
        (IMAGES * 255, LABELS, r"pixels in \[0, 1\], found \[0.0, 255.0\]"),
        (IMAGES * np.float32(1.5), LABELS, r"pixels in \[0, 1\], found \[0.0, 1.5\]"),
        (LATE, np.eye(1, dtype=np.float32).repeat(5000, 0), r"pixels .* found \[0.0, 2.0\]"),
        (-IMAGES, LABELS, r"pixels in \[0, 1\], found \[-1.0, -?0.0\]"),
        (IMAGES, LABELS * 0, "one-hot labels, found a row that is not one-hot"),
        (IMAGES, LABELS * 2, "one-hot labels, found a row that is not one-hot"),
        (IMAGES, np.ones_like(LABELS), "one-hot labels, found a row that is not one-hot"),
        (
            IMAGES,
            np.maximum(LABELS, np.float32(0.5)),
            "one-hot labels, found a row that is not one-hot",
        ),
        (IMAGES, LABELS * np.float32("nan"), "one-hot labels, found a row that is not one-hot"),
        (IMAGES, LABELS[:, :0], "one-hot labels, found a row that is not one-hot"),
    ],
)
def test_other_arrays_are_refused(path, images, labels, message):
    """The message says what was expected and what was found."""
    with pytest.raises(StageError, match=f"^{path}: expected {message}$"):
        check_split(path, images, labels)
    write_npz(path, {"images": images, "labels": labels})
    with pytest.raises(StageError, match=f"^{path}: expected {message}$"):
        read_split(path)


@many_examples
@given(damaged(split_file()))
def test_damaged_split_is_right_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "split.npz"
    path.write_bytes(content)
    try:
        images, labels = read_split(path)
    except StageError:
        return
    check_split(path, images, labels)


@many_examples
@given(damaged(array_file()))
def test_split_with_damaged_images_is_right_or_refused(tmp_path_factory, content):
    """Here the archive around the damaged array is intact, and so are its checksums."""
    path = tmp_path_factory.getbasetemp() / "split.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", array_file(LABELS))
    try:
        images, labels = read_split(path)
    except StageError:
        return
    check_split(path, images, labels)


# Text


def test_json_has_these_bytes(path):
    """Sorted keys, full precision and LF at the end of each line."""
    write_json(path, {"b": 0.1 + 0.2, "a": ["é"]})
    expected = b'{\n  "a": [\n    "\\u00e9"\n  ],\n  "b": 0.30000000000000004\n}\n'
    assert path.read_bytes() == expected
    assert read_json(path) == {"a": ["é"], "b": 0.1 + 0.2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_nan_and_keeps_the_old_file(path, value):
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"loss": value})
    assert json.loads(path.read_text()) == {"loss": 1}
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"classes": ["0",', "Expecting value"), ("[" * 100_000, "maximum recursion depth")],
)
def test_damaged_json_is_named(path, text, message):
    path.write_text(text)
    with pytest.raises(StageError, match=f"{path}: not readable as JSON: {message}"):
        read_json(path)


def test_csv_is_read_back_as_written(path):
    table = pd.DataFrame({"loss": [0.1 + 0.2, 1e-30], "name": ["01", "NA"]})
    write_csv(path, table)
    assert path.read_bytes() == b"loss,name\n0.30000000000000004,01\n1e-30,NA\n"
    pd.testing.assert_frame_equal(read_csv(path, text=("name",)), table, check_exact=True)


def test_text_keeps_line_ends_and_escapes_what_is_not_text(path):
    """A name of a file may hold bytes that are not UTF-8."""
    write_text(path, "가\udcff\r\n\n")
    assert path.read_bytes() == "가".encode() + b"\\udcff\r\n\n"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n3,4,5\n", b"a\n\xff\n"])
def test_damaged_csv_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(StageError, match=f"{path}: not readable as CSV: "):
        read_csv(path)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_json, b'{"classes": ["0", "1"]}'),
        (read_classes, b'{"classes": ["0", "1"]}'),
        (read_csv, b"index,actual,predicted,confidence\n0,7,7,0.99\n"),
    ],
)
@many_examples
@given(data=st.data())
def test_damaged_text_is_read_or_refused(tmp_path_factory, read, content, data):
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_bytes(data.draw(damaged(content)))
    try:
        read(path)
    except StageError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # some damaged files can still be read


# Writing that fails


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file(path, error):
    path.write_text("old")

    def break_off():
        with write_atomically(path) as part:
            part.write_text("ne")
            raise error

    with pytest.raises(error):
        break_off()
    assert path.read_text() == "old"
    assert names(path.parent) == [path.name]


def test_file_is_replaced_only_when_complete(path):
    path.write_text("old")
    with write_atomically(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["file/x.json", "file/folder/x.json"])
def test_folder_that_cannot_be_created_is_named(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StageError, match=f"^{tmp_path / name}: cannot be written: .*: {tmp_path}/fi"
    ):
        write_text(tmp_path / name, "")
    assert names(tmp_path) == ["file"]


def test_folder_in_place_of_the_file_is_kept(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StageError, match=r"x\.json: cannot be written: Is a directory"):
        write_text(tmp_path / "x.json", "")
    assert names(tmp_path) == ["x.json"]


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np, pandas as pd
from stages.core.files import write_csv, write_json, write_npz
from stages.core.errors import run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
write = {
    "npz": lambda path: write_npz(path, {"images": np.zeros((100, 28, 28), np.float32)}),
    "csv": lambda path: write_csv(path, pd.DataFrame({"loss": np.zeros(10_000)})),
    "json": lambda path: write_json(path, list(range(10_000))),
}
run(lambda: write[sys.argv[1]](Path("old")))
"""


@pytest.mark.parametrize("kind", ["npz", "csv", "json"])
def test_full_disk_keeps_the_old_file(run_python, tmp_path, kind):
    """The process ends with one line that names the file."""
    pytest.importorskip("resource", reason="limits the size of files")
    (tmp_path / "old").write_text("old")
    ended = run_python("-c", FILL_THE_DISK, kind)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: old: cannot be written: File too large\n"
    assert (tmp_path / "old").read_text() == "old"
    assert names(tmp_path) == ["old"]
