"""Tell images that look like the training images from images of something else.

The score of an image is computed from three numbers, each divided by its standard deviation:

- in the features of a layer, the distance from the nearest training images of the predicted class
  (Y. Sun, Y. Ming, X. Zhu, Y. Li, "Out-of-distribution detection with deep nearest neighbors",
  ICML 2022);
- in the same features, the distance from the nearest letters, which is subtracted. With examples
  of letters, the score finds many more letters (D. Hendrycks, M. Mazeika, T. Dietterich, "Deep
  anomaly detection with outlier exposure", ICLR 2019);
- in the pixels, the share of the image that the principal components of the training images cannot
  reconstruct (H. Hoffmann, "Kernel PCA for novelty detection", Pattern Recognition 40 (3), 2007).
  Clothes have a large share.

An image is also refused if its strokes are thicker than those of all training images of the
predicted class. A reflection or a blot has such strokes.
"""

from collections.abc import Callable

import cv2
import keras
import numpy as np
import numpy.typing as npt
from scipy import linalg

from stages.core.files import Floats
from stages.core.paths import TRAIN, VALIDATION
from stages.core.prepared import read_split
from tools.predict.letters import draw_letters
from tools.predict.picture import ImageStyle

REFERENCES = 20_000  # training images
CALIBRATION = 6_000  # validation images
MIN_CALIBRATION = 300  # with fewer validation images, no image is refused
NEIGHBOURS = 3
COMPONENTS = 0.25  # of the number of pixels
WEIGHTS = (1, -2, 0.5)  # of the distance from digits, the distance from letters and the residual
REFUSED = 0.001  # share of the validation images that are refused because of their score

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
    images, labels = (array[:REFERENCES] for array in read_split(TRAIN))
    classes = labels.argmax(axis=1)
    compute_distances = fit_distances(model, batch_size, images, classes, draw_letters(style))
    compute_residual = fit_residual(images)

    def compute_parts(images: Floats) -> tuple[Floats, Classes]:
        distances, predicted = compute_distances(images)
        return np.stack([*distances, compute_residual(images)]), predicted

    expected, _ = compute_parts(validation)
    weights = np.array(WEIGHTS) / np.maximum(expected.std(axis=1), 1e-6)
    limit = np.quantile(weights @ expected, 1 - REFUSED)
    background = style.background or 0
    thickest = np.zeros(labels.shape[1])
    np.maximum.at(thickest, classes, measure_thickness(images, background))

    def is_novel(images: Floats) -> list[bool]:
        parts, predicted = compute_parts(images)
        thick = measure_thickness(images, background) > thickest[predicted]
        novel: list[bool] = ((weights @ parts > limit) | thick).tolist()
        return novel

    return is_novel


def measure_thickness(images: Floats, background: float) -> Floats:
    """Return the radius in pixels of the largest circle inside the strokes of each image."""
    strokes = (np.abs(images - background) > 0.5).astype(np.uint8)
    exact = cv2.DIST_MASK_PRECISE
    return np.array([cv2.distanceTransform(each, cv2.DIST_L2, exact).max() for each in strokes])


def fit_distances(
    model: keras.Model, batch_size: int, images: Floats, classes: Classes, letters: Floats
) -> Callable[[Floats], tuple[Floats, Classes]]:
    """Return a function that computes how far images are from these training images and letters."""
    network = build_features(model)

    def compute_features(images: Floats) -> tuple[Floats, Classes]:
        """Return the features, as vectors of length 1, and the predicted classes."""
        parts = [
            network.predict_on_batch(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(lengths, 1e-6), probabilities.argmax(axis=1)

    references, _ = compute_features(images)
    letter_features, _ = compute_features(letters)

    def compute_distances(images: Floats) -> tuple[Floats, Classes]:
        """Return two squared Euclidean distances (2, n) and the predicted classes (n).

        The first distance is from training images of the predicted class, the second from letters.
        """
        features, predicted = compute_features(images)
        distances = np.full((2, len(images)), 4, np.float32)  # the largest distance
        distances[1] = measure_nearest(features, letter_features)
        for label in np.unique(predicted):
            chosen, same_class = predicted == label, references[classes == label]
            if len(same_class):
                distances[0, chosen] = measure_nearest(features[chosen], same_class)
        return distances, predicted

    return compute_distances


def measure_nearest(features: Floats, others: Floats) -> Floats:
    """Return the mean squared distance (n) of features (n, size) from the nearest of `others`.

    All features are vectors of length 1.
    """
    every = 2 - 2 * features @ others.T
    count = min(NEIGHBOURS, len(others))
    return np.asarray(np.partition(every, count - 1)[:, :count].mean(axis=1))


def fit_residual(images: Floats) -> Callable[[Floats], Floats]:
    """Return a function that computes the share of images that is beyond principal components."""
    pixels = images.reshape(len(images), -1)
    mean, size = pixels.mean(axis=0), pixels.shape[1]
    first = size - max(1, round(COMPONENTS * size))
    covariance = (pixels - mean).T @ (pixels - mean)
    _, components = linalg.eigh(covariance, subset_by_index=[first, size - 1])

    def compute_residual(images: Floats) -> Floats:
        pixels = images.reshape(len(images), -1)
        centred = pixels - mean
        residual = centred - centred @ components @ components.T
        share = (residual**2).sum(axis=1) / np.maximum((pixels**2).sum(axis=1), 1e-6)
        return np.asarray(share, np.float32)

    return compute_residual


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
