"""The prediction tool, with a network that a few seconds of MNIST trained."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages.core.errors import StageError
from stages.core.files import write_json
from stages.model import architectures, portable, storage
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES
from tools.benchmark import picture_sets
from tools.predict import classifier as loading
from tools.predict.__main__ import __main__ as predict

ROOT = Path(predict.__file__).parents[1]

# The least share of each set that this small network reads right: what docs/predict.md has of the
# project's own, less the noise of 25 pictures.
FLOORS = dict.fromkeys(picture_sets.CHANGES, 0.84) | {
    "like a photo, with a hard shadow across": 0.4,
    "pen strokes of two hands": 0.84,
    "fonts": 0.9,
    "scikit-learn's digits, enlarged": 0.84,
}


@pytest.fixture
def here(trained, tensorflow, project):
    """The current folder, with the trained network in it."""
    unneeded = shutil.ignore_patterns("processed")
    return shutil.copytree(trained, project, ignore=unneeded, dirs_exist_ok=True)


@pytest.fixture
def another_dataset(here):
    """The current folder, with raw data of three kinds of drawings in 20x24, black on white."""
    images = np.full((30, 20, 24), 255, np.uint8)
    images[:, 5:15, 4:20] = 0
    (here / predict.RAW / TRAIN_IMAGES).write_bytes(idx.dump(images))
    write_json(here / predict.DATASET, {"dataset": "custom", "classes": ["ga", "na", "da"]})
    return here


@pytest.fixture
def digits(mnist, here):
    """The folder `digits` with the first eight test digits as PNG files, and their labels."""
    (here / "digits").mkdir()
    for number, image in enumerate(idx.read(mnist / TEST_IMAGES, 3, 8)):
        Image.fromarray(image).save(here / f"digits/{number}.png")
    return idx.read(mnist / TEST_LABELS, 1, 8).astype(str).tolist()


def run(*arguments, content=b""):
    """Run the tool as a user does: return its exit code, what it printed, and its errors."""
    result = subprocess.run(
        [sys.executable, "-m", "tools.predict", *arguments],
        input=content,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def test_answers_in_text_and_json_are_alike_and_a_bad_picture_spoils_no_other(
    digits, here, monkeypatch, capsys
):
    (here / "digits/notes.txt").write_text("not taken for a picture")
    Image.new("L", (50, 50), 255).save(here / "blank.png")
    (here / "page.png").write_text("<!doctype html>")
    names = ["blank.png", "digits", "page.png", "-"]
    first = (here / "digits/0.png").read_bytes()
    code, listed, errors = run(*names, "--json", content=first)
    assert code == 1
    for name, fault in (("blank.png", "is blank"), ("page.png", "is not a picture")):
        assert f"error: {name}: {fault}" in errors
    assert "Traceback" not in errors

    answers = json.loads(listed)
    files = [f"digits/{number}.png" for number in range(8)]
    assert [answer["picture"] for answer in answers] == ["blank.png", *files, "page.png", "-"]
    assert ["error" in answer for answer in answers] == [True, *[False] * 8, True, False]
    good = [answer for answer in answers if "error" not in answer]
    assert [answer["predicted"] for answer in good] == [*digits, digits[0]]

    monkeypatch.setattr("sys.argv", ["predict", *names[:-1], "--show", "seen.png"])
    with pytest.raises(SystemExit) as ended:
        predict.main()
    assert ended.value.code == 1
    for line, answer in zip(capsys.readouterr().out.splitlines(), good[:-1], strict=True):
        then = ", ".join(f"{o['class']} ({o['confidence']:.1%})" for o in answer["runners_up"])
        best = f"{answer['predicted']} ({answer['confidence']:.1%})"
        assert line == f"{answer['picture']}: {best}, then {then}"
        shares = [answer["confidence"], *(o["confidence"] for o in answer["runners_up"])]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 3
    with Image.open(here / "seen.png") as sheet:
        assert sheet.width > 800


def test_without_a_model_the_line_says_make_repro(here):
    (here / "data/model/model.keras").unlink()
    (here / "digit.png").write_bytes(b"")
    expected = "error: data/model/model.keras: not found; run `make repro` to train it\n"
    assert run("digit.png") == (1, "", expected)


def test_what_is_not_there_is_named(project):
    Path("folder").mkdir()
    with pytest.raises(StageError, match=r"nothing\.png: not found"):
        predict.pictures(["-", "nothing.png"])
    with pytest.raises(StageError, match=r"folder: holds no pictures \(\.bmp"):
        predict.pictures(["folder"])


def test_answers_are_those_of_the_evaluate_stage(here, mnist):
    images = idx.read(mnist / TEST_IMAGES, 3, 512) / np.float32(255)
    expected = portable.make_portable(storage.load(here / predict.MODEL), 2).predict_probabilities(
        images, 512
    )
    assert loading.load_classifier().probabilities(images).tobytes() == expected.tobytes()


def test_a_model_that_is_not_the_recorded_one_is_said_to_be_another(here, capsys):
    found = hashlib.md5((here / predict.MODEL).read_bytes()).hexdigest()  # noqa: S324  # DVC's
    line = "warning: data/model/model.keras is not the model that dvc.lock records\n"
    for md5, warnings in ((found, 0), ("0" * 32, 1)):
        outs = [{"path": "data/model/model.keras", "md5": md5}]
        YAML().dump({"stages": {"train": {"outs": outs}}}, here / "dvc.lock")
        loading.load_classifier()
        assert capsys.readouterr().err.count(line) == warnings


def test_model_of_another_dataset_is_refused(another_dataset):
    with pytest.raises(StageError) as caught:
        loading.load_classifier()
    assert str(caught.value) == (
        "data/model/model.keras: was trained on 10 classes of (28, 28) pixels, but data/raw holds "
        "3 of (20, 24); run `make repro` to train one that fits"
    )


def test_classes_and_size_are_the_datasets(another_dataset, model_with):
    model = architectures.build(model_with(architecture="branched"), (20, 24), 3)
    storage.save(model, "categorical_crossentropy", another_dataset / predict.MODEL)
    classifier = loading.load_classifier()
    page = np.ones((90, 90, 3), np.float32)
    page[20:60, 30:60] = 0.2
    image = classifier.prepare(page)
    assert (image.shape, image[0, 0], image.min()) == ((20, 24), 1, 0)
    assert [np.ptp(found) + 1 for found in np.nonzero(image < 0.5)] == [10, 8]  # the box's height
    (ranking,) = classifier.rank(image[None])
    expected = portable.make_portable(model, 2).predict_on_batch(image[None])["main"][0]
    assert dict(ranking) == dict(zip(["ga", "na", "da"], expected.tolist(), strict=True))


def test_pictures_made_in_many_ways_are_read(here, mnist, subtests):
    classifier = loading.load_classifier()
    sets = dict(picture_sets.picture_sets(mnist, 25))
    assert sets.keys() == FLOORS.keys()
    for name, labelled in sets.items():
        with subtests.test(name):
            step = {"fonts": 13, "scikit-learn's digits, enlarged": 37}.get(name, 1)
            some = (entry for number, entry in enumerate(labelled) if number % step == 0)
            count, right, _ = picture_sets.measure(classifier, some)
            print(f"{name}: {right} of {count}")
            assert count >= 25
            assert right / count >= FLOORS[name]
