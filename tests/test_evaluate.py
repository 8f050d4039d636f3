import math

import numpy as np
import pytest

from stages.evaluate import (
    compute_accuracy_interval,
    name_unpredicted,
    score_classes,
    tabulate_predictions,
)


def test_class_scores_by_hand():
    actual, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    table = score_classes(actual, predicted, ["a", "b", "c", "d"])
    assert list(table) == ["class", "precision", "recall", "f1", "support"]
    assert list(table["class"]) == ["a", "b", "c", "d"]
    # a: 2 of 3 predictions are correct, 2 of 3 images found. b: 2 of 3, and 2 of 2.
    # c: never predicted. d: no images.
    assert list(table["precision"]) == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert list(table["recall"]) == pytest.approx([2 / 3, 1, 0, 0])
    assert list(table["f1"]) == pytest.approx([2 / 3, 4 / 5, 0, 0])
    assert list(table["support"]) == [3, 2, 1, 0]


def test_support_is_written_as_an_integer():
    table = score_classes(np.array([0, 1]), np.array([0, 1]), ["cat, small", "dog"])
    assert table.to_csv(index=False, lineterminator="\n") == (
        'class,precision,recall,f1,support\n"cat, small",1.0,1.0,1.0,1\ndog,1.0,1.0,1.0,1\n'
    )


def test_interval_is_wilsons():
    n, p, z = 10_000, 0.99, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert compute_accuracy_interval(9_900, n) == pytest.approx((middle - half, middle + half))
    # Even without a mistake, the lower bound is below 1: n / (n + z^2).
    assert compute_accuracy_interval(100, 100) == pytest.approx((100 / (100 + z * z), 1))


def test_predictions_name_the_most_likely_class():
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    table = tabulate_predictions(np.array([1, 1]), probabilities, ["cat", "dog"])
    assert table.to_csv(index=False, lineterminator="\n") == (
        "index,actual,predicted,confidence\n0,dog,dog,0.8\n1,dog,cat,0.9\n"
    )


def test_classes_that_are_never_predicted_are_named():
    names = [f"c{i}" for i in range(13)]
    assert name_unpredicted(names, np.arange(13)) == ""
    assert name_unpredicted(names, np.array([2] * 9)).startswith("; never predicted: 'c0', 'c1', ")
    assert name_unpredicted(names, np.array([2] * 9)).endswith("'c10' and 2 more")
    assert name_unpredicted(names, np.arange(1, 13)) == "; never predicted: 'c0'"
