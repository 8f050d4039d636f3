"""Custom datasets, as real files in a folder."""

import gzip
import hashlib
import json
import os
import re
import shutil
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
from helpers.project import ROOT, Project
from PIL import Image

from stages.core.errors import StageError
from stages.core.files import read_json
from stages.core.settings import read_yaml
from stages.download import main
from stages.sources import idx
from stages.sources.catalogue import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    IdxFile,
)
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


def raw(folder: Path, dimensions: int = 3, **options) -> dict[str, np.ndarray]:
    """Return the arrays in the four IDX files that a folder becomes, by their names."""
    convert_folder(folder, folder.parent, **options)
    return {
        name: idx.read(folder.parent / f"{name}.part", dimensions if "images" in name else 1)
        for name in FILES
    }


def classes(folder: Path) -> tuple[str, ...]:
    return convert_folder(folder, folder.parent).classes


# IDX files


def test_idx_files_may_be_plain_or_gzipped(folder):
    write_dataset(folder)
    for name in (TRAIN_IMAGES, TEST_LABELS):
        path = folder / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    found = raw(folder)
    for name, array in FILES.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_idx_classes_are_labels_or_classes_txt(folder):
    write_dataset(folder)
    assert classes(folder) == ("0", "1", "2")
    (folder / "classes.txt").write_bytes("\ufeffcat\r\n개\r\ndog\r\n".encode())
    assert classes(folder) == ("cat", "개", "dog")


def test_missing_idx_file_is_named(folder):
    write_dataset(folder)
    (folder / TEST_LABELS).unlink()
    expected = f"{folder}: has no {TEST_LABELS}, plain or with .gz"
    assert get_refusal(convert_folder, folder, folder.parent) == expected


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
    ],
)
def test_incomplete_idx_dataset_is_refused(folder, changes, message):
    write_dataset(folder, changes)
    assert get_refusal(convert_folder, folder, folder.parent).startswith(f"{folder}: {message}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\nb\n", "there is a label 2, but classes.txt has only names for the labels 0 to 1"),
        ("a\nb\na\n", "two classes have the name 'a'"),
        ("a\n\nb\n", "'' cannot be a class name; use plain text"),
        ("a\nb\x07\nc\n", r"'b\x07' cannot be a class name; use plain text"),
    ],
)
def test_invalid_class_names_are_refused(folder, names, message):
    write_dataset(folder)
    (folder / "classes.txt").write_text(names)
    assert get_refusal(convert_folder, folder, folder.parent) == f"{folder}: {message}"


def test_classes_txt_must_be_utf_8(folder):
    write_dataset(folder)
    (folder / "classes.txt").write_bytes(b"\xff\n")
    assert get_refusal(convert_folder, folder, folder.parent).startswith(
        f"{folder}/classes.txt: not readable as UTF-8: "
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"<html>"), "expected IDX magic 00000803 or 00000804, found 3c68746d"),
        (b"no gzip", "not readable as gzip: Not a gzipped file"),
        (gzip.compress(idx.dump(FILES[TRAIN_IMAGES]))[:-9], "not readable as gzip: Compressed"),
    ],
    ids=["web page", "plain", "cut short"],
)
def test_damaged_idx_file_is_named(folder, content, message):
    write_dataset(folder)
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    assert get_refusal(convert_folder, folder, folder.parent).startswith(
        f"{folder}/{TRAIN_IMAGES}.gz: {message}"
    )


# Images


def test_images_of_the_classes_alternate(folder):
    """Each image has its class's label, and number names are sorted by value."""
    draw(folder, ["10", "9", "a b", "$x$"], size=(5, 7))
    draw(folder, ["10", "9", "a b", "$x$"], part="test", count=1, size=(5, 7))
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
    assert (
        get_refusal(convert_folder, folder, folder.parent)
        == f"{folder}: has 257 classes, expected 2 to 256"
    )


def test_hidden_files_are_ignored(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/a/.DS_Store").write_bytes(b"x")
    (folder / "train/.hidden").mkdir()
    (folder / "README.txt").write_text("other files beside the two parts are ignored")
    assert raw(folder)[TRAIN_IMAGES].shape == (4, 4, 3)


def only_train(folder):
    draw(folder, ["a", "b"])


def class_not_in_test(folder):
    draw(folder, ["a", "b", "c"])
    draw(folder, ["a", "b"], part="test")


def class_not_in_train(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b", "c"], part="test")


def empty_class(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a"], part="test")
    (folder / "test/b").mkdir()


def other_size(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test", size=(4, 4))


def file_among_classes(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/notes.txt").write_text("x")


def other_file(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/b/notes.txt").write_text("x")


def folder_among_images(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/b/more.png").mkdir()


def truncated_image(folder):
    draw(folder, ["a", "b"], size=(40, 40))
    draw(folder, ["a", "b"], part="test", size=(40, 40))
    path = folder / "train/b/1.png"
    path.write_bytes(path.read_bytes()[:-200])


def name_that_is_not_utf_8(folder):
    draw(folder, ["a", "b\udcff"])
    draw(folder, ["a", "b\udcff"], part="test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (only_train, ": has no folder test; its folders are train"),
        (class_not_in_test, ": has no test image of 'c'"),
        (class_not_in_train, ": has no train image of 'c'"),
        (empty_class, ": has no test image of 'b'"),
        (other_size, "/test/a/0.png: 4x4 pixels, but {0}/train/a/0.png has 3x4; all images"),
        (file_among_classes, "/train/notes.txt: expected a folder with the images of one class"),
        (
            other_file,
            "/train/b/notes.txt: not a readable image (AVIF, BMP, GIF, JPEG, PNG, TIFF or WEBP): ",
        ),
        (folder_among_images, "/train/b/more.png: is a folder; the images of a class have to be"),
        (
            truncated_image,
            "/train/b/1.png: not a readable image (AVIF, BMP, GIF, JPEG, PNG, TIFF or WEBP): ",
        ),
        (name_that_is_not_utf_8, r": 'b\udcff' cannot be a class name; use plain text"),
    ],
)
def test_incomplete_image_dataset_is_refused(folder, make, message):
    make(folder)
    assert get_refusal(convert_folder, folder, folder.parent).startswith(
        f"{folder}{message.format(folder)}"
    )


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


# Values that are not 0 to 255


def save_levels(folder, to_file, suffix):
    """Save images of noise from 0 to 1 for two classes, as `to_file` turns them into an image."""
    levels = np.random.default_rng(3).random((8, 6, 6))
    for number, image in enumerate(levels):
        place = folder / ("train" if number < 4 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        to_file(image).save(place / f"{number}.{suffix}")
    order = [0, 1, 2, 3]  # the classes alternate
    return levels[order]


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
    ("to_file", "suffix", "message"),
    [
        (as_type(np.int32, -5), "tif", "its values are from -4 to 0, expected 0 or more"),
        (as_type(np.float32, -1), "tif", "its values are from -0."),
        (as_type(np.float32, np.nan), "tif", "its values are from nan to nan"),
        (as_type(np.float32, np.inf), "tif", "its values are from inf to inf"),
    ],
)
def test_values_below_0_are_refused(folder, to_file, suffix, message):
    save_levels(folder, to_file, suffix)
    assert f".tif: not a readable image (AVIF, BMP, GIF, JPEG, PNG, TIFF or WEBP): {message}" in (
        get_refusal(convert_folder, folder, folder.parent)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_refused(folder, suffix, channels):
    """Pillow would read their upper 8 bits, which are often 0."""
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    path = folder / f"train/b/1.{suffix}"
    cv2.imwrite(str(path), np.full((4, 3, channels), 200, np.uint16))
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found.startswith(f"{path}: not a readable image")
    assert "its colours have 16 bits, expected 8, or one grey channel; delete or convert" in found


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_of_one_level_are_refused(folder, part):
    for name in ("train", "test"):
        draw(folder, ["a", "b"], part=name)
    for path in (folder / part).glob("*/*.png"):
        Image.new("L", (3, 4), 7).save(path)
    said = (
        f"{folder}: all pixels of the {part} images have one level, 7 of 255, so there is nothing"
    )
    assert get_refusal(convert_folder, folder, folder.parent).startswith(said)


def test_blank_idx_files_are_refused(folder):
    write_dataset(folder, {TRAIN_IMAGES: np.zeros((6, 4, 3), np.uint8)})
    assert "train images have one level, 0" in get_refusal(convert_folder, folder, folder.parent)


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


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_with_other_channels_are_refused(folder, channels):
    images = np.ones((6, 4, 3, channels), np.uint8)
    write_dataset(folder, {TRAIN_IMAGES: images})
    assert f"found (6, 4, 3, {channels}) in train" in (
        get_refusal(convert_folder, folder, folder.parent)
    )


# Other things than files


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):
        server.bind(path.name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a pipe, a socket or a device, not a file; delete it"),
        (make_socket, "is a pipe, a socket or a device, not a file; delete it"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device, not a file"),
        (lambda path: path.symlink_to(path.name), "is a link to x.png, which does not exist"),
        (lambda path: path.symlink_to(".."), "is a folder; the images of a class have to be"),
        (Path.touch, "not a readable image"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), "is a HEIC file; save or export"),
    ],
    ids=["pipe", "socket", "device", "link to itself", "link to a folder", "empty", "HEIC"],
)
def test_other_things_among_images_are_named(folder, make, message):
    """With the number of such files in the class. Nothing waits for a writer."""
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    make(folder / "train/b/x.png")
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found.startswith(f"{folder}/train/b/x.png: {message}")
    assert found.endswith(f"(1 of the 3 files in {folder}/train/b)")


def test_pipes_instead_of_other_files_are_named(folder):
    for part in ("train", "test"):
        draw(folder, ["a", "b"], part=part)
    os.mkfifo(folder / "train/c")
    assert "train/c: expected a folder" in get_refusal(convert_folder, folder, folder.parent)
    shutil.rmtree(folder / "test")
    shutil.rmtree(folder / "train")
    write_dataset(folder)
    os.mkfifo(folder / "classes.txt")
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found == f"{folder}/classes.txt: expected a text file with a class name in each line"
    (folder / TRAIN_LABELS).unlink()
    os.mkfifo(folder / TRAIN_LABELS)
    assert "has no train-labels-idx1" in get_refusal(convert_folder, folder, folder.parent)


def test_file_names_that_are_not_utf_8_are_read(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/a/0.png").rename(folder / "train/a/\udcff.png")
    other = folder.rename(folder.with_name("\udcff"))
    assert raw(other)[TRAIN_IMAGES].shape == (4, 4, 3)
    assert convert_folder(other, folder.parent).title == "\\udcff"


def test_huge_image_is_refused_unread(folder):
    """20 KB that would need 2 GB."""
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    Image.new("1", (13_000, 13_000)).save(folder / "train/a/x.png")
    found = get_refusal(convert_folder, folder, folder.parent)
    assert "x.png: has 13000x13000 pixels; at most 64,000,000 are allowed; shrink or" in found


# The stage


@pytest.mark.usefixtures("project")
def test_stage_reads_a_custom_dataset_again(folder):
    """dataset.json describes the folder as it is at each run."""
    draw(folder, ["cat", "dog"])
    draw(folder, ["cat", "dog"], part="test")
    Path("params.yaml").write_text(f"download: {{dataset: custom, folder: {folder}}}\n")
    main()
    description = json.loads(Path("data/raw/dataset.json").read_text())
    assert (description["dataset"], description["title"]) == ("custom", "mine")
    assert description["classes"] == ["cat", "dog"]
    draw(folder, ["bird"])
    draw(folder, ["bird"], part="test")
    main()
    changed = json.loads(Path("data/raw/dataset.json").read_text())
    assert changed["classes"] == ["bird", "cat", "dog"]
    assert changed["sha256"].keys() == description["sha256"].keys()
    assert not set(changed["sha256"].values()) & set(description["sha256"].values())


@pytest.mark.usefixtures("project")
def test_raw_folder_never_holds_two_datasets(folder):
    raw, digits = Path("data/raw"), "download: {dataset: digits, folder: null}\n"
    Path("params.yaml").write_text(digits)
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
    assert json.loads((raw / "dataset.json").read_text())["title"] == "mine"
    assert {path.name for path in raw.iterdir()} == {*FILES, "dataset.json"}


@pytest.mark.usefixtures("project")
def test_right_files_are_not_written_again(folder):
    write_dataset(folder)
    Path("params.yaml").write_text(f"download: {{dataset: custom, folder: {folder}}}\n")
    main()
    paths = [Path("data/raw", name) for name in FILES]
    for path in paths:
        os.utime(path, (0, 0))
    paths[-1].write_bytes(b"x")
    main()
    assert [path.stat().st_mtime == 0 for path in paths] == [True, True, True, False]
    assert paths[-1].read_bytes() == idx.dump(FILES[TEST_LABELS])


def test_missing_folder_is_named():
    with pytest.raises(StageError, match=r"^download\.folder is 'none': there is no such folder$"):
        convert_folder(Path("none"), Path())


def test_missing_folder_that_dvc_tracks_gets_the_command(project):
    (project / "mine.dvc").write_text("outs:\n- path: mine\n")
    with pytest.raises(StageError, match=r"no such folder; get it with `dvc pull mine\.dvc`$"):
        convert_folder(Path("mine"), Path())


# Formats and places of datasets as people have them


def test_home_and_variables_are_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert expand("~/mine") == expand("$HOME/mine") == expand("${HOME}/mine") == folder
    assert expand("datasets/mine") == Path("datasets/mine")


def link_to_nothing(folder):
    folder.rmdir()
    folder.symlink_to("elsewhere")


def archive(folder):
    (folder / "data.zip").write_bytes(b"PK")


def nested(folder):
    write_dataset(folder / "mine")


def nested_images(folder):
    draw(folder / "a/b", ["cat", "dog"])


def classes_without_parts(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir()


def validation_instead_of_test(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="val")


def two_spellings(folder):
    for part in ("Train", "training", "test"):
        draw(folder, ["a", "b"], part=part)


def two_forms_of_a_name(folder):
    draw(folder, ["가", unicodedata.normalize("NFD", "가")])
    draw(folder, ["가"], part="test")


def two_datasets(folder):
    for kind in ("digits", "letters"):
        write_files(folder, {f"emnist-{kind}-{n}": idx.dump(a) for n, a in FILES.items()})


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def idx_pointer(folder):
    write_dataset(folder)
    pointer(folder / TRAIN_IMAGES)


def gzip_pointer(folder):
    write_dataset(folder)
    (folder / TRAIN_IMAGES).unlink()
    pointer(folder / f"{TRAIN_IMAGES}.gz")


def image_pointer(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    pointer(folder / "train/a/0.png")


def image_link_to_nothing(folder):
    draw(folder, ["a", "b"])
    draw(folder, ["a", "b"], part="test")
    (folder / "train/a/x.png").symlink_to("gone.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link_to_nothing, "download.folder is '{0}': the link leads to elsewhere, which does"),
        (archive, "{0}: has no train-images-idx3-ubyte, plain or with .gz; unpack data.zip first"),
        (nested, "{0}: has no train-images-idx3-ubyte, plain or with .gz; the dataset is in {0}/m"),
        (
            nested_images,
            "{0}: has no train-images-idx3-ubyte, plain or with .gz; the dataset is in",
        ),
        (
            classes_without_parts,
            "{0}: has no train-images-idx3-ubyte, plain or with .gz, no train/<",
        ),
        (validation_instead_of_test, "{0}: has no folder test; its folders are train, val"),
        (two_spellings, "{0}: has both Train and training; keep one"),
        (two_forms_of_a_name, "{0}/train: two folders have the name '가'"),
        (two_datasets, "{0}: emnist-digits-train-images-idx3-ubyte and emnist-letters-train-image"),
        (idx_pointer, "{0}/train-images-idx3-ubyte: is a Git LFS pointer instead of the file: git"),
        (
            gzip_pointer,
            "{0}/train-images-idx3-ubyte.gz: is a Git LFS pointer instead of the file: ",
        ),
        (image_pointer, "{0}/train/a/0.png: is a Git LFS pointer instead of the image: git lfs"),
        (image_link_to_nothing, "{0}/train/a/x.png: is a link to gone.png, which does not exist"),
    ],
)
def test_what_is_there_instead_is_named(folder, make, message):
    make(folder)
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found.startswith(message.format(folder))


@pytest.mark.parametrize("name", ["mine.zip", "mine.tar.gz", "mine.7z", "mine.png"])
def test_file_instead_of_a_folder_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    said = "that is a file" if name.endswith("png") else "that is an archive; unpack it"
    assert said in get_refusal(convert_folder, tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("-idx", ".idx"),  # Kaggle, 7-Zip
        lambda name: f"emnist-letters-{name.replace('t10k', 'test')}",
        lambda name: f"{name}/{name}",  # Kaggle's archive
        lambda name: f"{name.replace('-idx', '.idx')}/{name}",
    ],
)
def test_other_spellings_of_idx_files_are_read(folder, rename):
    for name, array in FILES.items():
        path = folder / rename(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(idx.dump(array))
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name])


def test_known_dataset_is_found_in_other_spellings(folder):
    file = IdxFile(TRAIN_LABELS, 14, hashlib.sha256(idx.dump(LABELS)).hexdigest())
    (folder / "train-labels.idx1-ubyte").write_bytes(idx.dump(LABELS))
    fetch_file(file, "folder", partial(open_local, folder), folder / "raw")
    assert has_expected_hash(folder / "raw" / TRAIN_LABELS, file)
    pointer(folder / "train-labels.idx1-ubyte")
    for place, said in (
        (folder, "is a Git LFS pointer"),
        (folder / "none", "there is no such folder"),
        (folder / "train-labels.idx1-ubyte", "is not a folder"),
    ):
        with pytest.raises(SourceError, match=said):
            fetch_file(file, "folder", partial(open_local, place), folder / "raw")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, ("1", "2", "3")), ("a\nb\nc\n", ("a", "b", "c")), ("N/A\na\nb\nc\n", ("a", "b", "c"))],
)
def test_labels_may_start_at_1(folder, names, expected):
    """As in EMNIST's letters, whose published class names may have N/A first."""
    write_dataset(folder, {TRAIN_LABELS: LABELS + 1, TEST_LABELS: LABELS[:3] + 1})
    if names:
        (folder / "classes.txt").write_text(names)
    assert classes(folder) == expected
    assert raw(folder)[TRAIN_LABELS].tolist() == LABELS.tolist()


def test_labels_may_have_gaps(folder, capsys):
    write_dataset(folder, {TRAIN_LABELS: LABELS * 2, TEST_LABELS: LABELS[:3] * 2})
    assert classes(folder) == ("0", "2", "4")
    (folder / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert classes(folder) == ("a", "c", "e")
    assert raw(folder)[TRAIN_LABELS].tolist() == LABELS.tolist()
    assert "left out 'b', 'd', of which there are no images" in capsys.readouterr().out


def dump_qmnist(labels):
    """Return QMNIST's labels: 32-bit integers in eight columns, the class in the first."""
    table = np.zeros((len(labels), 8), ">i4")
    table[:, 0], table[:, 1:] = labels, 4711
    return struct.pack(">HBB2I", 0, 12, 2, *table.shape) + table.tobytes()


def test_qmnist_is_read(folder):
    for name, part in ((TRAIN_IMAGES, "train"), (TEST_IMAGES, "test")):
        content = gzip.compress(idx.dump(FILES[name]))
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(content)
    for name, part in ((TRAIN_LABELS, "train"), (TEST_LABELS, "test")):
        content = gzip.compress(dump_qmnist(FILES[name]))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(content)
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name])
    (folder / "qmnist-test-labels-idx2-int.gz").write_bytes(gzip.compress(dump_qmnist([300])))
    assert "expected labels from 0 to 255, found 300" in get_refusal(raw, folder)


def test_emnist_is_turned_as_the_page_says(folder, monkeypatch):
    page = Path("datasets/README.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(folder)
    place = Path("datasets/letters")
    place.mkdir(parents=True)
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        content = gzip.compress(idx.dump(FILES[name]))
        (place / f"emnist-letters-{name.replace('t10k', 'test')}.gz").write_bytes(content)
    exec(code)  # noqa: S102
    assert not list(place.glob("*images*.gz"))
    (turned,) = place.glob("*train-images*")
    np.testing.assert_array_equal(idx.read(turned, 3), FILES[TRAIN_IMAGES].transpose(0, 2, 1))


# Other forms


def test_matlab_file_of_emnist_becomes_npz_as_the_page_says(folder, monkeypatch):
    page = Path("datasets/README.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(folder)
    images = RANDOM.integers(0, 256, (6, 28, 28), np.uint8)
    part = {"images": images.transpose(0, 2, 1).reshape(6, -1), "labels": LABELS[:, None] + 1}
    scipy.io.savemat("emnist-letters.mat", {"dataset": {"train": part, "test": part}})
    Path("datasets/letters").mkdir(parents=True)
    exec(code)  # noqa: S102
    found = raw(Path("datasets/letters"))
    np.testing.assert_array_equal(found[TRAIN_IMAGES], images)
    assert found[TEST_LABELS].tolist() == LABELS.tolist()


def test_npz_of_keras_is_read(folder):
    train, test = (FILES[name] for name in (TRAIN_IMAGES, TEST_IMAGES))
    arrays = {"x_train": train, "y_train": LABELS.astype(np.int64)[:, None], "x_test": test}
    np.savez_compressed(folder / "mnist.npz", **arrays, y_test=LABELS[:3])
    for name, array in raw(folder).items():
        np.testing.assert_array_equal(array, FILES[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_test": None},
            "expected the arrays x_train, y_train, x_test and y_test, found x_train",
        ),
        ({"x_train": np.zeros((6, 4, 3))}, "expected integers from 0 to 255, found float64"),
        ({"y_train": LABELS.astype(int) - 1}, "expected values from 0 to 255, found -1"),
        ({"y_train": np.array(list("abcabc"), object)}, "not readable: Object arrays cannot be"),
    ],
)
def test_other_npz_is_refused(folder, changes, message):
    arrays = {"x_train": FILES[TRAIN_IMAGES], "y_train": LABELS, "x_test": FILES[TEST_IMAGES]}
    arrays |= {"y_test": LABELS[:3], **changes}
    np.savez(folder / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    assert get_refusal(convert_folder, folder, folder.parent).startswith(
        f"{folder}/a.npz: {message}"
    )


@pytest.mark.parametrize("suffix", ["npz", "csv", "csv.gz"])
@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4"])
def test_damaged_file_of_arrays_is_named(folder, suffix, content):
    (folder / f"train.{suffix}").write_bytes(content)
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found.startswith(f"{folder}/train.{suffix}: ")


def write_table(path, images, labels, header, last=False):
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    names = ["label", *(f"pixel{n}" for n in range(rows.shape[1] - 1))]
    table = pd.DataFrame(rows, columns=names)
    table = table[[*names[1:], "label"]] if last else table
    table.to_csv(path, index=False, header=header)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_csv_of_kaggle_is_read(folder, header, last):
    images = RANDOM.integers(0, 256, (6, 4, 4), np.uint8)
    write_table(folder / "mnist_train.csv", images, LABELS, header, last=last and header)
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
        ("label,a,b,c,d\n1,2,3,4\n2,1,1,1,1\n", "not readable: "),
        ("label,a,b,c,d\nx,2,3,4,5\n", "not readable: "),
    ],
)
def test_other_csv_is_refused(folder, text, message):
    (folder / "train.csv").write_text(text)
    write_table(folder / "test.csv", np.zeros((2, 2, 2), int), [1, 2], header=True)
    found = get_refusal(convert_folder, folder, folder.parent)
    assert found.startswith(f"{folder}/train.csv: {message}")


def test_folder_of_classes_is_split(folder):
    """Each class by the fraction, and differently with another seed."""
    for name in ("cat", "dog"):
        draw(folder, [name], part=".", count=20)
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
    assert "cannot be split into a training and a test part with download.test_fraction 0.2" in (
        get_refusal(convert_folder, folder, folder.parent)
    )
    (folder / "bird").mkdir()
    assert "has no image of 'bird'" in get_refusal(convert_folder, folder, folder.parent)


def test_images_get_the_size(folder):
    """A wide image loses its sides; a small one is enlarged; a turned one is turned first."""
    for part in ("train", "test"):
        draw(folder, ["a", "b"], part=part, size=(40, 30))
    wide = np.zeros((50, 200), np.uint8)
    wide[:, 60:140] = 200
    Image.fromarray(wide).save(folder / "train/a/wide.png")
    turned = Image.fromarray(wide.T)
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(folder / "train/b/turned.JPG", exif=exif, quality=100)
    Image.new("L", (3, 5), 100).save(folder / "test/a/small.bmp")
    said = get_refusal(convert_folder, folder, folder.parent)
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
            kinds = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
            for kind in kinds:
                Image.fromarray(pixels).save(place / f"{kind}.JPG", format=kind)
            turned = Image.fromarray(pixels).getexif()
            turned[0x112] = 6
            Image.fromarray(pixels).save(place / "phone.jpeg", exif=turned)
            for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "._JPEG.JPG", "Icon\r"):
                (place / junk).write_bytes(b"x")
            (place / "@eaDir").mkdir()
    found = raw(folder)[TRAIN_IMAGES]
    assert found.shape == (16, 8, 8)
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
    folders = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folders.append(folder)
        for part in ("train", "test"):
            for label, name in enumerate(("가", "é")):
                place = (
                    folder / part / unicodedata.normalize(form if part == "test" else "NFC", name)
                )
                place.mkdir(parents=True)
                for number, file in enumerate(("가", "힣", "z", "é")):
                    pixels = np.full((2, 2), 50 * number + label, np.uint8)
                    path = place / f"{unicodedata.normalize(form, file)}.png"
                    Image.fromarray(pixels).save(path)
    found = [raw_of(folder) for folder in folders]
    assert found[0] == found[1]
    assert classes(folders[1]) == ("é", "가")


def raw_of(folder):
    convert_folder(folder, folder.parent)
    return [(folder.parent / f"{name}.part").read_bytes() for name in FILES]


def test_linked_folders_are_read(folder, tmp_path):
    draw(tmp_path / "real", ["a", "b"])
    draw(tmp_path / "real", ["a", "b"], part="test")
    for part in ("train", "test"):
        (folder / part).symlink_to(tmp_path / "real" / part)
    assert raw_of(folder) == raw_of(tmp_path / "real")


# Prints the largest amount of memory without files, in KiB, while a dataset is converted.
MEASURE = """
import re, sys, threading
from pathlib import Path
from stages.download import DownloadParameters, import_folder

def read():
    return int(re.search(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

def watch():
    while not done.wait(0.005):
        found.append(read())

found, done = [read()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
import_folder(DownloadParameters(dataset="custom", folder=sys.argv[1]), Path("raw"))
done.set()
thread.join()
print(max(found))
"""


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
        ended = run_python("-c", MEASURE, str(folder))
        peaks.append(int(ended.stdout.split()[-1]))
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
