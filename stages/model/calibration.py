"""Measure and correct the probabilities of a trained network."""

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from stages.core.files import Floats
from stages.model.architectures import MAIN, has_two_outputs
from stages.model.parallel import DataParallel


def mean_loss(model: keras.Model, labels: Floats, probabilities: Floats) -> float:
    """Return the mean loss of `probabilities` for one-hot `labels`, both (n, classes).

    The model's file names the loss. It is computed for the main output, without label smoothing.
    """
    loss = model.loss[MAIN] if has_two_outputs(model) else model.loss
    losses = np.asarray(keras.losses.get(loss)(labels, probabilities))
    return float(losses.mean(dtype=np.float64))


def calibrate(model: DataParallel, images: Floats, labels: Floats, batch_size: int) -> None:
    """Scale the weights of the main classifier so that its probabilities fit `labels` best.

    Label smoothing makes a network less confident than its accuracy justifies. One factor for all
    logits corrects that and changes no prediction: Guo et al., "On calibration of modern neural
    networks", 2017.
    """
    probabilities = model.predict_probabilities(images, batch_size)
    logits = np.log(np.maximum(probabilities, 1e-30, dtype=np.float64))

    def cross_entropy(factor: float) -> float:
        return float(
            (logsumexp(factor * logits, axis=1) - (factor * logits * labels).sum(1)).mean()
        )

    best = minimize_scalar(cross_entropy, bounds=(0.1, 10), method="bounded").x
    factor = np.float32(round(best, 2))  # later digits differ between machines
    classifier = model.network.get_layer(MAIN)
    classifier.set_weights([factor * weights for weights in classifier.get_weights()])
