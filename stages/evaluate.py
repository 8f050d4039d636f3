"""Evaluate the trained network on the test set, which training never reads.

Reads data/processed/{validation,test}.npz, data/model, data/raw/dataset.json and `evaluate` in
params.yaml. Writes to data/evaluation:

    metrics.json       accuracy, loss and averages over the classes
    per_class.csv      precision, recall and F1 of each class
    predictions.csv    the prediction for each test image

    python -m stages.evaluate
"""

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from stages.core.dataset import read_classes
from stages.core.errors import run
from stages.core.files import Floats, read_csv, write_csv, write_json
from stages.core.paths import DATASET, HISTORY, METRICS, MODEL, PER_CLASS, PREDICTIONS, PROCESSED
from stages.core.prepared import read_split
from stages.core.settings import Section

Labels = npt.NDArray[np.int64]


class EvaluateParameters(Section):
    """Settings that affect only the speed and the rounding of predictions."""

    section: ClassVar = "evaluate"

    batch_size: int = Field(ge=1)
    threads: int = Field(ge=1, le=64)


def score_classes(actual: Labels, predicted: Labels, classes: list[str]) -> pd.DataFrame:
    """Return a table with one row for each class. `support` is its number of images.

    A class that is never predicted has precision 0. A class without images has recall 0.
    """
    precision, recall, f1, support = precision_recall_fscore_support(
        actual, predicted, labels=range(len(classes)), zero_division=0
    )
    return pd.DataFrame(
        {"class": classes, "precision": precision, "recall": recall, "f1": f1, "support": support}
    )


def compute_accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the accuracy `correct / count`.

    This is Wilson's score interval (1927). It also holds for accuracies close to 1, where the usual
    normal approximation does not.
    """
    share, z = correct / count, 1.959963984540054  # z: 95 % of a normal distribution
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def tabulate_predictions(actual: Labels, probabilities: Floats, classes: list[str]) -> pd.DataFrame:
    """Return a table with one row per image. `confidence` is the predicted class's probability."""
    names = np.array(classes)
    return pd.DataFrame(
        {
            "index": range(len(actual)),
            "actual": names[actual],
            "predicted": names[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        }
    )


def name_unpredicted(classes: list[str], predicted: Labels) -> str:
    """Return the end of a line: the classes that are never predicted, if there are any."""
    missing = [repr(classes[label]) for label in sorted({*range(len(classes))} - {*predicted})]
    if not missing:
        return ""
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    return f"; never predicted: {', '.join(missing[:10])}{more}"


def main() -> None:
    """Write the metrics, the scores of each class and the predictions."""
    parameters = EvaluateParameters.read()
    classes = read_classes(DATASET)
    history = read_csv(HISTORY)

    # Imported here because TensorFlow takes seconds to load, and a mistake in the parameters or the
    # data should be reported at once.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    from stages.model import calibration, storage
    from stages.model.parallel import DataParallel

    configure_tensorflow(parameters.threads)
    model = storage.load(MODEL)
    network = DataParallel(model, parameters.threads)
    metrics: dict[str, Any] = {}
    for name in ("validation", "test"):  # one after the other, so that only one is in memory
        images, labels = read_split(PROCESSED / f"{name}.npz")
        probabilities = network.predict_probabilities(images, parameters.batch_size)
        actual, predicted = labels.argmax(axis=1), probabilities.argmax(axis=1)
        per_class = score_classes(actual, predicted, classes)
        metrics[name] = {
            "accuracy": accuracy_score(actual, predicted),
            "loss": calibration.compute_mean_loss(model, labels, probabilities),
            **per_class[["precision", "recall", "f1"]].mean(),
        }
    # After the loop, these variables hold the results of the test set.
    low, high = compute_accuracy_interval(int((actual == predicted).sum()), len(actual))
    metrics["test"] |= {"accuracy_low": low, "accuracy_high": high}
    metrics["train"] = {
        "epochs": len(history),
        "chosen_epoch": int(history.loc[history["chosen"] == 1, "epoch"].item()),
    }
    write_csv(PREDICTIONS, tabulate_predictions(actual, probabilities, classes))
    write_csv(PER_CLASS, per_class)
    write_json(METRICS, metrics)
    print(
        f"test accuracy {metrics['test']['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}), loss {metrics['test']['loss']:.4f}"
        + name_unpredicted(classes, predicted)
    )


if __name__ == "__main__":
    run(main)
