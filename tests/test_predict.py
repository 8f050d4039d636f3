"""The prediction tool, with a network that a few seconds of MNIST trained."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import idx, network
from stages.artifacts import write_json
from stages.catalogue import TEST_IMAGES, TEST_LABELS
from stages.parameters import StageError
from tools import picture_sets, predict

ROOT = Path(predict.__file__).parents[1]

# The least share of each set that this small network reads right; docs/predict.md has what the
# project's own does.
FLOORS = dict.fromkeys(picture_sets.CHANGES, 0.9) | {
    "like a photo, with a hard shadow across": 0.3,
    "pen strokes": 0.9,
    "fonts": 0.8,
    "scikit-learn's digits, enlarged": 0.8,
}


@pytest.fixture
def here(trained, project):
    """The current folder, with the trained network in it."""
    for path in filter(Path.is_file, trained.rglob("*")):
        copy = project / path.relative_to(trained)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return project


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


def test_answers_in_text_and_json_are_alike_and_a_bad_picture_spoils_no_other(digits, here):
    (here / "digits/notes.txt").write_text("not taken for a picture")
    Image.new("L", (50, 50), 255).save(here / "blank.png")
    (here / "page.png").write_text("<!doctype html>")
    names = ["blank.png", "digits", "page.png", "-"]
    first = (here / "digits/0.png").read_bytes()
    code, text, errors = run(*names, "--show", "seen.png", content=first)
    code_of_json, listed, _ = run(*names, "--json", content=first)
    assert (code, code_of_json) == (1, 1)
    for name, fault in (("blank.png", "is blank"), ("page.png", "is not a picture")):
        assert f"error: {name}: {fault}" in errors
    assert "Traceback" not in errors

    answers = json.loads(listed)
    files = [f"digits/{number}.png" for number in range(8)]
    assert [answer["picture"] for answer in answers] == ["blank.png", *files, "page.png", "-"]
    assert ["error" in answer for answer in answers] == [True, *[False] * 8, True, False]
    good = [answer for answer in answers if "error" not in answer]
    assert [answer["predicted"] for answer in good] == [*digits, digits[0]]
    for line, answer in zip(text.splitlines(), good, strict=True):
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
    labels = np.eye(10, dtype=np.float32)[idx.read(mnist / TEST_LABELS, 1, 512)]
    expected, _ = network.predict(network.load(here / predict.MODEL), images, labels, 512)
    assert predict.load_classifier().probabilities(images).tobytes() == expected.tobytes()


def test_a_model_that_is_not_the_recorded_one_is_said_to_be_another(here, capsys):
    found = hashlib.md5((here / predict.MODEL).read_bytes()).hexdigest()  # noqa: S324  # DVC's
    line = "warning: data/model/model.keras is not the model that dvc.lock records\n"
    for md5, warnings in ((found, 0), ("0" * 32, 1)):
        outs = [{"path": "data/model/model.keras", "md5": md5}]
        YAML().dump({"stages": {"train": {"outs": outs}}}, here / "dvc.lock")
        predict.load_classifier()
        assert capsys.readouterr().err.count(line) == warnings


def test_model_of_another_dataset_is_refused(here):
    write_json(here / predict.DATASET, {"dataset": "letters", "classes": list("abc")})
    with pytest.raises(StageError, match=r"tells 10 classes apart, but .* names 3"):
        predict.load_classifier()


def test_a_branched_network_answers_by_its_main_output(here, model_with):
    model = network.build(model_with(architecture="branched"), (12, 20), 3)
    network.save(model, "categorical_crossentropy", here / predict.MODEL)
    write_json(here / predict.DATASET, {"dataset": "letters", "classes": list("abc")})
    classifier = predict.load_classifier()
    image = classifier.prepare(np.random.default_rng(0).random((50, 50, 3), np.float32))
    assert image.shape == (12, 20)
    (ranking,) = classifier.rank(image[None])
    expected = network.portable(model).predict_on_batch(image[None])["main"][0]
    assert dict(ranking) == dict(zip("abc", expected.tolist(), strict=True))


def test_pictures_made_in_many_ways_are_read(here, mnist, subtests):
    classifier = predict.load_classifier()
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
