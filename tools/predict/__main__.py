"""Classify image files with the model that the pipeline trained.

Takes image files, folders of them, and - for standard input. Prints the most likely class of each
image file, its probability and the two next classes. Exits with 1 if a file cannot be classified.

    python -m tools.predict [--json] [--show images.png] photo.png folder -
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stages import plot
from stages.core.errors import StageError, run
from stages.core.files import Floats
from stages.core.paths import DATASET
from stages.core.prepared import measures_ink
from stages.evaluate import EvaluateParameters
from tools.predict.classifier import Classifier, Ranking, load_classifier
from tools.predict.picture import MAX_BYTES, ImageFileError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RUNNERS_UP = 2
MAX_SHOWN = 500  # images in the figure that --show saves


@dataclass
class Prediction:
    """The prepared image and the ranking for one file, or the reason why there is none."""

    file: str
    image: Floats | None = None
    ranking: Ranking = field(default_factory=list)
    error: str = ""


def find_files(arguments: Iterable[str]) -> list[str]:
    """Return the names of all files to classify; a folder stands for the image files in it.

    Raises StageError if a file or folder does not exist, and if a folder has no image files.
    """
    names = []
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or path.is_file():
            names.append(argument)
        elif path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not found:
                raise StageError(f"{path}: contains no image files ({' '.join(SUFFIXES)})")
            names += found
        else:
            raise StageError(f"{path}: not found")
    return names


def read_content(name: str) -> bytes:
    """Return the bytes of a file, or of standard input for -, up to one more than is allowed."""
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(name).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def classify(classifier: Classifier, names: Sequence[str]) -> list[Prediction]:
    """Return a prediction for each of the named files."""
    predictions = []
    for name in names:
        try:
            image = classifier.prepare(read_content(name))
            predictions.append(Prediction(name, image))
        except ImageFileError as error:
            predictions.append(Prediction(name, error=str(error)))
        except OSError as error:
            predictions.append(Prediction(name, error=f"cannot be read: {error.strerror}"))
    if images := [prediction.image for prediction in predictions if prediction.image is not None]:
        rankings = iter(classifier.rank(np.stack(images)))
        for prediction in predictions:
            if prediction.image is not None:
                prediction.ranking = next(rankings)
    return predictions


def format_text(prediction: Prediction) -> str:
    """Return the line for a person."""
    (best, confidence), *others = prediction.ranking[: 1 + RUNNERS_UP]
    then = ", ".join(f"{name} ({probability:.1%})" for name, probability in others)
    return f"{prediction.file}: {best} ({confidence:.1%}), then {then}"


def format_json(prediction: Prediction) -> dict[str, Any]:
    """Return the same for a program, in full precision."""
    if prediction.error:
        return {"file": prediction.file, "error": prediction.error}
    (best, confidence), *others = prediction.ranking[: 1 + RUNNERS_UP]
    return {
        "file": prediction.file,
        "predicted": best,
        "confidence": confidence,
        "runners_up": [{"class": name, "confidence": share} for name, share in others],
    }


def draw_images(predictions: Iterable[Prediction]) -> Figure:
    """Return a figure of the prepared images, each with its prediction."""
    shown = [(entry, entry.image) for entry in predictions if entry.image is not None]
    captions = [
        "\n".join(
            [Path(prediction.file).name[-20:]]
            + [f"{name}  {share:.1%}" for name, share in prediction.ranking[: 1 + RUNNERS_UP]]
        )
        for prediction, _ in shown
    ]
    return plot.draw_grid(
        np.stack([image for _, image in shown]), captions, 2.2, measures_ink(DATASET)
    )


def main() -> None:
    """Print a prediction for each file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="an image file, a folder, or - for standard input"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--show",
        metavar="PNG",
        type=Path,
        help="save the prepared images, the network's input, with their predictions",
    )
    arguments = parser.parse_args()
    names = find_files(arguments.files)
    if arguments.show and len(names) > MAX_SHOWN:
        raise StageError(f"--show: at most {MAX_SHOWN} images can be shown, not {len(names)}")
    classifier, size = load_classifier(), EvaluateParameters.read().batch_size
    predictions: list[Prediction] = []
    for start in range(0, len(names), size):
        for prediction in classify(classifier, names[start : start + size]):
            if not arguments.show:
                prediction.image = None  # to save memory
            if prediction.error:
                print(f"error: {prediction.file}: {prediction.error}", file=sys.stderr)
            elif not arguments.json:
                print(format_text(prediction))
            predictions.append(prediction)
    if arguments.json:
        print(json.dumps([format_json(prediction) for prediction in predictions], indent=2))
    if arguments.show and any(prediction.ranking for prediction in predictions):
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        with matplotlib.rc_context(plot.STYLE):
            plot.save(draw_images(predictions), arguments.show, 120)
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
