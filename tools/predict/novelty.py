"""Tell images that look like the training images from images of something else.

The score of an image is its distance from the nearest training images of the predicted class, in
the features that the network's last layer classifies: Y. Sun, Y. Ming, X. Zhu, Y. Li,
"Out-of-distribution detection with deep nearest neighbors", ICML 2022.
"""

from collections.abc import Callable

import keras
import numpy as np

from stages.core.files import Floats
from stages.core.paths import TRAIN, VALIDATION
from stages.core.prepared import read_split

REFERENCES = 12_000  # training images
CALIBRATION = 5_000  # validation images
NEIGHBOURS = 3
REFUSED = 0.007  # share of the validation images that are refused

IsStrange = Callable[[Floats], list[bool]]


def fit(model: keras.Model, batch_size: int) -> IsStrange:
    """Return a function that says which images (n, height, width) look like no training image.

    The limit of the score is chosen on validation images; the test set is not read.
    """
    network = build_features(model)

    def compute_features(images: Floats) -> tuple[Floats, Floats]:
        parts = [
            network.predict_on_batch(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        features, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features / np.linalg.norm(features, axis=1, keepdims=True), classes.argmax(axis=1)

    images, labels = read_split(TRAIN)
    references, _ = compute_features(images[:REFERENCES])
    by_class = [
        references[labels[:REFERENCES].argmax(axis=1) == label] for label in range(labels.shape[1])
    ]

    def compute_scores(images: Floats) -> Floats:
        features, classes = compute_features(images)
        scores = np.full(len(features), np.inf, np.float32)
        for label, known in enumerate(by_class):
            chosen = classes == label
            if chosen.any() and len(known):
                distances = 2 - 2 * features[chosen] @ known.T  # squared, of vectors of length 1
                count = min(NEIGHBOURS, len(known))
                nearest = np.partition(distances, count - 1, axis=1)[:, :count]
                scores[chosen] = nearest.mean(axis=1)
        return scores

    validation, _ = read_split(VALIDATION)
    limit = np.quantile(compute_scores(validation[:CALIBRATION]), 1 - REFUSED)

    def is_strange(images: Floats) -> list[bool]:
        strange: list[bool] = (compute_scores(images) > limit).tolist()
        return strange

    return is_strange


def build_features(model: keras.Model) -> keras.Model:
    """Return a network with two outputs: the last layer's input and the probabilities.

    Of a network that averages others, the first one is used.
    """
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        return build_features(nested[0])
    last = next(layer for layer in reversed(model.layers) if layer.name == "main")
    return keras.Model(model.inputs, [last.input, last.output])
