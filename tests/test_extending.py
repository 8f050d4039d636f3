"""The examples of docs/extending.md, applied to a clone."""

import re

import pandas as pd
import pytest
from helpers import datasets
from helpers.pages import apply_blocks
from helpers.project import ROOT, STAGES, list_declared, read_graph, spy_on_repro

from stages.core.files import read_json

PAGE = ROOT / "docs/extending.md"
EXAMPLES = {  # the files that the page's table lists for each example, by its heading
    name.capitalize(): set(re.findall(r"`([^`]+)`", files))
    for name, files in re.findall(r"^\| \[(.*?)\].*? \| (.*) \|$", PAGE.read_text(), re.M)
}
*FIRST, IMAGES = EXAMPLES


def apply_example(heading, project):
    """Apply an example, check that it changes only the listed files, and commit it."""
    apply_blocks(PAGE, heading, project.folder)
    changed = project.run("git", "status", "--porcelain", "--untracked-files=all").stdout
    project.commit("example")
    names = {re.sub(r"^\"?datasets/.*", "datasets/", line[3:]) for line in changed.splitlines()}
    assert names == EXAMPLES[heading]


@pytest.fixture(scope="module")
def project(small_project):
    """A small project with the first three examples."""
    for heading in FIRST:
        apply_example(heading, small_project)
    return small_project


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


def test_own_images_need_three_lines(project, tmp_path):
    """Photos of several sizes, in a folder for each class."""
    project.set({"download.dataset": "mnist", "model.architecture": "convolutional"})
    project.commit("start of the fourth example")
    datasets.write_dataset("things", tmp_path, train=16, test=0)
    (tmp_path / "train").rename(project.folder / "datasets/mine")
    apply_example(IMAGES, project)
    project.run("python", "-m", "tools.recipe", "small")
    project.set({"train.epochs": 1, "model.architecture": "dense"})
    project.run_stages("download", "preprocess", "train")
    found = read_json(project.folder / "data/raw/dataset.json")["classes"]
    assert found == sorted(datasets.KINDS["things"][0])
