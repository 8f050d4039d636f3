"""Load the trained model, and prepare photos like its dataset's images."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from dvc_verify.lockfile import compute_md5, list_files, read_lock
from stages.core.dataset import read_classes
from stages.core.errors import StageError
from stages.core.files import Floats, read_json
from stages.core.paths import DATASET, LOCK, MODEL, RAW, TRAIN, VALIDATION
from stages.evaluate import EvaluateParameters
from stages.preprocess import normalise
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES
from stages.sources.image_files import Form, read_pixels
from tools.predict.picture import (
    BACKGROUND_TOLERANCE,
    BLANK,
    ImageFileError,
    ImageStyle,
    is_from_camera,
    is_own_image,
    list_steps,
    open_image,
    read_image_file,
)

# What is tried in turn if a photo leads to no digit: options of `list_steps`. The first ones change
# the strokes that were found, the others find other strokes.
OTHER_SHAPES = {"widen": True, "thin": True}
OTHER_STROKES = {"padded": True, "inverted": True, "flatten": False}
STYLE_IMAGES = 1000  # training images from which the dataset's style is measured

WIDTHS = (1.2, 0.85, 0.75)  # a prepared photo is also classified this many times as wide
# The highest probability of a photo is too high, because the network was calibrated on images like
# the training images. With this temperature, at most 1 of 1,000 validation photos is wrong and
# more than 90 % sure.
TEMPERATURE = 2

Ranking = list[tuple[str, float]]  # class names and their probabilities, most likely first


@dataclass(frozen=True)
class Classifier:
    """The trained network, and what a photo must look like for it."""

    title: str  # of the dataset that it was trained on
    classes: list[str]
    style: ImageStyle  # of the dataset's images
    predict_probabilities: Callable[[Floats], Floats]  # from (n, height, width) to (n, classes)
    is_novel: Callable[[Floats], list[bool]]  # which of the prepared images look like no digit
    whites: Mapping[str, float] = field(default_factory=dict)  # see image_files.Form

    def prepare(self, content: bytes) -> Floats:
        """Return the images (n, height, width) for the network that an image file becomes.

        The first one is the prepared image. For a photo of a digit, the others show the digit in
        other widths. Raises ImageFileError if the file cannot be classified.
        """
        return self.add_widths(self.list_steps(content))

    def add_widths(self, steps: Mapping[str, Floats]) -> Floats:
        """Return the last of the steps and, for a photo of a digit, the digit in other widths."""
        image = steps["network input"]
        if "photo" not in steps or not self.style.digits:
            return image[None]
        others = [change_width(image, width, self.style.background or 0) for width in WIDTHS]
        return np.stack([image, *others])

    def list_steps(self, content: bytes) -> dict[str, Floats]:
        """Return what is made of the photo in an image file step by step, for people to see.

        Each step is (height, width) or (height, width, 3) in [0, 1]; its key says what it shows.
        An image of the dataset's own kind becomes exactly what the pipeline makes of it, in one
        step.

        If no digit is found, it may be narrow or thick, or a shadow, paper or a sheet was confused
        with it. Then other ways are tried, and the first result that looks like a digit is kept.
        """
        own = read_own_image(content, self.style, self.whites)
        if own is not None:
            if self.style.box and np.ptp(own) < BACKGROUND_TOLERANCE:
                raise ImageFileError(BLANK)
            return {"network input": own}
        photo = read_image_file(content)
        other_strokes = OTHER_STROKES if is_from_camera(photo) else {}
        try:
            steps = list_steps(photo, self.style)
        except ImageFileError:
            other = self._list_other_steps(photo, other_strokes)
            if other is None:
                raise
            return other
        if self.is_novel(steps["network input"][None])[0]:
            return self._list_other_steps(photo, OTHER_SHAPES | other_strokes) or steps
        return steps

    def _list_other_steps(self, photo: Floats, ways: dict[str, bool]) -> dict[str, Floats] | None:
        """Return other steps that lead to what looks like a digit, or None."""
        if not self.style.digits:
            return None
        for name, value in ways.items():
            with suppress(ImageFileError):
                steps = list_steps(photo, self.style, **{name: value})
                if not self.is_novel(steps["network input"][None])[0]:
                    return steps
        return None

    def rank(self, files: Sequence[Floats]) -> list[Ranking]:
        """Rank the classes by probability for each file. Takes the result of `prepare` for each."""
        every = self.predict_probabilities(np.concatenate(files))
        ends = np.cumsum([len(images) for images in files])
        return [
            sorted(
                zip(self.classes, combine(rows).tolist(), strict=True), key=lambda entry: -entry[1]
            )
            for rows in np.split(every, ends[:-1])
        ]

    def find_refusals(self, files: Sequence[Floats]) -> list[str]:
        """Return the reason why each file gets no class, or an empty string."""
        novel = self.is_novel(np.stack([images[0] for images in files]))
        return ["does not look like a digit" if each else "" for each in novel]


def change_width(image: Floats, width: float, background: float) -> Floats:
    """Return an image (height, width) whose content is `width` times as wide.

    The middle stays where it is.
    """
    middle = (image.shape[1] - 1) / 2
    matrix = np.array([[width, 0, middle - width * middle], [0, 1, 0]])
    size = image.shape[::-1]
    return np.asarray(cv2.warpAffine(image, matrix, size, borderValue=background))


def combine(rows: Floats) -> Floats:
    """Return the probabilities (classes) of a file from those of its images (n, classes).

    The mean over the widths is raised to the power 1 / TEMPERATURE: temperature scaling (C. Guo,
    G. Pleiss, Y. Sun, K. Weinberger, "On calibration of modern neural networks", ICML 2017). The
    probabilities of a single image stay as they are.
    """
    if len(rows) == 1:
        return np.asarray(rows[0])
    powers = rows.mean(axis=0) ** (1 / TEMPERATURE)
    return np.asarray(powers / powers.sum())


def accept_all(images: Floats) -> list[bool]:
    """Return that none of the images is novel."""
    return [False] * len(images)


def read_own_image(content: bytes, style: ImageStyle, whites: Mapping[str, float]) -> Floats | None:
    """Return the image in a file as the stages download and preprocess do; None for other files.

    See `is_own_image` for the files that count as the dataset's own. In colour, all do: a photo of
    another size is scaled and cut as with `download.size`.
    """
    height, width, *colour = style.shape
    form = Form((width, height) if colour else None, bool(colour), whites)
    try:
        with open_image(content) as photo:
            possible = {photo.height, photo.width} == {height, width}  # it may be turned
        image = normalise(read_pixels(io.BytesIO(content), form)) if colour or possible else None
    except Exception as error:  # a damaged file: read_image_file says what is wrong with it
        if colour:
            read_image_file(content)
            raise ImageFileError(f"cannot be read in colour: {error}") from error
        return None
    return image if image is not None and is_own_image(image, style) else None


def load_classifier() -> Classifier:
    """Return the model in data/model, which computes as in the evaluate stage.

    Prints a warning if it is not the model that dvc.lock records. Raises StageError if there is no
    model, or if the number of classes or the size of the images differs from those in data/raw.
    """
    if not MODEL.exists():
        raise StageError(f"{MODEL}: not found; run `make repro` to train it")
    parameters, classes = EvaluateParameters.read(), read_classes(DATASET)
    description = read_json(DATASET)
    style = ImageStyle.measure(idx.read(RAW / TRAIN_IMAGES, idx.IMAGES, STYLE_IMAGES), classes)
    recorded = list_files(read_lock() if LOCK.exists() else {}, "outs").get(MODEL.as_posix())
    if recorded is None or recorded.md5 != compute_md5(MODEL):
        print(f"warning: {MODEL} is not the model that {LOCK} records", file=sys.stderr)

    # Imported here because TensorFlow takes seconds to load, and a mistake above should be reported
    # at once.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    from stages.model.parallel import DataParallel
    from stages.model.storage import load
    from tools.predict import novelty

    configure_tensorflow(parameters.threads)
    model = load(MODEL)
    portable = DataParallel(model, parameters.threads)
    shape, count = model.inputs[0].shape[1:], model.outputs[0].shape[1]
    if (shape, count) != (style.shape, len(classes)):
        raise StageError(
            f"{MODEL}: was trained on {count} classes of {shape} pixels, but {RAW} holds "
            f"{len(classes)} of {style.shape}; run `make repro` to train a new model"
        )
    is_novel: Callable[[Floats], list[bool]] = accept_all
    if style.digits and TRAIN.exists() and VALIDATION.exists():
        is_novel = novelty.fit(model, parameters.batch_size, style)
    elif style.digits:
        print(
            f"warning: {TRAIN} and {VALIDATION} are needed to refuse images without a digit; run "
            "`dvc repro`",
            file=sys.stderr,
        )
    return Classifier(
        description.get("title", "images"),
        classes,
        style,
        partial(portable.predict_probabilities, batch_size=parameters.batch_size),
        is_novel,
        description.get("whites", {}),
    )
