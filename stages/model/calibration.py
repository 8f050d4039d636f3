"""Measure and correct the probabilities of a trained network."""

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from stages.core.files import Floats
from stages.model import arithmetic
from stages.model.architectures import MAIN, has_two_outputs
from stages.model.parallel import DataParallel


def compute_mean_loss(model: keras.Model, labels: Floats, probabilities: Floats) -> float:
    """Return the mean loss of `probabilities` for one-hot `labels`, both (n, classes).

    The model's file names the loss. It is computed for the main output, without label smoothing.
    """
    loss = model.loss[MAIN] if has_two_outputs(model) else model.loss
    found = np.asarray(probabilities, np.float64)
    if keras.losses.get(loss) is keras.losses.mean_squared_error:
        return float(((found - labels) ** 2).mean(1).mean())
    logarithms = arithmetic.log(np.clip(found, 1e-7, 1 - 1e-7)).numpy()
    return float(-(labels * logarithms).sum(1).mean())


# The fewest mistakes on the validation set for a calibration. The factor is the only coefficient of
# a logistic regression, and such a fit is unreliable with fewer than 10 events for each
# coefficient: Peduzzi et al., "A simulation study of the number of events per variable in logistic
# regression analysis", 1996. Without any mistake, the best factor would be infinite.
MIN_MISTAKES = 10


def calibrate(model: DataParallel, images: Floats, labels: Floats, batch_size: int) -> None:
    """Scale the weights of the main classifier so that its probabilities fit `labels` best.

    Label smoothing makes a network less confident than its accuracy justifies. One factor for all
    logits corrects that and changes no prediction: Guo et al., "On calibration of modern neural
    networks", 2017. With fewer than MIN_MISTAKES wrong images, the weights stay as they are.
    """
    probabilities = model.predict_probabilities(images, batch_size)
    mistakes = int((probabilities.argmax(axis=1) != labels.argmax(axis=1)).sum())
    if mistakes < MIN_MISTAKES:
        print(
            f"the probabilities are not recalibrated: {mistakes} of {len(labels)} validation "
            f"images are misclassified; recalibration needs at least {MIN_MISTAKES}"
        )
        return
    logits = arithmetic.log(np.maximum(probabilities, 1e-30, dtype=np.float64)).numpy()
    logits -= logits.max(1, keepdims=True)

    def compute_cross_entropy(factor: float) -> float:
        totals = arithmetic.exp(factor * logits).numpy().sum(1)
        logarithms = arithmetic.log(totals).numpy()
        return float((logarithms - (factor * logits * labels).sum(1)).mean())

    best = minimize_scalar(compute_cross_entropy, bounds=(0.1, 10), method="bounded").x
    factor = np.float32(round(best, 2))  # later digits differ between machines
    classifier = model.network.get_layer(MAIN)
    classifier.set_weights([factor * weights for weights in classifier.get_weights()])
