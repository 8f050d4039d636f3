import math

import numpy as np
import pytest

from stages.evaluate import accuracy_interval, class_scores, prediction_table, scores

ACTUAL = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])


def test_scores_by_hand():
    found = scores(ACTUAL, PREDICTED, 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # Class 0: 2 of 3 predicted are right, 2 of 3 found. 1: 2 of 3, 2 of 2. 2: never predicted.
    assert found["precision"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_class_scores_by_hand():
    found = class_scores(ACTUAL, PREDICTED, ["a", "b", "c", "d"])
    assert found["b"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "support": 2})
    assert found["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert found["d"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_interval_is_wilsons():
    n, p, z = 10_000, 0.99, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert accuracy_interval(9_900, n) == pytest.approx((middle - half, middle + half))
    # All right is no proof of perfection: z^2 / (n + z^2) may still be wrong.
    assert accuracy_interval(100, 100) == pytest.approx((100 / (100 + z * z), 1))


def test_predictions_name_the_likeliest_class_and_its_probability():
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    table = prediction_table(np.array([1, 1]), probabilities, ["cat", "dog"])
    assert table.to_csv(index=False, lineterminator="\n") == (
        "index,actual,predicted,confidence\n0,dog,dog,0.8\n1,dog,cat,0.9\n"
    )
