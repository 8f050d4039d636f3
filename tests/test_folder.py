"""Custom datasets, as real files in a folder."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.checks import contents, refusal, write_files
from PIL import Image

from stages.core.errors import StageError
from stages.download import DownloadParameters, main
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from stages.sources.folder import read_folder, read_grey
from tools.verify.__main__ import copy_raw

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


def raw(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the four IDX files that a folder becomes, by their names."""
    _, payloads = read_folder(folder)
    for name, payload in payloads.items():
        (folder.parent / name).write_bytes(payload)
    return {name: idx.read(folder.parent / name, FILES[name].ndim) for name in FILES}


def classes(folder: Path) -> tuple[str, ...]:
    return read_folder(folder)[0].classes


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
    expected = f"{folder}: has no {TEST_LABELS}, plain or with .gz, and no train/<class>/*.png"
    assert refusal(read_folder, folder) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({TRAIN_LABELS: LABELS[:5]}, "has 6 train images but 5 labels"),
        ({TEST_LABELS: LABELS[:2], TEST_IMAGES: FILES[TEST_IMAGES][:2]}, "has no test image of '2"),
        ({TEST_LABELS: LABELS[:3] + 1}, "has no train image of '3'"),
        ({TRAIN_LABELS: LABELS * 2, TEST_LABELS: LABELS[:3] * 2}, "has no train image of '1', '3'"),
        ({TRAIN_LABELS: LABELS * 0, TEST_LABELS: LABELS[:3] * 0}, "has 1 classes, expected 2 to"),
        ({TEST_IMAGES: np.zeros((3, 4, 4), np.uint8)}, r"train images of (4, 3) pixels, test"),
        ({TRAIN_IMAGES: np.zeros((6, 0, 3), np.uint8)}, r"train images of (0, 3) pixels, test"),
        (
            {TEST_LABELS: LABELS[:0], TEST_IMAGES: FILES[TEST_IMAGES][:0]},
            "has no test image of '0'",
        ),
    ],
)
def test_incomplete_idx_dataset_is_refused(folder, changes, message):
    write_dataset(folder, changes)
    assert refusal(read_folder, folder).startswith(f"{folder}: {message}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\nb\n", f"{TRAIN_LABELS} has label 2, but there are only names for the labels 0 to 1"),
        ("a\nb\na\n", "two classes have the name 'a'"),
        ("a\n\nb\n", "'' cannot be a class name; use plain text"),
        ("a\nb\x07\nc\n", r"'b\x07' cannot be a class name; use plain text"),
        ("a\nb\nc\nd\n", "has no train image of 'd'"),
    ],
)
def test_invalid_class_names_are_refused(folder, names, message):
    write_dataset(folder)
    (folder / "classes.txt").write_text(names)
    assert refusal(read_folder, folder) == f"{folder}: {message}"


def test_classes_txt_must_be_utf_8(folder):
    write_dataset(folder)
    (folder / "classes.txt").write_bytes(b"\xff\n")
    assert refusal(read_folder, folder).startswith(f"{folder}/classes.txt: not readable as UTF-8: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"<html>"), "expected IDX magic 00000803, found 3c68746d"),
        (b"no gzip", "not readable as gzip: Not a gzipped file"),
        (gzip.compress(idx.dump(FILES[TRAIN_IMAGES]))[:-9], "not readable as gzip: Compressed"),
    ],
    ids=["web page", "plain", "cut short"],
)
def test_damaged_idx_file_is_named(folder, content, message):
    write_dataset(folder)
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    assert refusal(read_folder, folder).startswith(f"{folder}/{TRAIN_IMAGES}.gz: {message}")


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
    assert refusal(read_folder, folder) == f"{folder}: has 257 classes, expected 2 to 256"


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
    (folder / "train/notes.txt").write_text("x")


def other_file(folder):
    draw(folder, ["a", "b"])
    (folder / "train/b/Thumbs.db").write_text("x")


def folder_among_images(folder):
    draw(folder, ["a", "b"])
    (folder / "train/b/more.png").mkdir()


def truncated_image(folder):
    draw(folder, ["a", "b"], size=(40, 40))
    path = folder / "train/b/1.png"
    path.write_bytes(path.read_bytes()[:-200])


def jpeg_named_png(folder):
    draw(folder, ["a", "b"])
    Image.new("L", (3, 4)).save(folder / "train/b/1.png", format="JPEG")


def name_that_is_not_utf_8(folder):
    draw(folder, ["a", "b\udcff"])
    draw(folder, ["a", "b\udcff"], part="test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (only_train, ": has no test image of 'a', 'b'"),
        (class_not_in_test, ": has no test image of 'c'"),
        (class_not_in_train, ": has no train image of 'c'"),
        (empty_class, ": has no test image of 'b'"),
        (other_size, "/test/a/0.png: 4x4 pixels, but {0}/train/a/0.png has 3x4; all images"),
        (file_among_classes, "/train/notes.txt: expected a folder with the images of one class"),
        (other_file, "/train/b/Thumbs.db: not a readable PNG image: cannot identify"),
        (folder_among_images, "/train/b/more.png: not a readable PNG image: "),
        (truncated_image, "/train/b/1.png: not a readable PNG image: "),
        (jpeg_named_png, "/train/b/1.png: not a readable PNG image: cannot identify"),
        (name_that_is_not_utf_8, r": 'b\udcff' cannot be a class name; use plain text"),
    ],
)
def test_incomplete_image_dataset_is_refused(folder, make, message):
    make(folder)
    assert refusal(read_folder, folder).startswith(f"{folder}{message.format(folder)}")


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
    assert read_grey(tmp_path / "a.png").tolist() == [[expected]]


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
    before = contents(raw)
    with pytest.raises(StageError, match=f"^{folder}: has no {TRAIN_IMAGES}"):
        main()
    assert contents(raw) == before  # because the new folder is empty
    write_dataset(folder)
    obstacle = raw / f"{TEST_IMAGES}.part"
    obstacle.mkdir()
    with pytest.raises(StageError, match=f"{TEST_IMAGES}: cannot be written: Is a directory"):
        main()
    obstacle.rmdir()
    assert contents(raw) == {name: idx.dump(FILES[name]) for name in (TRAIN_IMAGES, TRAIN_LABELS)}
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
        read_folder(Path("none"))


def test_copy_raw_skips_a_custom_dataset(tmp_path):
    """`make verify` gives a fresh clone only the files of catalogued datasets."""
    write_dataset(tmp_path)
    copy_raw(tmp_path, tmp_path / "clone", DownloadParameters(dataset="custom", folder="mine"))
    assert not (tmp_path / "clone").exists()
