"""Custom datasets, as real files in a folder."""

import gzip
import hashlib
import json
import os
import re
import socket
import struct
import unicodedata
from contextlib import chdir
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.io
from helpers import datasets
from helpers.checks import get_refusal, read_contents, write_files
from helpers.memory import measure_memory
from helpers.project import ROOT, Project
from PIL import Image

from stages.core.errors import StageError
from stages.core.files import read_json
from stages.core.settings import read_yaml
from stages.download import main
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, IdxFile
from stages.sources.fetch import SourceError, fetch_file, has_expected_hash
from stages.sources.folder import convert_folder, expand
from stages.sources.image_files import Form, read_pixels
from stages.sources.local import open_local

RANDOM = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)
FILES = {
    TRAIN_IMAGES: RANDOM.integers(0, 256, (6, 4, 3), np.uint8),
    TRAIN_LABELS: LABELS,
    TEST_IMAGES: RANDOM.integers(0, 256, (3, 4, 3), np.uint8),
    TEST_LABELS: LABELS[:3],
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NOT_AN_IMAGE = "not a readable image (AVIF, BMP, GIF, JPEG, PNG, TIFF or WEBP): "


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def write_dataset(folder: Path, changes: dict[str, np.ndarray] | None = None) -> None:
    """Write the four IDX files, some of them changed."""
    arrays = FILES | (changes or {})
    write_files(folder, {name: idx.dump(array) for name, array in arrays.items()})


def draw(folder: Path, names, part="train", count=2, size=(3, 4)) -> None:
    """Save images of noise for each class. `size` is width and height."""
    for name in names:
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = RANDOM.integers(0, 256, size[::-1], np.uint8)
            Image.fromarray(pixels).save(folder / part / name / f"{i}.png")


def draw_parts(folder: Path, size=(3, 4), files=None, **parts) -> None:
    """Save images of the classes a and b, or of those given for a part, and other files."""
    for part, names in ({"train": "ab", "test": "ab"} | parts).items():
        draw(folder, names, part, size=size)
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)


def raw(folder: Path, dimensions: int = 3, **options) -> dict[str, np.ndarray]:
    """Return the arrays in the four IDX files that a folder becomes, by their names."""
    convert_folder(folder, folder.parent, **options)
    return {
        name: idx.read(folder.parent / f"{name}.part", dimensions if "images" in name else 1)
        for name in FILES
    }


def refuse(folder: Path) -> str:
    return get_refusal(convert_folder, folder, folder.parent)


def classes(folder: Path) -> tuple[str, ...]:
    return convert_folder(folder, folder.parent).classes


# IDX files


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"{name}.gz",
        lambda name: name.replace("-idx", ".idx"),  # Kaggle, 7-Zip
        lambda name: f"emnist-letters-{name.replace('t10k', 'test')}",
        lambda name: f"{name}/{name}",  # Kaggle's archive
        lambda name: f"{name.replace('-idx', '.idx')}/{name}",
    ],
)
def test_idx_files_are_read_in_their_spellings(folder, rename):
    for name, array in FILES.items():
        path = folder / rename(name)
        path.parent.mkdir(exist_ok=True)
        content = idx.dump(array)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name], strict=True)


@pytest.mark.parametrize(
    ("factor", "offset", "names", "expected"),
    [
        (1, 0, None, ("0", "1", "2")),
        (1, 0, "\ufeffcat\r\n개\r\ndog\r\n", ("cat", "개", "dog")),
        (1, 1, None, ("1", "2", "3")),  # as in EMNIST's letters
        (1, 1, "a\nb\nc\n", ("a", "b", "c")),
        (1, 1, "N/A\na\nb\nc\n", ("a", "b", "c")),
        (2, 0, None, ("0", "2", "4")),
        (2, 0, "a\nb\nc\nd\ne\n", ("a", "c", "e")),
    ],
)
def test_classes_are_labels_or_classes_txt(folder, capsys, factor, offset, names, expected):
    """Labels may start at 1 and have gaps."""
    labels = LABELS * factor + offset
    write_dataset(folder, {TRAIN_LABELS: labels, TEST_LABELS: labels[:3]})
    if names:
        (folder / "classes.txt").write_bytes(names.encode())
    assert classes(folder) == expected
    assert raw(folder)[TRAIN_LABELS].tolist() == LABELS.tolist()
    left_out = "left out 'b', 'd', of which there are no images" in capsys.readouterr().out
    assert left_out == bool(names and factor == 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({TRAIN_LABELS: LABELS[:5]}, "has 6 train images but 5 labels"),
        ({TEST_LABELS: LABELS[:2], TEST_IMAGES: FILES[TEST_IMAGES][:2]}, "has no test image of '2"),
        ({TEST_LABELS: LABELS[:3] + 1}, "has no train image of '3'"),
        ({TRAIN_LABELS: LABELS * 0, TEST_LABELS: LABELS[:3] * 0}, "has 1 classes, expected 2 to"),
        (
            {TEST_IMAGES: np.zeros((3, 4, 4), np.uint8)},
            "expected images of one size, found (4, 3) pixels in train and (4, 4) in test; set",
        ),
        (
            {TRAIN_IMAGES: np.zeros((6, 0, 3), np.uint8)},
            "expected images (n, height, width), or (n, height, width, 3) in colour, found (6, 0,",
        ),
        (
            {TEST_LABELS: LABELS[:0], TEST_IMAGES: FILES[TEST_IMAGES][:0]},
            "has no test image of '0'",
        ),
        ({TRAIN_IMAGES: np.zeros((6, 4, 3), np.uint8)}, "all pixels of the train images have one"),
        ({TRAIN_IMAGES: np.ones((6, 4, 3, 2), np.uint8)}, "expected images (n, height, width), or"),
        ({TRAIN_IMAGES: np.ones((6, 4, 3, 4), np.uint8)}, "expected images (n, height, width), or"),
    ],
)
def test_incomplete_idx_dataset_is_refused(folder, changes, message):
    write_dataset(folder, changes)
    assert refuse(folder).startswith(f"{folder}: {message}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (b"a\nb\n", ": there is a label 2, but classes.txt has only names for the labels 0 to 1"),
        (b"a\nb\na\n", ": two classes have the name 'a'"),
        (b"a\n\nb\n", ": '' cannot be a class name; use plain text"),
        (b"a\nb\x07\nc\n", r": 'b\x07' cannot be a class name; use plain text"),
        (b"\xff\n", "/classes.txt: not readable as UTF-8: "),
    ],
)
def test_invalid_class_names_are_refused(folder, names, message):
    write_dataset(folder)
    (folder / "classes.txt").write_bytes(names)
    assert refuse(folder).startswith(f"{folder}{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"<html>"), "expected IDX magic 00000803 or 00000804, found 3c68746d"),
        (b"no gzip", "not readable as IDX: Not a gzipped file"),
        (gzip.compress(idx.dump(FILES[TRAIN_IMAGES]))[:-9], "not readable as IDX: Compressed"),
        (POINTER, "is a Git LFS pointer instead of the file: git lfs pull"),
    ],
    ids=["web page", "plain", "cut short", "pointer"],
)
def test_damaged_idx_file_is_named(folder, content, message):
    write_dataset(folder)
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    assert refuse(folder).startswith(f"{folder}/{TRAIN_IMAGES}.gz: {message}")


def dump_qmnist(labels):
    """Return QMNIST's labels: 32-bit integers in eight columns, the class in the first."""
    table = np.zeros((len(labels), 8), ">i4")
    table[:, 0], table[:, 1:] = labels, 4711
    return struct.pack(">HBB2I", 0, 12, 2, *table.shape) + table.tobytes()


def test_qmnist_is_read(folder):
    for part, images, labels in (
        ("train", TRAIN_IMAGES, TRAIN_LABELS),
        ("test", TEST_IMAGES, TEST_LABELS),
    ):
        for kind, content in (
            ("images-idx3-ubyte", idx.dump(FILES[images])),
            ("labels-idx2-int", dump_qmnist(FILES[labels])),
        ):
            (folder / f"qmnist-{part}-{kind}.gz").write_bytes(gzip.compress(content))
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name])


def read_programs():
    """Return the Python programs in datasets/README.md: for EMNIST's IDX and MATLAB files."""
    page = (ROOT / "datasets/README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.S)


def test_emnist_is_turned_as_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    place = Path("datasets/letters")
    place.mkdir(parents=True)
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        content = gzip.compress(idx.dump(FILES[name]))
        (place / f"emnist-letters-{name.replace('t10k', 'test')}.gz").write_bytes(content)
    exec(read_programs()[0])  # noqa: S102
    assert not list(place.glob("*images*.gz"))
    (turned,) = place.glob("*train-images*")
    np.testing.assert_array_equal(idx.read(turned, 3), FILES[TRAIN_IMAGES].transpose(0, 2, 1))


def test_matlab_file_of_emnist_becomes_npz_as_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    images = RANDOM.integers(0, 256, (6, 28, 28), np.uint8)
    part = {"images": images.transpose(0, 2, 1).reshape(6, -1), "labels": LABELS[:, None] + 1}
    scipy.io.savemat("emnist-letters.mat", {"dataset": {"train": part, "test": part}})
    Path("datasets/letters").mkdir(parents=True)
    exec(read_programs()[1])  # noqa: S102
    found = raw(Path("datasets/letters"))
    np.testing.assert_array_equal(found[TRAIN_IMAGES], images)
    assert found[TEST_LABELS].tolist() == LABELS.tolist()


# Images


def test_images_of_the_classes_alternate(folder):
    """Each image has its class's label, and number names are sorted by value."""
    for part, count in (("train", 2), ("test", 1)):
        draw(folder, ["10", "9", "a b", "$x$"], part, count, size=(5, 7))
    found = raw(folder)
    names = classes(folder)
    assert names == ("9", "10", "$x$", "a b")  # numbers by value
    assert found[TRAIN_LABELS].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert found[TRAIN_IMAGES].shape == (8, 7, 5)
    for label, name in enumerate(names):
        for i in range(2):
            with Image.open(folder / "train" / name / f"{i}.png") as image:
                np.testing.assert_array_equal(found[TRAIN_IMAGES][4 * i + label], image)


def test_at_most_256_classes(folder):
    names = [str(i) for i in range(256)]
    for part in ("train", "test"):
        draw(folder, names, part, count=1, size=(2, 2))
    assert raw(folder)[TRAIN_LABELS].tolist() == list(range(256))
    draw(folder, ["256"], count=1, size=(2, 2))
    assert refuse(folder) == f"{folder}: has 257 classes, expected 2 to 256"


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):
        server.bind(path.name)


def add(make, name="train/b/x.png", **parts):
    """Return a function that draws images and makes something else among them."""

    def build(folder):
        draw_parts(folder, **parts)
        make(folder / name)

    return build


def write_two_datasets(folder):
    for kind in ("digits", "letters"):
        write_files(folder, {f"emnist-{kind}-{n}": idx.dump(a) for n, a in FILES.items()})


def cut_an_image(folder):
    draw_parts(folder, size=(40, 40))
    path = folder / "train/b/1.png"
    path.write_bytes(path.read_bytes()[:-200])


def link_to_nothing(folder):
    folder.rmdir()
    folder.symlink_to("elsewhere")


NO_IDX = "{0}: has no train-images-idx3-ubyte, plain or with .gz"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(draw_parts, test=""), "{0}: has no folder test; its folders are train"),
        (partial(draw, names="ab", part="test"), "{0}: has no folder train; its folders are test"),
        (partial(draw_parts, train="abc"), "{0}: has no test image of 'c'"),
        (partial(draw_parts, test="abc"), "{0}: has no train image of 'c'"),
        (add(Path.mkdir, "test/b", test="a"), "{0}: has no test image of 'b'"),
        (
            partial(draw_parts, files={"train/notes.txt": b"x"}),
            "{0}/train/notes.txt: expected a folder with the images of one class",
        ),
        (add(os.mkfifo, "train/c"), "{0}/train/c: expected a folder with the images of one class"),
        (cut_an_image, "{0}/train/b/1.png: " + NOT_AN_IMAGE),
        (
            partial(draw_parts, train=["a", "b\udcff"], test=["a", "b\udcff"]),
            r"{0}: 'b\udcff' cannot be a class name; use plain text",
        ),
        (
            add(lambda path: Image.new("1", (13_000, 13_000)).save(path)),  # 20 KB, or 2 GB
            "{0}/train/b/x.png: has 13000x13000 pixels; at most 64,000,000 are allowed; shrink",
        ),
        (link_to_nothing, "download.folder is '{0}': the link leads to elsewhere, which does"),
        (lambda folder: (folder / "data.zip").touch(), NO_IDX + "; unpack data.zip first"),
        (lambda folder: write_dataset(folder / "mine"), NO_IDX + "; the dataset is in {0}/mine"),
        (partial(draw, names="ab", part="x/y/train"), NO_IDX + "; the dataset is in {0}/x/y"),
        (lambda folder: (folder / "cat").mkdir(), NO_IDX + ", no train/<"),
        (partial(draw_parts, test="", val="ab"), "{0}: has no folder test; its folders are train,"),
        (
            partial(draw_parts, train="", Train="ab", training="ab"),
            "{0}: has both Train and training; keep one",
        ),
        (
            partial(draw_parts, train=["가", unicodedata.normalize("NFD", "가")], test="가"),
            "{0}/train: two folders have the name '가'",
        ),
        (write_two_datasets, "{0}: emnist-digits-train-images-idx3-ubyte and emnist-letters-train"),
    ],
)
def test_what_is_wrong_in_the_folder_is_named(folder, make, message):
    make(folder)
    assert refuse(folder).startswith(message.format(folder))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a pipe, a socket or a device, not a file; delete it"),
        (make_socket, "is a pipe, a socket or a device, not a file; delete it"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device, not a file"),
        (lambda path: path.symlink_to(path.name), "is a link to x.png, which does not exist"),
        (lambda path: path.symlink_to("gone.png"), "is a link to gone.png, which does not exist"),
        (lambda path: path.symlink_to(".."), "is a folder; the images of a class have to be"),
        (Path.mkdir, "is a folder; the images of a class have to be"),
        (Path.touch, NOT_AN_IMAGE),
        (lambda path: path.write_bytes(b"x"), NOT_AN_IMAGE),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), "is a HEIC file; save or export"),
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer instead of the image: git"),
    ],
)
def test_other_things_among_images_are_named(folder, make, message):
    """With the number of such files in the class. Nothing waits for a writer."""
    add(make)(folder)
    found = refuse(folder)
    assert found.startswith(f"{folder}/train/b/x.png: {message}")
    assert found.endswith(f"(1 of the 3 files in {folder}/train/b)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (TRAIN_LABELS, "has no train-labels-idx1"),
        (TEST_LABELS, f": has no {TEST_LABELS}, plain or with .gz"),
        ("classes.txt", "/classes.txt: expected a text file with a class name in each line"),
    ],
)
def test_pipe_instead_of_another_file_is_named(folder, name, said):
    write_dataset(folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert said in refuse(folder)


def test_names_may_be_hidden_or_not_utf_8(folder):
    """Hidden files and those beside the parts are ignored. Linked folders are read."""
    draw_parts(folder, files={"README.txt": b"x", "train/a/.DS_Store": b"x"})
    (folder / "train/.hidden").mkdir()
    (folder / "train/a/0.png").rename(folder / "train/a/\udcff.png")
    other = folder.rename(folder.with_name("\udcff"))
    expected = raw(other)[TRAIN_IMAGES]
    assert expected.shape == (4, 4, 3)
    assert convert_folder(other, folder.parent).title == "\\udcff"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / part).symlink_to(other / part)
    np.testing.assert_array_equal(raw(folder)[TRAIN_IMAGES], expected)


# Pixels


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 77), 77),
        (Image.new("1", (1, 1), 1), 255),
        (Image.new("RGB", (1, 1), (255, 0, 0)), 76),  # 0.299 * 255
        (Image.new("RGB", (1, 1), (0, 255, 0)), 150),
        (Image.new("RGB", (1, 1), (0, 0, 255)), 29),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), 255),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), 204),
        (Image.new("LA", (1, 1), (10, 255)), 10),
        (Image.new("RGB", (1, 1), (0, 255, 0)).convert("P"), 150),
        (Image.fromarray(np.full((1, 1), 0xABCD, np.uint16)), 0xAB),
    ],
    ids=["grey", "bit", "red", "green", "blue", "clear", "faint", "opaque", "palette", "16 bits"],
)
def test_every_kind_of_pixel_becomes_grey(tmp_path, image, expected):
    image.save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png", Form()).tolist() == [[expected]]


def save_levels(folder, to_file, suffix):
    """Save images of noise from 0 to 1 for two classes, as `to_file` turns them into an image."""
    levels = np.random.default_rng(3).random((8, 6, 6))
    for number, image in enumerate(levels):
        place = folder / ("train" if number < 4 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        to_file(image).save(place / f"{number}.{suffix}")
    return levels[:4]


def as_type(dtype, white):
    return lambda levels: Image.fromarray((levels * white).astype(dtype))


@pytest.mark.parametrize(
    ("dtype", "white", "suffix"),
    [
        (np.uint16, 255, "png"),
        (np.uint16, 4095, "png"),
        (np.uint16, 65535, "png"),
        (np.uint16, 1023, "tif"),
        (">u2", 4095, "tif"),
        (np.int32, 255, "tif"),
        (np.int32, 1_000_000, "tif"),
        (np.float32, 1, "tif"),
        (np.float32, 255, "tif"),
        (np.float32, 1e-3, "tif"),
    ],
)
def test_range_of_deep_images_is_measured(folder, dtype, white, suffix):
    """Over the dataset, so that a dark image stays darker than a light one."""
    levels = save_levels(folder, as_type(dtype, white), suffix)
    found = raw(folder)[TRAIN_IMAGES]
    assert np.abs(found - 255 * levels).max() <= (255 * 0.07 if white == 1_000_000 else 3)


@pytest.mark.parametrize(
    ("dtype", "white", "message"),
    [
        (np.int32, -5, "its values are from -4 to 0, expected 0 or more"),
        (np.float32, -1, "its values are from -0."),
        (np.float32, np.nan, "its values are from nan to nan"),
        (np.float32, np.inf, "its values are from inf to inf"),
    ],
)
def test_values_below_0_are_refused(folder, dtype, white, message):
    save_levels(folder, as_type(dtype, white), "tif")
    assert f".tif: {NOT_AN_IMAGE}{message}" in refuse(folder)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_refused(folder, suffix, channels):
    """Pillow would read their upper 8 bits, which are often 0."""
    draw_parts(folder)
    path = folder / f"train/b/1.{suffix}"
    cv2.imwrite(str(path), np.full((4, 3, channels), 200, np.uint16))
    found = refuse(folder)
    assert found.startswith(f"{path}: {NOT_AN_IMAGE}its colours have 16 bits, expected 8, or one")


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_of_one_level_are_refused(folder, part):
    draw_parts(folder)
    for path in (folder / part).glob("*/*.png"):
        Image.new("L", (3, 4), 7).save(path)
    said = f"{folder}: all pixels of the {part} images have one level, 7 of 255, so there is"
    assert refuse(folder).startswith(said)


# Colours


def draw_colours(folder, mode="RGB", suffix="png"):
    """Save images for two classes, one of which has colours. Return the first training image."""
    for part in ("train", "test"):
        draw(folder, ["a", "b"], part=part, size=(8, 6))
        pixels = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / part / f"a/0.{suffix}")
        if part == "train":
            first = Image.open(folder / part / f"a/0.{suffix}").convert("RGB")
    return np.asarray(first)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colours_are_kept(folder, mode):
    """In all images, if one of them has colours."""
    expected = draw_colours(folder, mode, "tif" if mode == "CMYK" else "png")
    for path in folder.glob("*/a/0.png" if mode == "CMYK" else "none"):
        path.unlink()
    found = raw(folder, dimensions=4)
    assert found[TRAIN_IMAGES].shape[1:] == (6, 8, 3)
    assert any((image == expected).all() for image in found[TRAIN_IMAGES])
    assert (np.ptp(found[TRAIN_IMAGES], axis=-1).max(axis=(1, 2)) > 0).sum() == 1
    grey = raw(folder, keep_colour=False)[TRAIN_IMAGES]
    assert grey.shape == found[TRAIN_IMAGES].shape[:3]
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(found[TRAIN_IMAGES] @ weights - grey).max() <= 0.51


@pytest.mark.parametrize("form", ["RGB", "JPEG", "WEBP"])
def test_grey_images_stay_grey_however_they_are_stored(folder, form):
    draw_colours(folder, "L")
    before = raw(folder)[TRAIN_IMAGES].tobytes()
    for path in folder.glob("*/*/*.png"):
        image = Image.open(path).convert("RGB")
        image.save(path, "PNG" if form == "RGB" else form)
    found = raw(folder)[TRAIN_IMAGES]
    assert found.shape == (4, 6, 8)
    assert form != "RGB" or found.tobytes() == before


def test_transparent_pixels_of_coloured_images_become_white(folder):
    draw_colours(folder)
    image = Image.new("RGBA", (8, 6), (200, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(folder / "train/a/0.png")
    found = raw(folder, dimensions=4)[TRAIN_IMAGES][0]
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [200, 0, 0]


@pytest.mark.parametrize("form", ["idx", "npz"])
def test_arrays_with_colours_are_read(folder, form):
    train, test = (RANDOM.integers(0, 256, (n, 4, 3, 3), np.uint8) for n in (6, 3))
    if form == "idx":
        write_dataset(folder, {TRAIN_IMAGES: train, TEST_IMAGES: test})
        (folder / TRAIN_IMAGES).rename(folder / TRAIN_IMAGES.replace("idx3", "idx4"))
    else:
        labels = {"y_train": LABELS, "y_test": LABELS[:3]}
        np.savez(folder / "cifar.npz", x_train=train, x_test=test, **labels)
    found = raw(folder, dimensions=4)
    np.testing.assert_array_equal(found[TRAIN_IMAGES], train)
    np.testing.assert_array_equal(found[TEST_IMAGES], test)
    assert raw(folder, keep_colour=False)[TRAIN_IMAGES].shape == (6, 4, 3)
    assert raw(folder, dimensions=4, size=(5, 7))[TEST_IMAGES].shape == (3, 7, 5, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_without_colours_become_grey(folder, channels):
    grey = {name: FILES[name][..., None] for name in (TRAIN_IMAGES, TEST_IMAGES)}
    write_dataset(folder, {name: np.repeat(own, channels, -1) for name, own in grey.items()})
    np.testing.assert_array_equal(raw(folder)[TRAIN_IMAGES], FILES[TRAIN_IMAGES])


# The stage


@pytest.mark.usefixtures("project")
def test_raw_folder_never_holds_two_datasets(folder):
    """dataset.json describes the folder as it is at each run. Right files are not written again."""
    raw = Path("data/raw")
    Path("params.yaml").write_text("download: {dataset: digits, folder: null}\n")
    main()
    Path("params.yaml").write_text(f"download: {{dataset: custom, folder: {folder}}}\n")
    before = read_contents(raw)
    with pytest.raises(StageError, match=f"^{folder}: has no {TRAIN_IMAGES}"):
        main()
    assert read_contents(raw) == before  # because the new folder is empty
    write_dataset(folder)
    obstacle = raw / f"{TEST_IMAGES}.part"
    obstacle.mkdir()
    with pytest.raises(StageError, match=f"{TEST_IMAGES}.part: cannot be written: Is a directory"):
        main()
    obstacle.rmdir()
    assert read_contents(raw) == before  # because one of the new files is not complete
    main()
    first = json.loads((raw / "dataset.json").read_text())
    assert (first["dataset"], first["title"], first["classes"]) == ("custom", "mine", [*"012"])
    assert {path.name for path in raw.iterdir()} == {*FILES, "dataset.json"}
    paths = [raw / name for name in FILES]
    for path in paths:
        os.utime(path, (0, 0))
    paths[-1].write_bytes(b"x")
    main()
    assert [path.stat().st_mtime == 0 for path in paths] == [True, True, True, False]
    assert paths[-1].read_bytes() == idx.dump(FILES[TEST_LABELS])
    draw(folder, ["bird", "cat"])
    draw(folder, ["bird", "cat"], part="test")
    main()
    second = json.loads((raw / "dataset.json").read_text())
    assert second["classes"] == ["bird", "cat"]
    assert not set(first["sha256"].values()) & set(second["sha256"].values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.zip", "that is an archive; unpack it"),
        ("mine.tar.gz", "that is an archive; unpack it"),
        ("mine.png", "that is a file"),
        ("mine.dvc", "there is no such folder; get it with `dvc pull mine.dvc`"),
        ("other", "download.folder is 'mine': there is no such folder"),
    ],
)
def test_missing_folder_is_named(project, name, said):
    (project / name).write_bytes(b"x")
    folder = Path(name) if "that is" in said else Path("mine")
    assert said in get_refusal(convert_folder, folder, project)


def test_home_and_variables_are_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert expand("~/mine") == expand("$HOME/mine") == expand("${HOME}/mine") == folder
    assert expand("datasets/mine") == Path("datasets/mine")


def test_known_dataset_is_found_in_other_spellings(folder):
    file = IdxFile(TRAIN_LABELS, 14, hashlib.sha256(idx.dump(LABELS)).hexdigest())
    (folder / "train-labels.idx1-ubyte").write_bytes(idx.dump(LABELS))
    fetch_file(file, "folder", partial(open_local, folder), folder / "raw")
    assert has_expected_hash(folder / "raw" / TRAIN_LABELS, file)
    (folder / "train-labels.idx1-ubyte").write_bytes(POINTER)
    for place, said in (
        (folder, "is a Git LFS pointer"),
        (folder / "none", "there is no such folder"),
        (folder / "train-labels.idx1-ubyte", "is not a folder"),
    ):
        with pytest.raises(SourceError, match=said):
            fetch_file(file, "folder", partial(open_local, place), folder / "raw")


# Arrays in other files


ARRAYS = {
    "x_train": FILES[TRAIN_IMAGES],
    "y_train": LABELS,
    "x_test": FILES[TEST_IMAGES],
    "y_test": LABELS[:3],
}


def test_npz_of_keras_is_read(folder):
    np.savez_compressed(
        folder / "mnist.npz", **ARRAYS | {"y_train": LABELS.astype(np.int64)[:, None]}
    )
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "expected the arrays x_train, y_train, x_test and y_test, found x_tr"),
        ({"x_train": np.zeros((6, 4, 3))}, "expected integers from 0 to 255, found float64"),
        ({"y_train": LABELS.astype(int) - 1}, "expected values from 0 to 255, found -1"),
        ({"y_train": np.array(list("abcabc"), object)}, "not readable as .npz: Object arrays"),
    ],
)
def test_other_npz_is_refused(folder, changes, message):
    np.savez(folder / "a.npz", **{k: v for k, v in (ARRAYS | changes).items() if v is not None})
    assert refuse(folder).startswith(f"{folder}/a.npz: {message}")


@pytest.mark.parametrize("suffix", ["npz", "csv", "csv.gz"])
@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4"])
def test_damaged_file_of_arrays_is_named(folder, suffix, content):
    (folder / f"train.{suffix}").write_bytes(content)
    assert refuse(folder).startswith(f"{folder}/train.{suffix}: ")


def write_table(path, images, labels, header, last=False):
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    names = ["label", *(f"pixel{n}" for n in range(rows.shape[1] - 1))]
    table = pd.DataFrame(rows, columns=names)
    table = table[[*names[1:], "label"]] if last else table
    table.to_csv(path, index=False, header=header)


@pytest.mark.parametrize(("header", "last"), [(True, True), (True, False), (False, False)])
def test_csv_of_kaggle_is_read(folder, header, last):
    images = RANDOM.integers(0, 256, (6, 4, 4), np.uint8)
    write_table(folder / "mnist_train.csv", images, LABELS, header, last)
    write_table(folder / "mnist_test.csv.gz", images[:3], LABELS[:3], header)
    found = raw(folder)
    np.testing.assert_array_equal(found[TRAIN_IMAGES], images)
    np.testing.assert_array_equal(found[TEST_IMAGES], images[:3])
    assert found[TRAIN_LABELS].tolist() == LABELS.tolist()


def test_csv_without_labels_is_left_out(folder, capsys):
    """Kaggle keeps the labels of its test images. So the training images are split."""
    images, labels = RANDOM.integers(0, 256, (30, 4, 4), np.uint8), np.arange(30) % 3
    write_table(folder / "train.csv", images, labels, header=True)
    (folder / "test.csv").write_text("pixel0,pixel1\n1,2\n")
    (folder / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    found = raw(folder)
    assert "left out sample_submission.csv, test.csv, without labels" in capsys.readouterr().out
    assert [len(found[name]) for name in FILES] == [24, 24, 6, 6]
    assert np.bincount(found[TEST_LABELS]).tolist() == [2, 2, 2]
    rows = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)):
        for image, label in zip(*(found[name] for name in part), strict=True):
            assert rows.pop(image.tobytes()) == label
    assert not rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,a,b,c\n1,2,3,4\n", "expected a label and the pixels of a square image in each row"),
        ("label,a,b,c,d\n1,2,3,4,256\n2,1,1,1,1\n", "expected values from 0 to 255, found 256"),
        ("label,a,b,c,d\n-1,2,3,4,5\n", "expected values from 0 to 255, found -1"),
        ("label,a,b,c,d\n1,2,3,4\n2,1,1,1,1\n", "not readable as CSV: "),
        ("label,a,b,c,d\nx,2,3,4,5\n", "not readable as CSV: "),
    ],
)
def test_other_csv_is_refused(folder, text, message):
    (folder / "train.csv").write_text(text)
    write_table(folder / "test.csv", np.zeros((2, 2, 2), int), [1, 2], header=True)
    assert refuse(folder).startswith(f"{folder}/train.csv: {message}")


# Parts and sizes


def test_folder_of_classes_is_split(folder):
    """Each class by the fraction, and differently with another seed."""
    draw(folder, ["cat", "dog"], part=".", count=20)
    (folder / "notes.txt").write_text("other files beside the classes are ignored")
    found = [raw(folder, test_fraction=0.25, seed=seed) for seed in (1, 1, 2)]
    for each in found:
        assert np.bincount(each[TRAIN_LABELS]).tolist() == [15, 15]
        assert np.bincount(each[TEST_LABELS]).tolist() == [5, 5]
        images = [each[name].reshape(-1, 12) for name in (TRAIN_IMAGES, TEST_IMAGES)]
        assert len(np.unique(np.concatenate(images), axis=0)) == 40
    np.testing.assert_array_equal(found[0][TEST_IMAGES], found[1][TEST_IMAGES])
    assert (found[0][TEST_IMAGES] != found[2][TEST_IMAGES]).any()


def test_class_that_is_too_small_to_split_is_named(folder):
    draw(folder, ["cat"], part=".", count=20)
    draw(folder, ["dog"], part=".", count=1)
    said = "cannot be split into a training and a test part with download.test_fraction 0.2"
    assert said in refuse(folder)
    (folder / "bird").mkdir()
    assert "has no image of 'bird'" in refuse(folder)


def test_images_get_the_size(folder):
    """A wide image loses its sides; a small one is enlarged; a turned one is turned first."""
    draw_parts(folder, size=(40, 30))
    wide = np.zeros((50, 200), np.uint8)
    wide[:, 60:140] = 200
    Image.fromarray(wide).save(folder / "train/a/wide.png")
    turned = Image.fromarray(wide.T)
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(folder / "train/b/turned.JPG", exif=exif, quality=100)
    Image.new("L", (3, 5), 100).save(folder / "test/a/small.bmp")
    said = refuse(folder)
    assert "wide.png: 200x50 pixels, but " in said
    assert said.endswith("set download.size in params.yaml, for example to [40, 30]")
    found = raw(folder, size=(16, 10))
    assert found[TRAIN_IMAGES].shape == (6, 10, 16)
    for image in found[TRAIN_IMAGES][4:]:
        assert np.abs(image[:, 2:-2].astype(int) - 200).max() <= 2
    assert np.abs(found[TEST_IMAGES][4].astype(int) - 100).max() <= 1


def test_idx_images_get_the_size(folder):
    write_dataset(folder, {TEST_IMAGES: RANDOM.integers(0, 256, (3, 9, 9), np.uint8)})
    found = raw(folder, size=(6, 8))
    assert found[TRAIN_IMAGES].shape == (6, 8, 6)
    assert found[TEST_IMAGES].shape == (3, 8, 6)


def test_all_kinds_of_image_files_are_read(folder):
    """Mixed in one folder, whatever their names end in, beside files of operating systems."""
    pixels = np.full((8, 8), 200, np.uint8)
    pixels[:4, :4] = 210
    for part in ("Train", "TESTING"):
        for name in ("a", "b"):
            place = folder / part / name
            place.mkdir(parents=True)
            for kind in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"):
                Image.fromarray(pixels).save(place / f"{kind}.JPG", format=kind)
            for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "._JPEG.JPG", "Icon\r"):
                (place / junk).write_bytes(b"x")
            (place / "@eaDir").mkdir()
    found = raw(folder)[TRAIN_IMAGES]
    assert found.shape == (14, 8, 8)
    assert np.abs(found.astype(int) - 205).max() <= 8  # JPEG and WebP are lossy


def test_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    found = read_pixels(tmp_path / "a.png", Form())
    assert found.shape == (16, 8)
    assert found[:8].max() == 0


def test_names_of_macos_give_the_same_files(tmp_path):
    """macOS stores 가 in two parts, which are the same name to people."""
    found = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        for part in ("train", "test"):
            for label, name in enumerate(("가", "é")):
                own = unicodedata.normalize(form if part == "test" else "NFC", name)
                place = folder / part / own
                place.mkdir(parents=True)
                for number, file in enumerate(("가", "힣", "z", "é")):
                    pixels = np.full((2, 2), 50 * number + label, np.uint8)
                    path = place / f"{unicodedata.normalize(form, file)}.png"
                    Image.fromarray(pixels).save(path)
        assert classes(folder) == ("é", "가")
        found.append([array.tolist() for array in raw(folder).values()])
    assert found[0] == found[1]


IMPORTS = "from stages.download import DownloadParameters, import_folder"
CONVERT = 'import_folder(DownloadParameters(dataset="custom", folder="mine"), Path("raw"))'


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "gzip", "colour"])
def test_memory_does_not_grow_with_the_images(folder, run_python, kind):
    """The peak at 480,000 images of 28x28 values is at most 1.15 times that at 60,000."""
    peaks = []
    for count in (60_000, 480_000):
        images, labels = np.zeros((count, 28, 28), np.uint8), np.arange(count).astype(np.uint8) % 3
        images[0, 0] = 100
        if kind == "colour":
            images = images.reshape(count, 14, 14, 4)[..., :3]
        test = images[:3]
        write_dataset(folder, {TRAIN_IMAGES: images, TRAIN_LABELS: labels, TEST_IMAGES: test})
        if kind == "gzip":
            path = folder / TRAIN_IMAGES
            (folder / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
            path.unlink()
        peaks.append(measure_memory(run_python, IMPORTS, CONVERT)[1])
    assert peaks[1] <= 1.15 * peaks[0]


@pytest.mark.slow
def test_colours_are_learned(tmp_path):
    """Two of the five classes differ only in colour. The images have several sizes."""
    values = read_yaml(ROOT / "recipes/small.yaml")["train"] | {"epochs": 10, "augmentation": None}
    project = Project.create(
        tmp_path / "project",
        {
            "download.dataset": "custom",
            "download.folder": "datasets/things",
            "download.size": [48, 32],
            **{f"train.{key}": value for key, value in values.items() if value},
        },
    )
    datasets.write_dataset("things", project.folder / "datasets/things", train=60, test=20)
    project.run_stages("download", "preprocess", "train", "evaluate")
    metrics = read_json(project.folder / "data/evaluation/metrics.json")
    assert metrics["test"]["accuracy"] >= 0.9
