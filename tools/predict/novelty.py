"""Tell images that look like the training images from images of something else.

The score of an image is the sum of two distances from the training images, each divided by its
standard deviation:

- in the features that the network's last layer classifies, the distance from the nearest training
  images of the predicted class (Y. Sun, Y. Ming, X. Zhu, Y. Li, "Out-of-distribution detection with
  deep nearest neighbors", ICML 2022). Letters are far away.
- in the pixels, the share of the image that the training images' principal components cannot
  reconstruct (H. Hoffmann, "Kernel PCA for novelty detection", Pattern Recognition 40 (3), 2007,
  compares this with other scores). Clothes and textures are far away.
"""

from collections.abc import Callable

import keras
import numpy as np
from scipy import linalg

from stages.core.files import Floats
from stages.core.paths import TRAIN, VALIDATION
from stages.core.prepared import read_split

REFERENCES = 12_000  # training images
CALIBRATION = 5_000  # validation images
NEIGHBOURS = 3
COMPONENTS = 0.25  # of the number of pixels
RESIDUAL_WEIGHT = 0.5
REFUSED = 0.007  # share of the validation images that are refused

IsStrange = Callable[[Floats], list[bool]]


def fit(model: keras.Model, batch_size: int) -> IsStrange:
    """Return a function that says which images (n, height, width) look like no training image.

    The limit of the score is chosen on validation images; the test set is not read. With too few
    validation images to choose it, no image is refused.
    """
    validation = read_split(VALIDATION)[0][:CALIBRATION]
    if len(validation) * REFUSED < 1:
        return lambda images: [False] * len(images)
    images, labels = (array[:REFERENCES] for array in read_split(TRAIN))
    scores = fit_distance(model, batch_size, images, labels), fit_residual(images)
    known = [score(validation) for score in scores]
    weights = 1 / known[0].std(), RESIDUAL_WEIGHT / known[1].std()
    limit = np.quantile(weights[0] * known[0] + weights[1] * known[1], 1 - REFUSED)

    def is_strange(images: Floats) -> list[bool]:
        distance, residual = (score(images) for score in scores)
        strange: list[bool] = (weights[0] * distance + weights[1] * residual > limit).tolist()
        return strange

    return is_strange


def fit_distance(
    model: keras.Model, batch_size: int, images: Floats, labels: Floats
) -> Callable[[Floats], Floats]:
    """Return a function that computes the distances of images from the nearest of these images.

    The distance is the squared Euclidean one between features of length 1.
    """
    network = build_features(model)

    def compute_features(images: Floats) -> tuple[Floats, Floats]:
        parts = [
            network.predict_on_batch(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        features, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features / np.linalg.norm(features, axis=1, keepdims=True), classes.argmax(axis=1)

    references, _ = compute_features(images)
    by_class = [references[labels[:, label] == 1] for label in range(labels.shape[1])]

    def compute_distance(images: Floats) -> Floats:
        features, classes = compute_features(images)
        nearest = np.full(len(features), 4, np.float32)  # the largest distance
        for label, known in enumerate(by_class):
            chosen = classes == label
            if chosen.any() and len(known):
                distances = 2 - 2 * features[chosen] @ known.T
                count = min(NEIGHBOURS, len(known))
                nearest[chosen] = np.partition(distances, count - 1)[:, :count].mean(axis=1)
        return nearest

    return compute_distance


def fit_residual(images: Floats) -> Callable[[Floats], Floats]:
    """Return a function that computes the share of images that is beyond principal components."""
    pixels = images.reshape(len(images), -1)
    mean, size = pixels.mean(axis=0), pixels.shape[1]
    covariance = (pixels - mean).T @ (pixels - mean)
    first = size - max(1, round(COMPONENTS * size))
    _, components = linalg.eigh(covariance, subset_by_index=[first, size - 1])

    def compute_residual(images: Floats) -> Floats:
        pixels = images.reshape(len(images), -1)
        centred = pixels - mean
        residual = centred - centred @ components @ components.T
        share = (residual**2).sum(axis=1) / np.maximum((pixels**2).sum(axis=1), 1e-6)
        return np.asarray(share, np.float32)

    return compute_residual


def build_features(model: keras.Model) -> keras.Model:
    """Return a network with two outputs: the last layer's input and the probabilities.

    Of a network that averages others, the first one is used.
    """
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        return build_features(nested[0])
    last = next(layer for layer in reversed(model.layers) if layer.name == "main")
    return keras.Model(model.inputs, [last.input, last.output])
