"""The recipe `notebook` on real MNIST, compared with the course page's own code."""

import json

import numpy as np
import pytest
from helpers.project import Project
from sklearn.model_selection import train_test_split

from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES, TRAIN_LABELS


@pytest.mark.slow
def test_split_and_accuracy_equal_those_of_the_page(mnist, tmp_path):
    project = Project.create(tmp_path, {"download.folder": str(mnist)})
    project.run("python", "-m", "tools.recipe", "notebook")
    project.run_stages("download", "preprocess", "train", "evaluate")

    images = idx.read(tmp_path / "data/raw" / TRAIN_IMAGES, 3).astype("float32") / 255.0
    labels = np.eye(10)[idx.read(tmp_path / "data/raw" / TRAIN_LABELS, 1)]
    train_images, val_images, train_labels, val_labels = train_test_split(
        images, labels, test_size=0.2, random_state=42
    )
    for name, *expected in [
        ("train", train_images, train_labels),
        ("validation", val_images, val_labels),
    ]:
        with np.load(tmp_path / f"data/processed/{name}.npz") as found:
            assert np.array_equal(found["images"], expected[0])
            assert np.array_equal(found["labels"], expected[1])

    metrics = json.loads((tmp_path / "data/evaluation/metrics.json").read_text())
    assert 0.970 <= metrics["test"]["accuracy"] <= 0.981
    assert metrics["train"]["epochs"] == 5
