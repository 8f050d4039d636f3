"""The command `python -m tools.predict`, with a model trained on MNIST in a few seconds."""

import json
import os
import re
import shutil
import subprocess
from contextlib import chdir
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import datasets
from helpers.checks import get_refusal
from helpers.fork_server import find
from helpers.pages import find_quoted_commands
from helpers.project import ROOT
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps
from ruamel.yaml import YAML

from benchmarks import fonts, picture_sets
from dvc_verify.lockfile import compute_md5
from stages import download, evaluate, preprocess
from stages.core.files import read_csv, write_csv, write_json
from stages.core.paths import DATASET, HISTORY, LOCK, MODEL, PREDICTIONS, PROCESSED, RAW, TEST
from stages.model import architectures, storage
from stages.model.parallel import DataParallel
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES
from tools import draw
from tools.predict import __main__ as predict
from tools.predict import novelty
from tools.predict.classifier import load_classifier
from tools.predict.picture import list_steps

# The smallest share of correct predictions in each set. docs/predict.md has the shares of the
# recorded model on all files; this model is smaller and sees few files.
FLOOR, FONT_FLOOR = 0.84, 0.9
SCENE_FLOOR = 0.66  # of six photos each
REFUSED_FLOORS = {
    "letters of text fonts": 0.4,
    "Fashion-MNIST": 0.6,  # clothes that are drawn; of the real ones, the default model refuses 95%
    "plain textures": 0.9,
    "empty tables and sheets": 0.7,
}


@pytest.fixture
def here(trained, tensorflow, project):
    """The current folder, with the trained model in it."""
    large = shutil.ignore_patterns("processed", ".git")
    shutil.copytree(trained, project, ignore=large, dirs_exist_ok=True)
    (project / PROCESSED).symlink_to(trained / PROCESSED)
    return project


@pytest.fixture(scope="module")
def classifier(trained, tensorflow):
    """The classifier with the trained model."""
    with chdir(trained):
        return load_classifier()


@pytest.fixture
def another_dataset(here):
    """The current folder, with raw data of three classes of drawings in 20x24, black on white."""
    images = np.full((30, 20, 24), 255, np.uint8)
    images[:, 5:15, 4:20] = 0
    (here / RAW / TRAIN_IMAGES).write_bytes(idx.dump(images))
    write_json(here / DATASET, {"dataset": "custom", "classes": ["ga", "na", "da"]})
    return here


@pytest.fixture
def labels(mnist, here):
    """The labels of the first eight test images, which are PNG files in the folder `digits`."""
    (here / "digits").mkdir()
    for number, image in enumerate(idx.read(mnist / TEST_IMAGES, 3, 8)):
        Image.fromarray(image).save(here / f"digits/{number}.png")
    return idx.read(mnist / TEST_LABELS, 1, 8).astype(str).tolist()


def test_bad_files_do_not_stop_the_others(labels, here):
    """Nor do named pipes, which would be read for ever, and names that are not UTF-8."""
    first = Path("digits/0.png").read_bytes()
    Path("digits/notes.txt").write_text("not an image file")
    Image.new("L", (50, 50), 255).save("blank.png")
    Image.new("L", (28, 28)).save("digits/black.png")
    Path("page.png").write_text("<!doctype html>")
    Path("folder").mkdir()
    os.mkfifo("digits/pipe.png")
    Path("digits/folder.png").mkdir()
    Path("gone.png").symlink_to("nothing.png")
    Path("digits/7.png").rename(os.fsdecode(b"digits/caf\xe9\x1b[31m.png"))
    bad = ["blank.png", "page.png", "misspelt.png", "x" * 300, "folder", "gone.png", "/dev/zero"]
    result = subprocess.run(
        [find("python"), "-m", "tools.predict", *bad, "digits/pipe.png", "digits", "-"],
        input=first,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    found = [line.partition(" (")[0] for line in result.stdout.decode().splitlines()]
    names = [*(f"digits/{number}.png" for number in range(7)), r"digits/caf\udce9\x1b[31m.png", "-"]
    assert found == [
        f"{name}: {label}" for name, label in zip(names, [*labels, labels[0]], strict=True)
    ]
    lines = result.stderr.decode().splitlines()
    errors = dict(line.split(": ", 2)[1:] for line in lines if line[:6] == "error:")
    parts = {
        "blank.png": "is blank",
        "digits/black.png": "is blank",
        "page.png": "is not an image file",
        "misspelt.png": "not found",
        "x" * 300: "not found",
        "folder": "contains no image files (.avif",
        "gone.png": "cannot be read: No such file or directory",
        "digits/pipe.png": "is not a regular file",
        "/dev/zero": "is not a regular file",
    }
    assert errors.keys() == parts.keys()
    assert all(errors[name].startswith(part) for name, part in parts.items())


@pytest.fixture
def command(here, classifier, monkeypatch, capsys):
    """Run the command in this process; return its exit code, standard output and errors.

    The network is loaded once for all tests.
    """
    monkeypatch.setattr(predict, "load_classifier", lambda: classifier)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["predict", *arguments])
        code = 0
        try:
            predict.main()
        except SystemExit as exited:
            code = exited.code
        printed = capsys.readouterr()
        return (
            code,
            printed.out,
            [line for line in printed.err.splitlines() if line[:6] == "error:"],
        )

    return run


def test_text_and_json_agree(labels, here, command):
    entries = json.loads(command("digits", "--json")[1])
    assert [entry["predicted"] for entry in entries] == labels
    _, printed, _ = command("digits", "--show", "images.png")
    for line, entry in zip(printed.splitlines(), entries, strict=True):
        then = ", ".join(f"{o['class']} ({o['confidence']:.1%})" for o in entry["runners_up"])
        best = f"{entry['predicted']} ({entry['confidence']:.1%})"
        assert line == f"{entry['file']}: {best}, then {then}"
        shares = [entry["confidence"], *(o["confidence"] for o in entry["runners_up"])]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 3
    with Image.open(here / "images.png") as figure:
        assert figure.height > 800


def draw_digit(page, digit, hand=0, left=60):
    """Draw a digit of 180x220 pixels on a page."""
    for stroke in picture_sets.HANDS[hand][str(digit)]:
        points = [(left + 180 * x, 40 + 220 * y) for x, y in stroke]
        ImageDraw.Draw(page).line(points, fill=0, width=16, joint="curve")
    return page


def test_figure_has_a_row_for_each_file():
    """With one column, the name and the prediction are both above the image."""
    steps = {"network input": np.zeros((28, 28), np.float32)}
    found = [
        predict.Prediction("digits/a.png", steps=steps, ranking=[("7", 0.99)]),
        predict.Prediction("digits/b.png", steps=steps, error="is blank"),
        predict.Prediction("digits/c\udcff.png", error="not found"),
    ]
    titles = [axes.get_title() for axes in predict.draw_steps(found).axes]
    assert titles == ["a.png\n7 (99.0%)", "b.png\nis blank", "c\\udcff.png\nnot found"]


def test_figure_shows_the_steps_before_an_error(here, monkeypatch, command):
    draw_digit(draw_digit(Image.new("L", (480, 320), 255), 3, left=20), 8, left=270).save("two.png")
    shown = []
    monkeypatch.setattr(predict, "draw_steps", lambda found: shown.extend(found) or Figure())
    assert command("two.png", "--show", "images.png")[0] == 1
    assert [list(each.steps) for each in shown] == [["photo", "ink"]]


def test_show_does_not_overwrite_other_files(labels, here, command):
    """Its figure is saved again, but no image that it did not save and no image to classify."""
    Path("link.png").symlink_to("digits/0.png")
    Path("notes.txt").write_text("text")
    os.mkfifo("pipe.png")
    before = Path("digits/0.png").read_bytes()
    for name in ("digits/0.png", "link.png", "notes.txt", "pipe.png", "digits"):
        refused = get_refusal(command, "--show", name, "digits/1.png", "digits/2.png")
        assert refused.startswith(f"--show {name}: would overwrite this file")
    for _ in range(2):
        assert command("--show", "new/images.png", "digits/1.png")[0] == 0
    refused = get_refusal(command, "--show", "new/images.png", "digits/1.png", "new")
    assert "would overwrite" in refused
    assert Path("digits/0.png").read_bytes() == before
    assert Path("notes.txt").read_text() == "text"
    assert not list(here.glob("**/*.part"))


def test_documentation_shows_real_output(here, command):
    """Probabilities and runners-up depend on the model, so only the other text is compared."""
    Path("photos").mkdir()
    Path("photos/page.png").write_text("<!doctype html><title>Not found</title>")
    small, wide = Image.new("L", (320, 320), 255), Image.new("L", (480, 320), 255)
    small.save("photos/blank.png")
    draw_digit(small.copy(), 7).save("seven.png")
    draw_digit(small.copy(), 4).save("photos/four.png")
    draw_digit(small.copy(), 9, hand=1).save("photos/nine.png")
    draw_digit(draw_digit(wide, 3, left=20), 8, left=270).save("photos/two.png")
    quoted = [found for found in find_quoted_commands(ROOT / "docs/predict.md") if found.output]
    assert len(quoted) == 2
    for (_, _, module, argument), documented in quoted:
        assert module == "tools.predict"
        _, printed, errors = command(argument)
        expected = [line.partition(" (")[0] for line in documented if line[:6] != "error:"]
        assert [line.partition(" (")[0] for line in printed.splitlines()] == expected
        assert errors == [line for line in documented if line[:6] == "error:"]


def test_missing_model_names_the_command(here):
    (here / MODEL).unlink()
    expected = "data/model/model.keras: not found; run `make repro` to train it"
    assert get_refusal(load_classifier) == expected


def test_probabilities_are_those_of_the_evaluate_stage(here, mnist):
    (here / PROCESSED).unlink()  # without them, the network is loaded faster
    images = idx.read(mnist / TEST_IMAGES, 3, 512) / np.float32(255)
    model = DataParallel(storage.load(here / MODEL), 2)
    expected = model.predict_probabilities(images, 512)
    assert load_classifier().predict_probabilities(images).tobytes() == expected.tobytes()


def test_model_that_dvc_lock_does_not_record_gives_a_warning(here, capsys):
    (here / PROCESSED).unlink()
    found = compute_md5(here / MODEL)
    line = "warning: data/model/model.keras is not the model that dvc.lock records"
    for md5, warnings in ((found, 0), ("0" * 32, 1)):
        outs = [{"path": "data/model/model.keras", "md5": md5}]
        YAML().dump({"schema": "2.0", "stages": {"train": {"outs": outs}}}, here / LOCK)
        load_classifier()
        assert capsys.readouterr().err.count(line) == warnings


def test_model_of_another_dataset_is_rejected(another_dataset):
    assert get_refusal(load_classifier) == (
        "data/model/model.keras: was trained on 10 classes of (28, 28) pixels, but data/raw holds "
        "3 of (20, 24); run `make repro` to train a new model"
    )


def test_colour_photo_is_prepared_as_by_download(here, model_with):
    """It is cut to the proportions of the dataset, and keeps its colours."""
    images = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), np.uint8)
    (here / RAW / TRAIN_IMAGES).write_bytes(idx.dump(images))
    write_json(here / DATASET, {"dataset": "custom", "classes": ["0", "1"]})
    model = architectures.build(model_with(architecture="convolutional"), (20, 24, 3), 2)
    storage.save(model, "categorical_crossentropy", here / MODEL)
    classifier = load_classifier()
    wide = Image.new("RGB", (400, 100), "white")
    wide.paste((200, 30, 60), (100, 0, 300, 100))
    for picture, expected in ((wide, [200, 30, 60]), (Image.fromarray(images[0]), images[0])):
        (image,) = classifier.list_steps(picture_sets.encode(picture)).values()
        np.testing.assert_array_equal((255 * image).round(), np.broadcast_to(expected, image.shape))
        assert image.shape == (20, 24, 3)
    encoded = picture_sets.encode(wide)
    assert "damaged" in get_refusal(classifier.list_steps, encoded[: len(encoded) // 2])
    assert draw.to_levels(image)[0][0] == images[0, 0, 0].tolist()


def test_16_bits_are_read_as_in_the_dataset(another_dataset, model_with):
    """With the range that the stage download has measured."""
    write_json(
        another_dataset / DATASET,
        {"dataset": "custom", "classes": ["ga", "na", "da"], "whites": {"u": 4095.0}},
    )
    model = architectures.build(model_with(architecture="dense"), (20, 24), 3)
    storage.save(model, "categorical_crossentropy", another_dataset / MODEL)
    page = np.full((20, 24), 4095, np.uint16)
    page[5:15, 4:20] = 1600
    (image,) = load_classifier().list_steps(picture_sets.encode(Image.fromarray(page))).values()
    assert {*image.ravel().tolist()} == {1.0, np.float32(100 / 255).item()}


def test_classes_and_size_come_from_the_dataset(another_dataset, model_with):
    model = architectures.build(model_with(architecture="branched"), (20, 24), 3)
    storage.save(model, "categorical_crossentropy", another_dataset / MODEL)
    classifier = load_classifier()
    page = np.ones((90, 90, 3), np.float32)
    page[20:60, 30:60] = 0.2
    image = list_steps(page, classifier.style)["network input"]
    assert (image.shape, image[0, 0], image.min()) == ((20, 24), 1, 0)
    assert [np.ptp(found) + 1 for found in np.nonzero(image < 0.5)] == [10, 8]  # the box's height
    ((ranking, _),) = classifier.rank([image], [False])
    expected = DataParallel(model, 2).predict_on_batch(image[None])["main"][0]
    assert dict(ranking) == dict(zip(["ga", "na", "da"], expected.tolist(), strict=True))


def test_probabilities_of_a_photo_are_less_extreme(classifier, mnist):
    """Those of the dataset's own images stay as they are."""
    images = idx.read(mnist / TEST_IMAGES, 3, 1) / np.float32(255)
    expected = classifier.predict_probabilities(images)[0]
    roots = np.sqrt(expected) / np.sqrt(expected).sum()
    for photo, shares in ((False, expected), (True, roots)):
        ((((_, found), *_), _),) = classifier.rank(images, [photo])
        assert found == pytest.approx(shares.max(), rel=1e-5)


def place_digit(image, size, place, inverted):
    """Return a PNG of the dataset's size with the digit, 20 or 10 pixels high, somewhere."""
    digit = Image.fromarray(image).crop((4, 4, 24, 24)).resize((size, size), Image.Resampling.BOX)
    page = Image.new("L", (28, 28))
    page.paste(digit, place)
    return picture_sets.encode(ImageOps.invert(page) if inverted else page)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("size", "place"), [(20, (0, 0)), (20, (8, 8)), (20, (4, 0)), (10, (18, 0)), (10, (9, 9))]
)
def test_digit_in_a_file_of_28x28_is_read_wherever_it_stands(
    classifier, mnist, size, place, inverted
):
    images, labels = idx.read(mnist / TEST_IMAGES, 3, 20), idx.read(mnist / TEST_LABELS, 1, 20)
    files = [
        (place_digit(image, size, place, inverted), str(label))
        for image, label in zip(images, labels, strict=True)
    ]
    score = picture_sets.evaluate(classifier, files)
    assert score.right >= (18 if size == 20 else 15)


@pytest.mark.parametrize("kind", ["line", "box"])
def test_lines_in_small_pictures_are_not_ink(classifier, kind):
    """A crop of a form: a line along its edge, or a box around a printed digit."""
    for digit in (7, 2, 3):
        page = Image.new("L", (200, 200), 255)
        draw = ImageDraw.Draw(page)
        font = ImageFont.truetype(str(fonts.find_text()[0]), 130)
        draw.text((100, 100), str(digit), 0, font, anchor="mm")
        if kind == "line":
            draw.line((4, 0, 4, 199), 60, 3)
        else:
            draw.rectangle((40, 30, 160, 170), outline=0, width=3)
        assert predict_file(classifier, picture_sets.encode(page)) == str(digit)


def predict_file(classifier, content):
    """Return the most likely class of an image file, or why it is refused."""
    ((ranking, reason),) = classifier.rank(
        [classifier.list_steps(content)["network input"]], [True]
    )
    return reason or ranking[0][0]


@pytest.mark.parametrize("kind", datasets.KINDS)
def test_own_test_images_get_the_predictions_of_the_evaluate_stage(
    kind, tensorflow, project, model_with, parameters
):
    """By the command and by the drawing page, whose network is not trained here."""
    datasets.write_dataset(kind, Path("mine"), train=10, test=5)
    size = [96, 64] if kind == "things" else None
    parameters["download"] = {"dataset": "custom", "folder": "mine", "size": size}
    Path("params.yaml").write_text(json.dumps(parameters))
    download.main()
    preprocess.main()
    with np.load(TEST) as arrays:
        shape, classes = arrays["images"].shape[1:], arrays["labels"].shape[1]
    model = architectures.build(model_with(architecture="dense", hidden_units=[]), shape, classes)
    storage.save(model, "categorical_crossentropy", MODEL)
    write_csv(HISTORY, pd.DataFrame({"epoch": [1], "chosen": [1]}))
    evaluate.main()
    expected = read_csv(PREDICTIONS, text=("actual", "predicted"))

    classifier = load_classifier()
    assert (classifier.style.box is not None) == ("drawings" in kind)
    # The classes alternate in the test set.
    files = sorted(Path("mine/test").rglob("*.png"), key=lambda path: (path.name, path.parent.name))
    assert expected["actual"].tolist() == [path.parent.name for path in files]
    predictions = [predict.Prediction(str(path)) for path in files]
    predict.classify(classifier, predictions)
    found = [prediction.ranking[0] for prediction in predictions]
    confidences = expected["confidence"].astype(np.float32).tolist()
    assert found == list(zip(expected["predicted"], confidences, strict=True))
    client = draw.create_app(classifier).test_client()
    for path, (name, confidence) in zip(files[:4], found, strict=False):
        answer = client.post("/predict", data=path.read_bytes(), content_type="image/png").json
        assert answer["ranking"][0]["class"] == name
        assert answer["ranking"][0]["confidence"] == pytest.approx(confidence, rel=1e-5)


def test_image_files_of_many_kinds_are_classified(classifier, mnist, subtests):
    steps = {"fonts": 13, "scikit-learn's digits, enlarged": 37}
    for name, files in picture_sets.list_sets(mnist, 25).items():
        with subtests.test(name):
            score = picture_sets.evaluate(classifier, islice(files(), 0, None, steps.get(name, 1)))
            print(name, score)
            assert score.count >= 25
            assert score.right / score.count >= (FONT_FLOOR if name == "fonts" else FLOOR)


def test_photos_as_people_take_them_are_classified(classifier, mnist, subtests):
    """The second hand is a text font here, because handwriting fonts would be downloaded."""
    for name, files in picture_sets.list_scenes(mnist, fonts.find_text(), 6).items():
        with subtests.test(name):
            score = picture_sets.evaluate(classifier, files())
            print(name, score)
            assert score.count == 6
            assert score.right / score.count >= SCENE_FLOOR


def test_image_files_without_a_digit_are_refused(classifier, mnist, subtests):
    some = idx.read(mnist / TEST_IMAGES, 3)[::4] / np.float32(255)
    assert sum(classifier.is_novel(some)) <= 0.01 * len(some)
    sets = picture_sets.list_others([], 20)
    clothes = [(picture_sets.encode(image), None) for image in draw_clothes()]
    sets = {**sets, "Fashion-MNIST": lambda: clothes}
    for name, floor in REFUSED_FLOORS.items():
        with subtests.test(name):
            score = picture_sets.evaluate(classifier, sets[name]())
            print(name, score)
            assert score.refused / score.count >= floor


def draw_clothes():
    """Return drawings like Fashion-MNIST's shirts and trousers, which fill the whole image."""
    random, clothes = np.random.default_rng(0), []
    for number in range(20):
        image = Image.new("L", (28, 28))
        left, right = random.integers(4, 9, 2)
        draw = ImageDraw.Draw(image)
        if number % 2:
            draw.rectangle((left, 1, 27 - right, 26), int(random.integers(90, 255)))
            draw.line((14, 10, 14, 27), 0, 3)
        else:
            draw.polygon([(0, 4), (27, 4), (27, 12), (0, 12)], int(random.integers(90, 255)))
            draw.rectangle((left, 4, 27 - right, 27), int(random.integers(90, 255)))
        clothes.append(np.asarray(image))
    return np.stack(clothes)


def test_no_image_is_refused_with_few_validation_images(here, monkeypatch):
    """They could not show how far from the training images a digit may be."""
    monkeypatch.setattr(novelty, "CALIBRATION", 100)
    noise = np.random.default_rng(0).random((4, 28, 28), np.float32)
    assert load_classifier().is_novel(noise) == [False] * 4


def test_letter_is_refused_by_the_command(here, command):
    content, _ = next(picture_sets.draw_characters(fonts.find_text()[:1], "m", 1))
    Path("letter.png").write_bytes(content)
    code, printed, _ = command("letter.png", "--json")
    (entry,) = json.loads(printed)
    assert code == 1
    assert re.fullmatch("does not look like a digit; most similar to [0-9]", entry["error"])


def test_blot_is_refused(classifier):
    """The network predicts 0 for a filled circle."""
    y, x = np.indices((28, 28)) - 13.5
    ((ranking, reason),) = classifier.rank([np.float32(x * x + y * y < 90)], [True])
    assert (ranking[0][0], reason) == ("0", "does not look like a digit")


def test_missing_training_images_give_a_warning(here, capsys):
    (here / PROCESSED).unlink()
    assert load_classifier().is_novel(np.ones((1, 28, 28), np.float32)) == [False]
    assert "are needed to refuse images without a digit" in capsys.readouterr().err


def test_all_image_files_of_a_folder_are_found_but_hidden_ones(project):
    names = ["a.AVIF", "b.jfif", "c/d.jpe", "e.heic", "f.png"]
    hidden = [
        "._f.png",
        ".hidden/g.png",
        "@eaDir/f.png",
        "__MACOSX/f.png",
        "Thumbs.db",
        "notes.txt",
    ]
    for path in (Path("folder", name) for name in names + hidden):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [entry.file for entry in predict.find_files(["folder", "folder/._f.png"])]
    assert found == [*(f"folder/{name}" for name in names), "folder/._f.png"]
