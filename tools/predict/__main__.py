"""Classify image files with the model that the pipeline trained.

Takes image files, folders of them, and - for standard input. Prints the most likely class of each
image file, its probability and the two next classes. Exits with 1 if a file cannot be classified.

    python -m tools.predict [--json] [--show images.png] photo.png folder -
"""

import argparse
import io
import json
import os
import stat
import sys
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from stages import plot
from stages.core.errors import StageError, run
from stages.core.files import Floats, write_atomically
from stages.core.terminal import make_printable, print_line
from stages.evaluate import EvaluateParameters
from tools.predict.classifier import Classifier, Ranking, load_classifier
from tools.predict.picture import MAX_BYTES, ImageFileError

# Image files in a folder. HEIC files get a line that says how to convert them.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)
HIDDEN = (".", "@", "__MACOSX")  # how the names of hidden files and folders start
RUNNERS_UP = 2
MAX_SHOWN = 100  # files in the figure that --show saves
SOFTWARE = "python -m tools.predict --show"  # in the metadata of that figure


@dataclass
class Prediction:
    """The steps of the preparation and the ranking for one file, or why there is none."""

    file: str
    steps: Mapping[str, Floats] = field(default_factory=dict)
    ranking: Ranking = field(default_factory=list)
    error: str = ""


def find_files(arguments: Iterable[str]) -> list[Prediction]:
    """Return an entry for each file to classify; a folder stands for the image files in it.

    The entry of a file or folder that does not exist, or has no image files, says so. Hidden files
    are left out, such as `._seven.jpg` and `@eaDir/seven.jpg`, in which systems keep their data.
    """
    entries = []
    for argument in arguments:
        path = Path(argument)
        if argument != "-" and not os.path.lexists(path):
            entries.append(Prediction(argument, error="not found"))
        elif path.is_dir():
            found = [
                Prediction(str(file))
                for file in sorted(path.rglob("*"), key=str)
                if file.suffix.lower() in SUFFIXES and not file.is_dir()
                if not any(part.startswith(HIDDEN) for part in file.relative_to(path).parts)
            ]
            error = f"contains no image files ({' '.join(SUFFIXES)})"
            entries += found or [Prediction(argument, error=error)]
        else:
            entries.append(Prediction(argument))
    return entries


def read_content(name: str) -> bytes:
    """Return the bytes of a file, or of standard input for -, up to one more than is allowed.

    Anything but a regular file is refused unread: nothing may ever write to a named pipe.
    """
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with open(
        name, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    ) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ImageFileError("is not a regular file; use - to read from standard input")
        return stream.read(MAX_BYTES + 1)


def classify(
    classifier: Classifier, predictions: Sequence[Prediction], with_steps: bool = False
) -> None:
    """Classify each of the named files, and keep the steps of the preparation or not."""
    prepared = []
    for prediction in predictions:
        try:
            steps: Mapping[str, Floats] = classifier.list_steps(read_content(prediction.file))
            prepared.append((prediction, steps["network input"], "photo" in steps))
        except ImageFileError as error:
            steps, prediction.error = error.steps, str(error)
        except OSError as error:
            steps, prediction.error = {}, f"cannot be read: {error.strerror}"
        prediction.steps = steps if with_steps else {}  # they need memory
    if prepared:
        found, images, photos = zip(*prepared, strict=True)
        for prediction, (ranking, reason) in zip(
            found, classifier.rank(images, photos), strict=True
        ):
            prediction.ranking = [] if reason else ranking
            prediction.error = reason and f"{reason}; most similar to {ranking[0][0]}"


def describe(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction or error for a program, in full precision."""
    if prediction.error:
        return {"file": prediction.file, "error": prediction.error}
    (best, confidence), *others = prediction.ranking[: 1 + RUNNERS_UP]
    return {
        "file": prediction.file,
        "predicted": best,
        "confidence": confidence,
        "runners_up": [{"class": name, "confidence": share} for name, share in others],
    }


def report(prediction: Prediction, as_json: bool) -> None:
    """Print the line of a file that is classified or has an error."""
    if prediction.error:
        print_line(f"error: {prediction.file}: {prediction.error}", sys.stderr)
    elif prediction.ranking and not as_json:
        best, *others = (f"{name} ({share:.1%})" for name, share in prediction.ranking)
        print_line(f"{prediction.file}: {best}, then {', '.join(others[:RUNNERS_UP])}")


def draw_steps(predictions: Sequence[Prediction]) -> Figure:
    """Return a figure with a row for each file: its steps, and its prediction or error."""
    columns = max(1, *(len(prediction.steps) for prediction in predictions))
    figure = Figure((1.6 * columns, 1.9 * len(predictions)), layout="constrained")
    axes = figure.subplots(len(predictions), columns, squeeze=False)
    for row, prediction in zip(axes, predictions, strict=True):
        for axis in row:
            axis.axis("off")
        places = [*row[: max(0, len(prediction.steps) - 1)], row[-1]]
        for (name, step), axis in zip(prediction.steps.items(), places, strict=False):
            axis.imshow(step, "gray", vmin=0, vmax=1)
            axis.set_title(name, fontsize=8)
        title = make_printable(Path(prediction.file).name)[-24:]
        best = [f"{name} ({share:.1%})" for name, share in prediction.ranking[:1]]
        result = textwrap.fill((best or [prediction.error])[0], 24)
        row[0].set_title(title, fontsize=8)
        row[-1].set_title(f"{title}\n{result}" if columns == 1 else result, fontsize=8)
    return figure


def check_figure(path: Path, names: Iterable[str]) -> None:
    """Raise StageError if --show would overwrite a file that it did not save, or one of `names`."""
    if not os.path.lexists(path):
        return
    try:
        with Image.open(io.BytesIO(read_content(str(path)))) as figure:
            ours = figure.info.get("Software") == SOFTWARE
    except Exception:  # not an image file: Pillow raises many types of errors
        ours = False
    if not ours or any(Path(name).exists() and path.samefile(name) for name in names):
        raise StageError(
            f"--show {path}: would overwrite this file; name the figure to save first, as in "
            "--show steps.png photos/"
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
        help="save the steps of the preparation of each file, with its prediction",
    )
    arguments = parser.parse_intermixed_args()  # options may follow files
    predictions = find_files(arguments.files)
    waiting = [prediction for prediction in predictions if not prediction.error]
    if arguments.show:
        check_figure(arguments.show, [each.file for each in waiting])
        if len(predictions) > MAX_SHOWN:
            raise StageError(
                f"--show: at most {MAX_SHOWN} files can be shown, not {len(predictions)}"
            )
    for prediction in predictions:
        report(prediction, arguments.json)
    if waiting:
        classifier, size = load_classifier(), EvaluateParameters.read().batch_size
        for start in range(0, len(waiting), size):
            some = waiting[start : start + size]
            classify(classifier, some, bool(arguments.show))
            for prediction in some:
                report(prediction, arguments.json)
    if arguments.json:
        print(json.dumps([describe(prediction) for prediction in predictions], indent=2))
    if arguments.show:
        matplotlib.rcdefaults()  # ignore the user's matplotlibrc
        with matplotlib.rc_context(plot.STYLE), write_atomically(arguments.show) as part:
            warnings.filterwarnings("ignore", "Glyph")  # file names in scripts without a font
            draw_steps(predictions).savefig(
                part, format="png", dpi=120, metadata={"Software": SOFTWARE}
            )
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
