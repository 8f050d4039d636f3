"""The recipe `notebook` on real MNIST against what the course page's own code gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.project import ROOT, Project
from sklearn.model_selection import train_test_split

from stages.sources import idx
from stages.sources.catalogue import CATALOGUE, TRAIN_IMAGES, TRAIN_LABELS
from stages.sources.fetch import has_expected_hash


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project.create(tmp_path_factory.mktemp("notebook"), {})
    project.run("python", "-m", "tools.recipe", "notebook")
    for file in CATALOGUE["mnist"].files:  # where an earlier run has them already
        if has_expected_hash(ROOT / "data/raw" / file.name, file):
            (project.folder / "data/raw").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "data/raw" / file.name, project.folder / "data/raw" / file.name)
    project.run("dvc", "repro", "evaluate")
    return project


def test_split_is_the_pages_index_for_index(project):
    raw = project.folder / "data/raw"
    images = idx.read(raw / TRAIN_IMAGES, 3).astype("float32") / 255.0
    labels = np.eye(10)[idx.read(raw / TRAIN_LABELS, 1)]
    train_images, val_images, train_labels, val_labels = train_test_split(
        images, labels, test_size=0.2, random_state=42
    )
    for name, *expected in [
        ("train", train_images, train_labels),
        ("validation", val_images, val_labels),
    ]:
        with np.load(project.folder / f"data/processed/{name}.npz") as found:
            assert np.array_equal(found["images"], expected[0])
            assert np.array_equal(found["labels"], expected[1])


def test_accuracy_is_that_of_the_page(project):
    text = Path(project.folder / "data/evaluation/metrics.json").read_text()
    metrics = json.loads(text)
    assert 0.970 <= metrics["test"]["accuracy"] <= 0.981
    assert metrics["train"]["epochs"] == 5
