"""Tell images that look like the training images from images of something else.

The score of an image is the sum of three distances from the training images, each divided by its
standard deviation:

- in the features of two layers, the distance from the nearest training images of the predicted
  class (Y. Sun, Y. Ming, X. Zhu, Y. Li, "Out-of-distribution detection with deep nearest
  neighbors", ICML 2022). Letters are far away.
- in the pixels, the share of the image that the principal components of the training images cannot
  reconstruct (H. Hoffmann, "Kernel PCA for novelty detection", Pattern Recognition 40 (3), 2007).
  Clothes are far away.

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

REFERENCES = 20_000  # training images
CALIBRATION = 6_000  # validation images
NEIGHBOURS = 3
COMPONENTS = 0.25  # of the number of pixels
RESIDUAL_WEIGHT = 0.5
REFUSED = 0.0075  # share of the validation images that are refused because of their score

Classes = npt.NDArray[np.integer]
IsNovel = Callable[[Floats], list[bool]]


def fit(model: keras.Model, batch_size: int, background: float) -> IsNovel:
    """Return a function that says which images (n, height, width) look like no training image.

    `background` is the level of the pixels without strokes, 0 to 1. The limit of the score is
    chosen on validation images; the test set is not read. With too few validation images to choose
    it, no image is refused.
    """
    validation = read_split(VALIDATION)[0][:CALIBRATION]
    if len(validation) * REFUSED < 1:
        return lambda images: [False] * len(images)
    images, labels = (array[:REFERENCES] for array in read_split(TRAIN))
    classes = labels.argmax(axis=1)
    compute_distances = fit_distances(model, batch_size, images, classes)
    compute_residual = fit_residual(images)

    def compute_parts(images: Floats) -> tuple[Floats, Classes]:
        distances, predicted = compute_distances(images)
        return np.stack([*distances, compute_residual(images)]), predicted

    expected, _ = compute_parts(validation)
    weights = np.array([1, 1, RESIDUAL_WEIGHT]) / np.maximum(expected.std(axis=1), 1e-6)
    limit = np.quantile(weights @ expected, 1 - REFUSED)
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
    model: keras.Model, batch_size: int, images: Floats, classes: Classes
) -> Callable[[Floats], tuple[Floats, Classes]]:
    """Return a function that computes the distances of images from the nearest of these images."""
    network = build_features(model)

    def compute_features(images: Floats) -> list[Floats]:
        """Return the features of each layer, as vectors of length 1, and the probabilities."""
        parts = [
            network.predict_on_batch(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        *layers, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = [np.linalg.norm(layer, axis=1, keepdims=True) for layer in layers]
        pairs = zip(layers, lengths, strict=True)
        return [*(layer / np.maximum(length, 1e-6) for layer, length in pairs), probabilities]

    *references, _ = compute_features(images)

    def compute_distances(images: Floats) -> tuple[Floats, Classes]:
        """Return the squared Euclidean distances (layers, n) and the predicted classes (n)."""
        *layers, probabilities = compute_features(images)
        predicted = probabilities.argmax(axis=1)
        distances = np.full((len(layers), len(images)), 4, np.float32)  # the largest distance
        for label in np.unique(predicted):
            chosen, known = predicted == label, classes == label
            count = min(NEIGHBOURS, int(known.sum()))
            for layer, features in enumerate(layers):
                if count:
                    every = 2 - 2 * features[chosen] @ references[layer][known].T
                    nearest = np.partition(every, count - 1)[:, :count]
                    distances[layer, chosen] = nearest.mean(axis=1)
        return distances, predicted

    return compute_distances


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
    """Return a network with three outputs: two layers' features, and the probabilities.

    Of a network that averages others, the first one is used.
    """
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        return build_features(nested[0])
    last = next(layer for layer in reversed(model.layers) if layer.name == "main")
    flat = next(layer for layer in model.layers if isinstance(layer, keras.layers.Flatten))
    return keras.Model(model.inputs, [flat.output, last.input, last.output])
