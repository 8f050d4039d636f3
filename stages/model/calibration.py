"""TODO stages.model.calibration."""

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from stages.model.architectures import MAIN, Floats, has_two_outputs
from stages.model.parallel import DataParallel
from stages.model.portable import make_portable


def predict_probabilities(
    model: keras.Model, images: Floats, batch_size: int, threads: int
) -> Floats:
    """Return the main output's probabilities (n, classes) float32 for `images`."""
    return make_portable(model, threads).probabilities(images, batch_size)


def mean_loss(model: keras.Model, labels: Floats, probabilities: Floats) -> float:
    """Return the mean loss of `probabilities`, both (n, classes), by the loss in the model's file.

    That is the one trained with, of the main output, without the smoothing of labels.
    """
    loss = model.loss[MAIN] if has_two_outputs(model) else model.loss
    losses = np.asarray(keras.losses.get(loss)(labels, probabilities))
    return float(losses.mean(dtype=np.float64))


def calibrate(twin: DataParallel, images: Floats, labels: Floats, batch_size: int) -> None:
    """Scale the main classifier's weights so that its probabilities fit `labels` best.

    Smoothed labels make a network less sure than it has reason to be. One factor for all undoes
    that and changes no prediction: Guo et al., "On calibration of modern neural networks", 2017.
    """
    found = twin.probabilities(images, batch_size)
    logits = np.log(np.maximum(found, 1e-30, dtype=np.float64))

    def cross_entropy(factor: float) -> float:
        return float(
            (logsumexp(factor * logits, axis=1) - (factor * logits * labels).sum(1)).mean()
        )

    best = minimize_scalar(cross_entropy, bounds=(0.1, 10), method="bounded").x
    factor = np.float32(round(best, 2))  # the last digits are the machine's
    classifier = twin.network.get_layer(MAIN)
    classifier.set_weights([factor * weights for weights in classifier.get_weights()])
