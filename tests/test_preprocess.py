"""The stage preprocess, compared with the course page's code (recipes/notebook.yaml)."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.memory import measure_memory
from sklearn.model_selection import train_test_split

import stages.download
from stages.core.errors import StageError
from stages.core.files import write_json
from stages.core.prepared import read_split
from stages.preprocess import PreprocessParameters, main, normalise, one_hot, read_raw, split
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.permutation(np.arange(10, dtype=np.uint8).repeat(50))


def parameters(**changes) -> PreprocessParameters:
    defaults = {"validation_fraction": 0.2, "seed": 42, "stratify": False}
    return PreprocessParameters(**(defaults | changes))


def write_parameters(preprocess: str) -> None:
    text = f"download: {{dataset: digits, folder: null}}\npreprocess: {preprocess}\n"
    Path("params.yaml").write_text(text)


@pytest.fixture
def digits(project):
    """A project with scikit-learn's digits as raw data, and the course page's split."""
    write_parameters("{validation_fraction: 0.2, seed: 42, stratify: false}")
    stages.download.main()
    return project


@pytest.fixture
def raw(project):
    """Return a function that writes the given arrays, of ten classes, to the raw folder."""

    def write(train_images, train_labels, test_images, test_labels):
        write_parameters("{validation_fraction: 0.2, seed: 42, stratify: true}")
        write_json(Path("data/raw/dataset.json"), {"classes": list("0123456789")})
        for name, array in (
            (TRAIN_IMAGES, train_images),
            (TRAIN_LABELS, train_labels),
            (TEST_IMAGES, test_images),
            (TEST_LABELS, test_labels),
        ):
            Path("data/raw", name).write_bytes(idx.dump(array))
        return project

    return write


def list_outputs() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data/processed").iterdir()}


# Pixels and labels


def test_pixels_become_float32_from_0_to_1():
    """They equal those of the course page."""
    values = np.arange(256, dtype=np.uint8)
    found = normalise(values)
    np.testing.assert_array_equal(found, values.astype("float32") / 255.0, strict=True)
    assert (found[0], found[51], found[255]) == (0, np.float32(0.2), 1)


def test_labels_become_one_hot():
    expected = np.array([[0, 0, 1], [1, 0, 0]], np.float32)
    np.testing.assert_array_equal(one_hot(np.array([2, 0], np.uint8), 3), expected, strict=True)


# The split


def test_split_equals_that_of_the_course_page():
    images = RANDOM.random((len(LABELS), 2, 2), np.float32)
    labels = one_hot(LABELS, 10)
    train_images, val_images, train_labels, val_labels = train_test_split(
        images, labels, test_size=0.2, random_state=42
    )
    train, validation = split(LABELS, parameters(), 10)
    np.testing.assert_array_equal(images[train], train_images, strict=True)
    np.testing.assert_array_equal(images[validation], val_images, strict=True)
    np.testing.assert_array_equal(labels[train], train_labels, strict=True)
    np.testing.assert_array_equal(labels[validation], val_labels, strict=True)


@pytest.mark.parametrize("stratify", [True, False])
def test_every_image_is_in_exactly_one_set(stratify):
    labels = RANDOM.permutation(np.arange(3, dtype=np.uint8).repeat([900, 90, 10]))
    train, validation = split(labels, parameters(stratify=stratify), 3)
    assert sorted(np.concatenate([train, validation])) == list(range(1000))
    assert len(validation) == 200
    if stratify:
        assert np.bincount(labels[train]).tolist() == [720, 72, 8]


def test_other_seed_selects_other_images():
    first, second = (split(LABELS, parameters(seed=seed), 10)[1] for seed in (42, 43))
    assert sorted(first) != sorted(second)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (
            [0] * 99 + [1],
            {},
            r"is 0\.2: after .* 100 images, the (train|valid)\w+ set has no image of class 1",
        ),
        ([0] * 100, {}, r"is 0\.2: after .* 100 images, the training set has no image of class 1"),
        ([0] * 99 + [1], {"stratify": True}, r"is 0\.2: The least populated class"),
        (
            [0, 1] * 9,
            {"stratify": True, "validation_fraction": 0.01},
            r"is 0\.01: The test_size = 1 ",
        ),
        ([0], {"validation_fraction": 0.5}, r"is 0\.5: .* train set will be empty"),
    ],
    ids=["class missing", "class unknown", "class of one", "fewer than classes", "set empty"],
)
def test_split_with_an_empty_class_is_refused(labels, changes, message):
    with pytest.raises(StageError, match=f"^preprocess.validation_fraction {message}") as caught:
        split(np.array(labels, np.uint8), parameters(**changes), 2)
    assert "\n" not in str(caught.value)


# Raw files that do not match

FOUR = np.ones((4, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (FOUR, [0, 1, 2], "labels: expected 4 labels, found 3"),
        (FOUR, [0, 1, 2, 3], "labels: expected labels below 3, found 3"),
        (FOUR[:0], [], r"images: holds no pixels: its shape is \(0, 2, 2\)"),
        (FOUR[:, :0], [0, 1, 2, 0], r"images: holds no pixels: its shape is \(4, 0, 2\)"),
    ],
    ids=["unequal counts", "label out of range", "no images", "no pixels"],
)
def test_images_and_labels_must_match(tmp_path, images, labels, message):
    (tmp_path / "images").write_bytes(idx.dump(images))
    (tmp_path / "labels").write_bytes(idx.dump(np.array(labels, np.uint8)))
    with pytest.raises(StageError, match=f"{tmp_path}/{message}"):
        read_raw(tmp_path / "images", tmp_path / "labels", 3)


def test_train_and_test_shapes_must_match(raw):
    images = np.zeros((500, 4, 4), np.uint8)
    raw(images, LABELS, images[:, :3], LABELS)
    with pytest.raises(StageError, match=rf"{TEST_IMAGES}: expected images of \(4, 4\).*\(3, 4\)"):
        main()
    assert not Path("data/processed").exists()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_images_may_have_any_shape(raw, shape):
    images = RANDOM.integers(0, 256, (500, *shape), np.uint8)
    raw(images, LABELS, images[:20], LABELS[:20])
    main()
    found, labels = read_split(Path("data/processed/test.npz"))
    np.testing.assert_array_equal((found * 255).round(), images[:20])
    assert labels.argmax(axis=1).tolist() == LABELS[:20].tolist()


# The stage


@pytest.mark.usefixtures("digits")
def test_stage_writes_three_splits():
    """Plain NumPy reads them, and they are not compressed."""
    main()
    counts = {"train": 1200, "validation": 300, "test": 297}
    assert set(list_outputs()) == {f"{name}.npz" for name in counts}
    for name, count in counts.items():
        path = Path(f"data/processed/{name}.npz")
        with np.load(path) as arrays:
            assert sorted(arrays) == ["images", "labels"]
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 28, 28), np.float32)
            assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count, 10), np.float32)
            assert (arrays["images"].min(), arrays["images"].max()) == (0, 1)
        with zipfile.ZipFile(path) as archive:
            assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        read_split(path)


@pytest.mark.usefixtures("digits")
def test_every_image_keeps_its_label():
    main()
    raw = idx.read(Path("data/raw", TRAIN_IMAGES), 3), idx.read(Path("data/raw", TRAIN_LABELS), 1)
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(*raw, strict=True))
    found = []
    for name in ("train", "validation"):
        images, labels = read_split(Path(f"data/processed/{name}.npz"))
        pixels = (images * 255).round().astype(np.uint8)
        found += [
            (image.tobytes(), int(row.argmax())) for image, row in zip(pixels, labels, strict=True)
        ]
    assert sorted(found) == expected


@pytest.mark.usefixtures("digits")
def test_stage_writes_the_same_bytes_again():
    """A refused split keeps them."""
    main()
    first = list_outputs()
    for path in Path("data/processed").iterdir():
        path.unlink()
    main()
    assert list_outputs() == first
    write_parameters("{validation_fraction: 0.001, seed: 42, stratify: true}")
    with pytest.raises(StageError, match=r"^preprocess\.validation_fraction is 0\.001: "):
        main()
    assert list_outputs() == first


def test_damaged_raw_file_is_named(digits):
    """The stage writes nothing."""
    path = Path("data/raw", TEST_LABELS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=f"{path}: header says 297 bytes, found 92"):
        main()
    assert not (digits / "data/processed").exists()


@pytest.mark.slow
@pytest.mark.linux
def test_memory_does_not_grow_with_the_files(raw, run_python):
    """The raw files hold as many images as MNIST."""
    images = RANDOM.integers(0, 256, (70_000, 28, 28), np.uint8)
    labels = RANDOM.integers(0, 10, 70_000, np.uint8)
    raw(images[:60_000], labels[:60_000], images[60_000:], labels[60_000:])
    before, peak = measure_memory(run_python, "from stages.preprocess import main", "main()")
    assert peak - before < images.nbytes * 2
