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
from matplotlib.figure import Figure

from stages import plot
from stages.core.errors import StageError, run
from stages.core.files import Floats
from stages.core.terminal import print_line
from stages.evaluate import EvaluateParameters
from tools.predict.classifier import Classifier, Ranking, load_classifier
from tools.predict.picture import MAX_BYTES, ImageFileError

# Image files in a folder. HEIC files get a line that says how to convert them.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)
RUNNERS_UP = 2
MAX_SHOWN = 100  # files in the figure that --show saves


@dataclass
class Prediction:
    """The prepared images and the ranking for one file, or the reason why there is none."""

    file: str
    images: Floats | None = None
    steps: dict[str, Floats] = field(default_factory=dict)
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
            found = sorted(
                str(file) for file in path.rglob("*") if is_image(file.relative_to(path))
            )
            if not found:
                raise StageError(f"{path}: contains no image files ({' '.join(SUFFIXES)})")
            names += found
        else:
            raise StageError(f"{path}: not found")
    return names


def is_image(path: Path) -> bool:
    """Return whether a path in a folder names an image file that is not hidden.

    Systems keep files of their own beside those of the user, such as `._seven.jpg` and
    `@eaDir/seven.jpg`.
    """
    hidden = any(part.startswith((".", "@", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def read_content(name: str) -> bytes:
    """Return the bytes of a file, or of standard input for -, up to one more than is allowed."""
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(name).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def classify(
    classifier: Classifier, names: Sequence[str], with_steps: bool = False
) -> list[Prediction]:
    """Return a prediction for each of the named files, with the steps of the preparation or not."""
    predictions = []
    for name in names:
        try:
            steps = classifier.list_steps(read_content(name))
            images = classifier.add_widths(steps)
            predictions.append(Prediction(name, images, steps if with_steps else {}))
        except ImageFileError as error:
            predictions.append(Prediction(name, error=str(error)))
        except OSError as error:
            predictions.append(Prediction(name, error=f"cannot be read: {error.strerror}"))
    if every := [each.images for each in predictions if each.images is not None]:
        found = zip(classifier.rank(every), classifier.find_refusals(every), strict=True)
        for prediction in predictions:
            if prediction.images is not None:
                ranking, reason = next(found)
                prediction.ranking = [] if reason else ranking
                prediction.error = reason and f"{reason}; most similar to {ranking[0][0]}"
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


def draw_steps(predictions: Iterable[Prediction]) -> Figure:
    """Return a figure with a row of steps and the prediction for each file."""
    shown = [prediction for prediction in predictions if prediction.steps]
    columns = max(len(prediction.steps) for prediction in shown)
    figure = Figure((1.6 * columns, 1.9 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, prediction in zip(axes, shown, strict=True):
        for axis in row:
            axis.axis("off")
        *others, (_, network_input) = prediction.steps.items()
        for (name, step), axis in zip(others, row, strict=False):
            axis.imshow(step, "gray", vmin=0, vmax=1)
            axis.set_title(name, fontsize=8)
        title = Path(prediction.file).name[-24:]
        row[0].set_title(title, fontsize=8)
        row[-1].imshow(network_input, "gray", vmin=0, vmax=1)
        best = [f"{name} ({share:.1%})" for name, share in prediction.ranking[:1]]
        lines = [*([title] if columns == 1 else []), *(best or ["not a digit"])]
        row[-1].set_title("\n".join(lines), fontsize=8)
    return figure


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
        help="save the steps of the preparation of each file, with its prediction",
    )
    arguments = parser.parse_args()
    names = find_files(arguments.files)
    if arguments.show and len(names) > MAX_SHOWN:
        raise StageError(f"--show: at most {MAX_SHOWN} files can be shown, not {len(names)}")
    classifier, size = load_classifier(), EvaluateParameters.read().batch_size
    predictions: list[Prediction] = []
    for start in range(0, len(names), size):
        for prediction in classify(classifier, names[start : start + size], bool(arguments.show)):
            prediction.images = None  # to save memory
            if prediction.error:
                print_line(f"error: {prediction.file}: {prediction.error}", sys.stderr)
            elif not arguments.json:
                print_line(format_text(prediction))
            predictions.append(prediction)
    if arguments.json:
        print(json.dumps([format_json(prediction) for prediction in predictions], indent=2))
    if arguments.show and any(prediction.steps for prediction in predictions):
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        with matplotlib.rc_context(plot.STYLE):
            plot.save(draw_steps(predictions), arguments.show, 120)
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
