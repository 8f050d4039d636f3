"""Load the trained model, and prepare photos like its dataset's images."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

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
from stages.sources.image_files import Form, convert, open_image
from tools.predict.picture import (
    ImageFileError,
    ImageStyle,
    check_length,
    is_from_camera,
    is_own_image,
    list_steps,
    read_image_file,
)

# What is tried in turn if a photo leads to no digit: ways of `list_steps`. Those in OTHER_SHAPES
# change the strokes that were found, the others find other strokes.
OTHER_SHAPES = ("widen", "thin")
CAMERA_WAYS = ("padded", "inverted", "unflattened")
SMALL_WAYS = ("camera",)
STYLE_IMAGES = 1000  # training images from which the dataset's style is measured

# The highest probability of a photo is too high, because the network was calibrated on images like
# the training images. With this temperature, at most 1 of 1,000 validation photos is wrong and
# more than 90 % sure.
TEMPERATURE = 2

IsNovel = Callable[[Floats], list[bool]]
Ranking = list[tuple[str, float]]  # class names and their probabilities, most likely first


@dataclass(frozen=True)
class Classifier:
    """The trained network, and what a photo must look like for it."""

    title: str  # of the dataset that it was trained on
    classes: list[str]
    style: ImageStyle  # of the dataset's images
    predict_probabilities: Callable[[Floats], Floats]  # from (n, height, width) to (n, classes)
    is_novel: IsNovel  # which of the prepared images look like no digit
    whites: Mapping[str, float] = field(default_factory=dict)  # see image_files.Form

    def list_steps(self, content: bytes) -> dict[str, Floats]:
        """Return what is made of the photo in an image file step by step, for people to see.

        Each step is (height, width) or (height, width, 3) in [0, 1]; its key says what it shows.
        An image of the dataset's own kind becomes exactly what the pipeline makes of it, in one
        step.

        If no digit is found, it may be narrow or thick, or a shadow, paper or a sheet was confused
        with it. Then other ways are tried, and the first result that looks like a digit is kept.
        """
        check_length(content)
        own = read_own_image(content, self.style, self.whites)
        if own is not None:
            return {"network input": own}
        photo = read_image_file(content)
        ways: tuple[str, ...] = CAMERA_WAYS if is_from_camera(photo) else SMALL_WAYS
        first: dict[str, Floats] | ImageFileError
        try:
            first = list_steps(photo, self.style)
            if not self.is_novel(first["network input"][None])[0]:
                return first
            ways = OTHER_SHAPES + ways
        except ImageFileError as error:
            first = error
        for way in ways if self.style.digits else ():
            with suppress(ImageFileError):
                steps = list_steps(photo, self.style, way)
                if not self.is_novel(steps["network input"][None])[0]:
                    return steps
        if isinstance(first, ImageFileError):
            raise first
        return first

    def rank(
        self, images: Sequence[Floats], photos: Sequence[bool]
    ) -> Iterator[tuple[Ranking, str]]:
        """Yield the ranking of each image (height, width), and why it gets no class or "".

        `photos` says which images were prepared from photos, as those with a step "photo". Their
        probabilities are raised to the power 1 / TEMPERATURE: temperature scaling (C. Guo,
        G. Pleiss, Y. Sun, K. Weinberger, "On calibration of modern neural networks", ICML 2017).
        """
        every = np.stack(images)
        probabilities, novel = self.predict_probabilities(every), self.is_novel(every)
        for row, photo, refused in zip(probabilities, photos, novel, strict=True):
            shares = row ** (1 / TEMPERATURE) if photo else row
            shares = shares / shares.sum() if photo else row
            ranking = sorted(zip(self.classes, shares.tolist(), strict=True), key=lambda e: -e[1])
            yield ranking, "does not look like a digit" if refused else ""


def read_own_image(content: bytes, style: ImageStyle, whites: Mapping[str, float]) -> Floats | None:
    """Return the image in a file as the stages download and preprocess do; None for other files.

    See `is_own_image` for the files that count as the dataset's own. In colour, all do: a photo of
    another size is scaled and cut as with `download.size`.
    """
    height, width, *colour = style.shape
    form = Form((width, height) if colour else None, bool(colour), whites)
    try:
        with open_image(io.BytesIO(content)) as photo:
            possible = {photo.height, photo.width} == {height, width}  # it may be turned
            image = normalise(convert(photo, form)) if colour or possible else None
    except Exception as error:  # a damaged file: read_image_file says what is wrong with it
        if colour:
            read_image_file(content)
            raise ImageFileError(f"cannot be read in colour: {error}") from error
        return None
    return image if image is not None and is_own_image(image, style) else None


def accept_all(images: Floats) -> list[bool]:
    """Return that none of the images is novel."""
    return [False] * len(images)


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
        print(
            f"warning: {MODEL} is not the model that {LOCK} records; `dvc checkout` restores it",
            file=sys.stderr,
        )

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
    is_novel: IsNovel = accept_all
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
