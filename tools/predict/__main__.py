"""Say what pictures show, by the model that the pipeline trained.

Takes files, folders of them, and - for standard input. Prints the likeliest class of each picture,
its probability and the runners-up; exits with 1 where a picture could not be judged.

    python -m tools.predict [--json] [--show seen.png] picture.png folder -
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
from stages.evaluate import EvaluateParameters
from tools.predict import picture
from tools.predict.classifier import Classifier, Ranking, load_classifier
from tools.predict.picture import Floats, PictureError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RUNNERS_UP = 2
SHEET = 500  # pictures that one sheet shows


@dataclass
class Answer:
    """What the network saw in a picture and makes of it, or why it cannot."""

    name: str
    seen: Floats | None = None
    ranking: Ranking = field(default_factory=list)
    error: str = ""


def pictures(arguments: Iterable[str]) -> list[str]:
    """Return the names that `arguments` stand for, where a folder stands for the pictures in it.

    Raises StageError for a name that is nothing, and for a folder without pictures.
    """
    names = []
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or path.is_file():
            names.append(argument)
        elif path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not found:
                raise StageError(f"{path}: holds no pictures ({' '.join(SUFFIXES)})")
            names += found
        else:
            raise StageError(f"{path}: not found")
    return names


def content(name: str) -> bytes:
    """Return the bytes of a file, or of standard input for -, but no more than is too many."""
    if name == "-":
        return sys.stdin.buffer.read(picture.MAX_BYTES + 1)
    with Path(name).open("rb") as stream:
        return stream.read(picture.MAX_BYTES + 1)


def judge(classifier: Classifier, names: Sequence[str]) -> list[Answer]:
    """Return an answer to each of the named pictures."""
    answers = []
    for name in names:
        try:
            answers.append(Answer(name, classifier.prepare(picture.read(content(name)))))
        except PictureError as error:
            answers.append(Answer(name, error=str(error)))
        except OSError as error:
            answers.append(Answer(name, error=f"cannot be read: {error.strerror}"))
    if judged := [(answer, answer.seen) for answer in answers if answer.seen is not None]:
        rankings = classifier.rank(np.stack([seen for _, seen in judged]))
        for (answer, _), ranking in zip(judged, rankings, strict=True):
            answer.ranking = ranking
    return answers


def as_text(answer: Answer) -> str:
    """Return the line that a person reads."""
    (best, confidence), *others = answer.ranking[: 1 + RUNNERS_UP]
    then = ", ".join(f"{name} ({share:.1%})" for name, share in others)
    return f"{answer.name}: {best} ({confidence:.1%}), then {then}"


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the same for a program, in full precision."""
    if answer.error:
        return {"picture": answer.name, "error": answer.error}
    (best, confidence), *others = answer.ranking[: 1 + RUNNERS_UP]
    return {
        "picture": answer.name,
        "predicted": best,
        "confidence": confidence,
        "runners_up": [{"class": name, "confidence": share} for name, share in others],
    }


def sheet(answers: Iterable[Answer]) -> Figure:
    """Return a figure of what the network saw in each picture, under its answer."""
    shown = [(answer, answer.seen) for answer in answers if answer.seen is not None]
    captions = [
        "\n".join(
            [Path(answer.name).name[-20:]]
            + [f"{name}  {share:.1%}" for name, share in answer.ranking[: 1 + RUNNERS_UP]]
        )
        for answer, _ in shown
    ]
    return plot.draw_grid(np.stack([seen for _, seen in shown]), captions, 2.2)


def main() -> None:
    """Print an answer to each picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="+", help="a file, a folder, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print a list for programs")
    parser.add_argument("--show", metavar="PNG", type=Path, help="save there what the network saw")
    arguments = parser.parse_args()
    names = pictures(arguments.pictures)
    if arguments.show and len(names) > SHEET:
        raise StageError(f"--show: a sheet holds {SHEET} pictures, but there are {len(names)}")
    classifier, size = load_classifier(), EvaluateParameters.read().batch_size
    answers: list[Answer] = []
    for start in range(0, len(names), size):
        for answer in judge(classifier, names[start : start + size]):
            if not arguments.show:
                answer.seen = None  # of any number of pictures, only the answers are kept
            if answer.error:
                print(f"error: {answer.name}: {answer.error}", file=sys.stderr)
            elif not arguments.json:
                print(as_text(answer))
            answers.append(answer)
    if arguments.json:
        print(json.dumps([as_json(answer) for answer in answers], indent=2))
    if arguments.show and any(answer.ranking for answer in answers):
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        with matplotlib.rc_context(plot.STYLE):
            plot.save(sheet(answers), arguments.show, 120)
    if any(answer.error for answer in answers):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
