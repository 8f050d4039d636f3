"""Draw sample images, learning curves, the confusion matrix and the most confident mistakes.

Reads data/raw, data/processed/test.npz, data/model/history.csv, data/evaluation/predictions.csv and
`plot` in params.yaml. Writes data/plots/{samples,curves,confusion_matrix,mistakes,weaknesses}.png.

    python -m stages.plot
"""

import math
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import Field

from stages.core.dataset import is_zero_white, read_classes
from stages.core.errors import run
from stages.core.files import Array, read_csv, write_atomically
from stages.core.paths import DATASET, HISTORY, PLOTS, PREDICTIONS, RAW, TEST
from stages.core.prepared import read_split
from stages.core.settings import Section
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES, TRAIN_LABELS

# Okabe and Ito's palette. Colour-blind people can distinguish its colours too:
# https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"

STYLE: Any = {
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # the default position; Matplotlib takes a second to find it by itself
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
    "text.parse_math": False,  # a class name may contain dollar signs
}


class PlotParameters(Section):
    """How many images to draw, and the resolution of the plots."""

    section: ClassVar = "plot"

    samples: int = Field(ge=1, le=100)
    mistakes: int = Field(ge=1, le=100)
    dpi: int = Field(ge=50, le=600)


def show_image(axes: Axes, image: Array, ink: bool) -> None:
    """Draw an image, uint8 or in [0, 1], in its own shades of grey or colours (height, width, 3).

    With `ink`, its pixels measure ink: 0 is white paper, and the most ink in an image is black.
    """
    white = 255 if image.dtype == np.uint8 else 1
    shades: Any = {"cmap": "gray_r"} if ink else {"cmap": "gray", "vmin": 0, "vmax": white}
    axes.imshow(image, interpolation="nearest", **shades)


def draw_grid(images: Array, captions: list[str], height: float, ink: bool) -> Figure:
    """Return a figure of images (n, height, width[, 3]) with captions, in rows of up to ten.

    `height` is the height of a row in inches. A column is as wide as the longest line of a caption.
    """
    columns = min(10, max(5, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    longest = max((len(line) for text in captions for line in text.splitlines()), default=0)
    figure = Figure(figsize=(max(1.25, 0.085 * longest) * columns, height * rows + 0.4))
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        show_image(axes, image, ink)
        axes.set_title(caption)
    return figure


def draw_samples(images: Array, labels: Array, classes: list[str], ink: bool) -> Figure:
    """Return a figure of training images (n, height, width[, 3]), each under its class name.

    `labels` (n,) are positions in `classes`.
    """
    captions = [classes[label] for label in labels]
    figure = draw_grid(images, captions, 1.4, ink)
    figure.suptitle("The first training images and their labels")
    return figure


def draw_curves(history: pd.DataFrame) -> Figure:
    """Return a figure with a panel for the loss, each metric and the learning rate.

    `history` has one row for each epoch: its number, the values on the training set, the values on
    the validation set (val_...), the learning rate, and `chosen`. `chosen` is 1 for the epoch whose
    weights the model has.
    """
    columns = list(map(str, history.columns))
    measures = [name.removeprefix("val_") for name in columns if name.startswith("val_")]
    panels = [*measures, "learning_rate"]
    chosen = history.loc[history["chosen"] == 1, "epoch"].item()
    figure = Figure(figsize=(4.2 * len(panels), 3.6))
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        axes.plot(history["epoch"], history[name], "o-", color=BLUE, label="training")
        if name in measures:
            values = history[f"val_{name}"]
            axes.plot(history["epoch"], values, "s--", color=ORANGE, label="validation")
        axes.axvline(chosen, color=GREY, linestyle=":", label=f"chosen: epoch {chosen}")
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == measures[0]:
            axes.legend()
    figure.suptitle("Training against validation, epoch by epoch")
    return figure


def draw_confusion(actual: pd.Series, predicted: pd.Series, classes: list[str]) -> Figure:
    """Return a figure of the confusion matrix. Rows are actual classes, columns are predicted ones.

    The colour of a cell shows its fraction of the row.
    """
    # scikit-learn's confusion_matrix does the same, but it takes longer to import than this stage.
    table = pd.crosstab(actual, predicted)
    counts = table.reindex(index=classes, columns=classes, fill_value=0).to_numpy()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(6.0, 0.55 * min(len(classes), 20))
    figure = Figure(figsize=(side, side))
    axes = figure.subplots()
    # Most images are on the diagonal. The cube root makes a few mistakes beside it visible.
    axes.imshow(np.cbrt(fractions), cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    if len(classes) <= 20:
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes)
        axes.set_yticks(ticks, classes)
        if max(map(len, classes)) > 2:
            for label in axes.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
        for row, column in np.argwhere(counts):
            colour = "white" if np.cbrt(fractions[row, column]) > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    numbered = "" if len(classes) <= 20 else ", as numbered in data/raw/dataset.json"
    axes.set(xlabel=f"predicted{numbered}", ylabel=f"actual{numbered}")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} test images on the diagonal")
    return figure


def select_mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of misclassified images, the most confident first.

    `predictions` has the columns index, actual, predicted and confidence.
    """
    mistakes = predictions[predictions["actual"] != predictions["predicted"]]
    return mistakes.sort_values(["confidence", "index"], ascending=[False, True])


def draw_weaknesses(
    images: Array, predictions: pd.DataFrame, classes: list[str], ink: bool
) -> Figure:
    """Return a figure with a row for each class that has mistakes, but at most twenty rows.

    A row shows the eight most confident mistakes, each under the predicted class and its
    probability. If more than twenty classes have mistakes, the twenty with the most are drawn.
    """
    mistakes = select_mistakes(predictions)
    counts, support = (table["actual"].value_counts() for table in (mistakes, predictions))
    weakest = counts.index[:20]
    shown = [name for name in classes if name in weakest]
    width = max(1.25, 0.085 * (max(map(len, classes)) + len(", 100%")))
    figure = Figure(figsize=(8 * width + 1.5, 1.3 * max(1, len(shown)) + 0.4))
    grid = figure.add_gridspec(max(1, len(shown)), 8)
    for row, name in enumerate(shown):
        of_class = mistakes.loc[mistakes["actual"] == name, ["index", "predicted", "confidence"]]
        for column, (index, predicted, confidence) in enumerate(of_class.head(8).to_numpy()):
            axes = figure.add_subplot(grid[row, column])
            show_image(axes, images[index], ink)
            axes.set_title(f"{predicted}, {confidence:.0%}")
            axes.axis("off")
            if column == 0:
                text = f"{name}\n{counts[name]} of {support[name]} wrong"
                axes.text(-0.15, 0.5, text, ha="right", va="center", transform=axes.transAxes)
    figure.suptitle("What each class is taken for, where the model is surest of it")
    return figure


def draw_mistakes(images: Array, predictions: pd.DataFrame, count: int, ink: bool) -> Figure:
    """Return a figure of the `count` most confident mistakes, with actual and predicted class."""
    mistakes = select_mistakes(predictions)
    worst = mistakes.head(count)
    captions = [
        f"actual {row.actual}\npredicted {row.predicted}\n{row.confidence:.1%} sure"
        for row in worst.itertuples()
    ]
    figure = draw_grid(images[worst["index"]], captions, 1.9, ink)
    figure.suptitle(f"The {len(worst)} most confident of {len(mistakes)} mistakes on test images")
    return figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, without Matplotlib's version, which would change the bytes."""
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=dpi, metadata={"Software": None})


def main() -> None:
    """Draw and write the five plots."""
    parameters = PlotParameters.read()
    classes, ink = read_classes(DATASET), is_zero_white(DATASET)
    history = read_csv(HISTORY)
    predictions = read_csv(PREDICTIONS, text=("actual", "predicted"))
    samples = (
        idx.read(RAW / TRAIN_IMAGES, idx.IMAGES, parameters.samples),
        idx.read(RAW / TRAIN_LABELS, 1, parameters.samples),
    )
    test_images, _ = read_split(TEST)
    matplotlib.rcdefaults()  # ignore the user's own matplotlibrc
    with matplotlib.rc_context(STYLE):
        figures = {
            "samples": draw_samples(*samples, classes, ink),
            "curves": draw_curves(history),
            "confusion_matrix": draw_confusion(
                predictions["actual"], predictions["predicted"], classes
            ),
            "mistakes": draw_mistakes(test_images, predictions, parameters.mistakes, ink),
            "weaknesses": draw_weaknesses(test_images, predictions, classes, ink),
        }
        for name, figure in figures.items():
            save(figure, PLOTS / f"{name}.png", parameters.dpi)
    print(f"{len(figures)} plots in {PLOTS}")


if __name__ == "__main__":
    run(main)
