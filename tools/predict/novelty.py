"""Tell images that look like the training images from images of something else.

The score of an image is computed from two distances in the features of the network:

- from the nearest training images of the predicted class (Y. Sun, Y. Ming, X. Zhu, Y. Li,
  "Out-of-distribution detection with deep nearest neighbors", ICML 2022);
- from the nearest letters, which is subtracted. With examples of letters, the score finds many more
  letters (D. Hendrycks, M. Mazeika, T. Dietterich, "Deep anomaly detection with outlier exposure",
  ICLR 2019).

An image is also refused if its strokes are thicker than those of all training images of the
predicted class. A reflection or a blot has such strokes.
"""

from collections.abc import Callable

import cv2
import keras
import numpy as np
import numpy.typing as npt

from stages.core.files import Floats
from stages.core.paths import TRAIN, VALIDATION
from stages.core.prepared import read_split
from tools.predict.letters import draw_letters
from tools.predict.picture import ImageStyle

REFERENCES = 2_000  # training images of each class, so that an image takes milliseconds
CALIBRATION = 6_000  # validation images
MIN_CALIBRATION = 300  # with fewer validation images, no image is refused
NEIGHBOURS = 3  # with one, a single odd training image would decide
LETTERS_WEIGHT = 0.5  # of the distance from letters: with 0, 20 % of the letters are found; with 1,
# clothes and other things that are far from digits and letters are not
REFUSED = 0.005  # share of the validation images that are refused because of their score

Classes = npt.NDArray[np.integer]
IsNovel = Callable[[Floats], list[bool]]


def fit(model: keras.Model, batch_size: int, style: ImageStyle) -> IsNovel:
    """Return a function that says which images (n, height, width) look like no training image.

    The limit of the score is chosen on validation images; the test set is not read. With too few
    validation images to choose it, no image is refused.
    """
    validation = read_split(VALIDATION)[0][:CALIBRATION]
    if len(validation) < MIN_CALIBRATION:
        return lambda images: [False] * len(images)
    network, background = build_features(model), style.background or 0
    images, labels = read_split(TRAIN)
    classes = labels.argmax(axis=1)

    def compute_features(images: Floats) -> tuple[Floats, Classes]:
        """Return the features, as vectors of length 1, and the predicted classes."""
        parts = [
            network.predict_on_batch(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(lengths, 1e-6), probabilities.argmax(axis=1)

    letters = compute_features(draw_letters(style))[0]
    digits, thickest = [], []
    for label in range(labels.shape[1]):
        some = images[classes == label][:REFERENCES]
        digits.append(compute_features(some)[0])
        thickest.append(measure_thickness(some, background).max())

    def compute_scores(images: Floats) -> tuple[Floats, Classes]:
        """Return the score and the predicted class of each image."""
        features, predicted = compute_features(images)
        scores = -LETTERS_WEIGHT * measure_distances(letters, features)
        for label in np.unique(predicted):
            chosen = predicted == label
            scores[chosen] += measure_distances(digits[label], features[chosen])
        return scores, predicted

    limit = np.quantile(compute_scores(validation)[0], 1 - REFUSED)

    def is_novel(images: Floats) -> list[bool]:
        scores, predicted = compute_scores(images)
        thick = measure_thickness(images, background) > np.array(thickest)[predicted]
        novel: list[bool] = ((scores > limit) | thick).tolist()
        return novel

    return is_novel


def measure_thickness(images: Floats, background: float) -> Floats:
    """Return the radius in pixels of the largest circle inside the strokes of each image."""
    strokes = (np.abs(images - background) > 0.5).astype(np.uint8)
    exact = cv2.DIST_MASK_PRECISE
    return np.array([cv2.distanceTransform(each, cv2.DIST_L2, exact).max() for each in strokes])


def measure_distances(examples: Floats, features: Floats) -> Floats:
    """Return the mean squared distance (n) of features (n, size) from the nearest of `examples`.

    All features are vectors of length 1. Scikit-learn's NearestNeighbors takes ten times as long
    for a single image.
    """
    every = 2 - 2 * features @ examples.T
    count = min(NEIGHBOURS, len(examples))
    return np.asarray(np.partition(every, count - 1)[:, :count].mean(axis=1))


def build_features(model: keras.Model) -> keras.Model:
    """Return a network with two outputs: the flattened features, and the probabilities.

    Of a network that averages others, the first one is used.
    """
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        return build_features(nested[0])
    last = next(layer for layer in reversed(model.layers) if layer.name == "main")
    flat = next(layer for layer in model.layers if isinstance(layer, keras.layers.Flatten))
    return keras.Model(model.inputs, [flat.output, last.output])
