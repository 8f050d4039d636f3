"""Judge the trained network on the test digits, which no training has seen.

Reads data/processed/{validation,test}.npz, data/model, data/raw/dataset.json and `evaluate` in
params.yaml. Writes data/evaluation/metrics.json and data/evaluation/predictions.csv, one row for
each test digit.

    python -m stages.evaluate
"""

import sys
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from stages.core.errors import run
from stages.core.files import read_csv, write_csv, write_json
from stages.core.paths import DATASET, HISTORY, METRICS, MODEL, PREDICTIONS, PROCESSED
from stages.core.prepared import read_classes, read_split
from stages.core.settings import Section

# What Keras loads where it is installed, for features that are not used here: half a second.
UNUSED: Any = {"matplotlib": None}

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class EvaluateParameters(Section):
    """How the predictions are computed, which decides how they round."""

    section: ClassVar = "evaluate"

    batch_size: int = Field(ge=1)
    threads: int = Field(ge=1, le=64)


def scores(actual: Labels, predicted: Labels, classes: int) -> dict[str, float]:
    """Return accuracy, and precision, recall and F1 averaged over classes, of class indices (n,).

    A class that is never predicted has precision 0, one that does not occur recall 0.
    """
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, predicted, labels=range(classes), average="macro", zero_division=0
    )
    accuracy = accuracy_score(actual, predicted)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def class_scores(
    actual: Labels, predicted: Labels, classes: list[str]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and the count of test digits of each class by its name."""
    columns = precision_recall_fscore_support(
        actual, predicted, labels=range(len(classes)), zero_division=0
    )
    names = ("precision", "recall", "f1", "support")
    return {
        name: {key: column[i].item() for key, column in zip(names, columns, strict=True)}
        for i, name in enumerate(classes)
    }


def accuracy_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy of `right` in `count`.

    Wilson's score interval (1927), which holds near 1, where the textbook's normal one does not.
    """
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def prediction_table(actual: Labels, probabilities: Floats, classes: list[str]) -> pd.DataFrame:
    """Return index, actual and predicted class name, and the probability of the predicted one."""
    names = np.array(classes)
    return pd.DataFrame(
        {
            "index": range(len(actual)),
            "actual": names[actual],
            "predicted": names[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        }
    )


def main() -> None:
    """Write the metrics and the predictions."""
    parameters = EvaluateParameters.read()
    classes = read_classes(DATASET)
    history = read_csv(HISTORY)

    # Only now, since TensorFlow takes seconds to load and a mistake above should not wait for it.
    from stages.model import calibration, portable, runtime, storage

    runtime.configure_tensorflow(parameters.threads)
    model = storage.load(MODEL)
    twin = portable.make_portable(model, parameters.threads)
    metrics: dict[str, Any] = {}
    for name in ("validation", "test"):  # one after the other, to hold one in memory
        images, labels = read_split(PROCESSED / f"{name}.npz")
        probabilities = twin.predict_probabilities(images, parameters.batch_size)
        loss = calibration.mean_loss(model, labels, probabilities)
        actual, predicted = labels.argmax(axis=1), probabilities.argmax(axis=1)
        metrics[name] = {"loss": loss, **scores(actual, predicted, len(classes))}
    # What the loop leaves behind is of the test digits.
    low, high = accuracy_interval(int((actual == predicted).sum()), len(actual))
    metrics["test"] |= {
        "accuracy_low": low,
        "accuracy_high": high,
        "per_class": class_scores(actual, predicted, classes),
    }
    metrics["train"] = {
        "epochs": len(history),
        "chosen_epoch": int(history.loc[history["chosen"] == 1, "epoch"].item()),
    }
    write_csv(PREDICTIONS, prediction_table(actual, probabilities, classes))
    write_json(METRICS, metrics)
    print(
        f"test accuracy {metrics['test']['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}), loss {metrics['test']['loss']:.4f}"
    )


if __name__ == "__main__":
    sys.modules.update(UNUSED)
    run(main)
