"""The plots: what they draw, not how they look."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import plot

CLASSES = [f"class {i}" for i in range(3)]


def texts(figure):
    """Return every text in a figure that is not empty."""
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "accuracy": [0.8, 0.9, 0.95],
            "loss": [0.5, 0.3, 0.2],
            "val_accuracy": [0.85, 0.9, 0.89],
            "val_loss": [0.4, 0.3, 0.35],
            "learning_rate": [0.1, 0.05, 0.01],
            "chosen": [0, 1, 0],
        }
    )


@pytest.fixture
def predictions():
    actual = [CLASSES[i] for i in (0, 1, 2, 0, 1)]
    predicted = [CLASSES[i] for i in (0, 2, 2, 1, 0)]
    confidence = [0.99, 0.6, 0.9, 0.8, 0.8]
    return pd.DataFrame(
        {"index": range(5), "actual": actual, "predicted": predicted, "confidence": confidence}
    )


def test_curves_show_both_sets_and_the_chosen_epoch(history):
    figure = plot.draw_curves(history)
    assert [axes.get_title() for axes in figure.axes] == ["accuracy", "loss", "learning rate"]
    accuracy, _, rate = figure.axes
    training, validation, mark = accuracy.lines
    assert training.get_ydata().tolist() == [0.8, 0.9, 0.95]
    assert validation.get_ydata().tolist() == [0.85, 0.9, 0.89]
    assert mark.get_xdata() == [2, 2]
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.05, 0.01]
    assert {"training", "validation", "chosen: epoch 2"} <= set(texts(figure))


def test_confusion_matrix_counts_actual_by_predicted(predictions):
    figure = plot.draw_confusion(predictions["actual"], predictions["predicted"], CLASSES)
    (axes,) = figure.axes
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "1", (2, 1): "1", (2, 2): "1", (1, 0): "1", (0, 1): "1"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual")
    assert axes.get_title() == "2 of 5 test images on the diagonal"


def test_most_confident_mistakes_come_first(predictions):
    images = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    figure = plot.draw_mistakes(images, predictions, 2, ink=True)
    drawn = [axes.images[0].get_array().max() for axes in figure.axes if axes.images]
    assert drawn == [3, 4]  # their confidence is equal, so their index decides
    assert "actual class 0\npredicted class 1\n80.0% sure" in texts(figure)
    assert "The 2 most confident of 3 mistakes on test images" in texts(figure)


def test_each_class_has_a_row_of_its_mistakes(predictions):
    """Each image is under its predicted class, the most confident first."""
    images = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    figure = plot.draw_weaknesses(images, predictions, CLASSES, ink=True)
    drawn = {
        axes.images[0].get_array().max().item(): (
            axes.get_subplotspec().rowspan[0],
            axes.get_title(),
        )
        for axes in figure.axes
        if axes.images
    }
    expected = {3: (0, "class 1, 80%"), 4: (1, "class 0, 80%"), 1: (1, "class 2, 60%")}
    assert drawn == expected
    assert list(drawn) == [3, 4, 1]  # the most confident first
    rows = [text for text in texts(figure) if text.endswith("wrong")]
    assert rows == ["class 0\n1 of 2 wrong", "class 1\n2 of 2 wrong"]


def test_at_most_twenty_classes_have_a_row():
    classes = [f"class {i}" for i in range(30)]
    actual = [classes[i] for i in range(25) for _ in range(1 + (i >= 5))]
    predictions = pd.DataFrame({"index": 0, "actual": actual, "predicted": "class 29"})
    figure = plot.draw_weaknesses(
        np.zeros((1, 4, 4)), predictions.assign(confidence=0.5), classes, ink=True
    )
    rows = [text for text in texts(figure) if text.endswith("wrong")]
    assert rows == [f"class {i}\n2 of 2 wrong" for i in range(5, 25)]


def test_figures_without_mistakes_can_be_saved(predictions, tmp_path):
    perfect = predictions.assign(predicted=predictions["actual"])
    for figure in (
        plot.draw_mistakes(np.zeros((5, 4, 4)), perfect, 2, ink=True),
        plot.draw_weaknesses(np.zeros((5, 4, 4)), perfect, CLASSES, ink=True),
    ):
        plot.save(figure, tmp_path / "a.png", 60)
        with Image.open(tmp_path / "a.png") as image:
            assert image.width > 100


def test_dollar_signs_are_not_math(tmp_path):
    with mpl.rc_context(plot.STYLE):
        figure = plot.draw_samples(np.zeros((1, 4, 4)), np.array([0]), [r"$\nothing$"], ink=True)
        plot.save(figure, tmp_path / "a.png", 60)


def test_axes_of_many_classes_are_numbered():
    """The axis labels say where the numbers are explained."""
    classes = [f"class {i}" for i in range(21)]
    (axes,) = plot.draw_confusion(pd.Series(classes), pd.Series(classes), classes).axes
    assert axes.get_xlabel() == "predicted, as numbered in data/raw/dataset.json"


def test_samples_have_class_names():
    figure = plot.draw_samples(np.zeros((3, 8, 8)), np.array([2, 0, 1]), CLASSES, ink=True)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["class 2", "class 0", "class 1"]


@pytest.mark.parametrize("ink", [False, True])
@pytest.mark.parametrize("white", [255, 1.0])
def test_images_have_their_own_shades_of_grey(ink, white, predictions, tmp_path):
    """Neither inverted nor stretched, unless the pixels measure ink."""
    shades = np.array([0.0, 0.4, 0.6, 1.0] if ink else [0.4, 0.6])
    images = np.broadcast_to(shades, (5, 2, len(shades))) * white
    images = images.astype(np.uint8 if white == 255 else np.float32)
    expected = (255 * (1 - shades if ink else shades)).round()
    for figure in (
        plot.draw_samples(images, np.zeros(5, int), CLASSES, ink),
        plot.draw_mistakes(images, predictions, 2, ink),
        plot.draw_weaknesses(images, predictions, CLASSES, ink),
    ):
        (image, *_) = [axes.images[0] for axes in figure.axes if axes.images]
        drawn = image.to_rgba(image.get_array(), bytes=True)[0, :, 0]
        np.testing.assert_allclose(drawn, expected, atol=1)


@pytest.mark.parametrize("white", [255, 1.0])
def test_images_have_their_own_colours(white, predictions):
    images = np.zeros((5, 4, 4, 3), np.uint8 if white == 255 else np.float32)
    images[..., 0], images[:, 2:, :, 1] = white, white
    for figure in (
        plot.draw_samples(images, np.zeros(5, int), CLASSES, ink=False),
        plot.draw_mistakes(images, predictions, 2, ink=False),
        plot.draw_weaknesses(images, predictions, CLASSES, ink=False),
    ):
        (image, *_) = [axes.images[0] for axes in figure.axes if axes.images]
        drawn = image.to_rgba(image.get_array(), bytes=True)
        assert drawn[[0, 3], 0].tolist() == [[255, 0, 0, 255], [255, 255, 0, 255]]


def test_figure_has_the_same_bytes_twice(history, tmp_path):
    """The file does not contain Matplotlib's version."""
    for name in ("one", "two"):
        plot.save(plot.draw_curves(history), tmp_path / name, 60)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "two").read_bytes()
    with Image.open(tmp_path / "one") as image:
        assert "Software" not in image.text
