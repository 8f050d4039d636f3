"""The examples of docs/extending.md, applied to a clone."""

import re
import shutil

import pandas as pd
import pytest
from helpers import datasets
from helpers.pages import apply_blocks
from helpers.project import ROOT, STAGES, list_declared, read_graph, spy_on_repro
from PIL import Image

from stages.core.files import read_json

PAGE = ROOT / "docs/extending.md"
NETWORK, METRIC, STAGE, IMAGES = (
    "A network with its parameter",
    "A metric",
    "A stage that writes a table and a plot",
    "Your own images",
)


def read_file_lists():
    """Return the files that the page's table lists for each example."""
    rows = re.findall(r"^\| \[(.*?)\].*? \| (.*) \|$", PAGE.read_text(), re.M)
    return {name.capitalize(): set(re.findall(r"`([^`]+)`", files)) for name, files in rows}


def list_changes(project):
    """Return the files that differ from the last commit, and commit them."""
    changed = project.run("git", "status", "--porcelain", "--untracked-files=all").stdout
    project.commit("example")
    return {line[3:] for line in changed.splitlines()}


@pytest.fixture(scope="module")
def project(small_project):
    """A small project with the first three examples; each changes only the listed files."""
    project = small_project
    for heading in (NETWORK, METRIC, STAGE):
        apply_blocks(PAGE, heading, project.folder)
        assert list_changes(project) == read_file_lists()[heading]
    return project


def test_network_metric_and_stage_run(project, tmp_path_factory):
    project.set({"model.architecture": "residual", "model.filters": [[4]], "train.epochs": 1})
    used, _ = spy_on_repro(project, tmp_path_factory.mktemp("programs") / "python")
    stages = read_graph(project.folder)
    assert list(stages) == [*STAGES, "reliability"]
    assert list(used) == ["train", "evaluate", "plot", "reliability"]  # the others have not changed
    for name in used:
        assert used[name] == list_declared(stages[name])
    network = (project.folder / "data/model/model.keras").read_bytes()
    assert b"LayerNormalization" in network
    assert b"Add" in network
    test = read_json(project.folder / "data/evaluation/metrics.json")["test"]
    assert test["accuracy"] < test["top_2"] < 1
    table = pd.read_csv(project.folder / "data/reliability/reliability.csv")
    assert list(table) == ["confidence", "accuracy"]
    assert len(table) == 10
    assert table["accuracy"].mean() == pytest.approx(test["accuracy"], abs=0.01)
    project.run("dvc", "plots", "show", "data/reliability/reliability.csv")
    assert "Accuracy by confidence" in (project.folder / "dvc_plots/index.html").read_text()
    project.commit("run")


def test_other_tests_pass_with_the_examples(project):
    """Style, types, and the tests that read params.yaml, dvc.yaml or the scripts."""
    project.run("ruff", "check")
    project.run("ruff", "format", "--check")
    files = [f"tests/test_{name}.py" for name in ("settings", "recipe", "layout", "evaluate")]
    project.run(
        "pytest", "-n", "0", "-k", "not damaged and not any_value and not writes_nothing", *files
    )


def write_photos(folder):
    """Write photos of two sizes, sixteen of each class."""
    datasets.write_dataset("photos", folder / "drawn", train=16, test=0)
    for number, path in enumerate(sorted((folder / "drawn/train").glob("*/*.png"))):
        place = folder / path.parent.name
        place.mkdir(exist_ok=True)
        with Image.open(path) as image:
            image.resize((120, 90 + number % 2)).save(place / f"{path.stem}.JPG")
    shutil.rmtree(folder / "drawn")


def test_own_images_need_three_lines(project):
    project.set({"download.dataset": "mnist", "model.architecture": "convolutional"})
    project.commit("start of the fourth example")
    write_photos(project.folder / "datasets/mine")
    apply_blocks(PAGE, IMAGES, project.folder)
    changed = list_changes(project)
    assert {name for name in changed if not name.startswith("datasets/mine/")} == {"params.yaml"}
    project.run("python", "-m", "tools.recipe", "small")
    project.set({"train.epochs": 1, "model.architecture": "dense"})
    project.run_stages("download", "preprocess", "train")
    assert tuple(read_json(project.folder / "data/raw/dataset.json")["classes"]) == datasets.FIGURES
