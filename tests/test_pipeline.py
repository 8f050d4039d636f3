"""The graph of stages under real DVC, in a small clone on scikit-learn's digits."""

import json
import re
import zipfile

import pandas as pd
import pytest
from helpers.project import (
    STAGES,
    list_declared,
    list_dependents,
    list_outputs,
    read_graph,
    spy_on_stage,
)


@pytest.fixture
def project(small_project):
    """The small project after its first run; changes are undone after each test."""
    with small_project.undo_changes():
        yield small_project


@pytest.fixture
def metrics(project):
    return json.loads((project.folder / "data/evaluation/metrics.json").read_text())


# After the first run


def test_first_run_writes_every_output(project, metrics):
    for stage in read_graph().values():
        for output in list_outputs(stage):
            assert (project.folder / output).stat().st_size > 0
    assert metrics["train"] == {"chosen_epoch": 2, "epochs": 2}
    assert metrics["test"]["accuracy"] > 0.5  # ten classes, two epochs of 1,350 images
    low, high = metrics["test"]["accuracy_low"], metrics["test"]["accuracy_high"]
    assert low < metrics["test"]["accuracy"] < high


def test_predictions_agree_with_metrics(project, metrics):
    table = pd.read_csv(project.folder / "data/evaluation/predictions.csv")
    assert list(table) == ["index", "actual", "predicted", "confidence"]
    assert len(table) == 297
    assert (table["actual"] == table["predicted"]).mean() == metrics["test"]["accuracy"]
    per_class = pd.read_csv(project.folder / "data/evaluation/per_class.csv")
    assert list(per_class) == ["class", "precision", "recall", "f1", "support"]
    counts = table["actual"].value_counts().sort_index()
    assert dict(zip(per_class["class"], per_class["support"], strict=True)) == dict(counts)
    assert per_class["f1"].mean() == metrics["test"]["f1"]


def test_files_for_comparisons_are_in_git(project):
    tracked = project.run("git", "ls-files", "data").stdout.split()
    uncached = {
        path
        for stage in read_graph().values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
        if isinstance(out, dict)
        for path, options in out.items()
        if options.get("cache") is False
    }
    assert {path for path in tracked if not path.endswith(".gitignore")} == uncached
    assert uncached > {
        "data/evaluation/metrics.json",
        "data/evaluation/per_class.csv",
        "data/evaluation/predictions.csv",
        "data/model/history.csv",
        "data/plots/curves.png",
        "data/raw/dataset.json",
    }


def test_second_run_does_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status").stdout


# After a change


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("download.folder", "elsewhere", "download"),
        ("preprocess.seed", 7, "preprocess"),
        ("model.hidden_units", [12], "train"),
        ("train.seed", 7, "train"),
        ("evaluate.threads", 1, "evaluate"),
        ("plot.samples", 3, "plot"),
    ],
)
def test_parameter_belongs_to_one_stage(project, key, value, stage):
    project.set({key: value})
    changed = json.loads(project.run("dvc", "status", "--json").stdout)
    section = key.split(".")[0]
    assert changed == {stage: [{"changed deps": {"params.yaml": {section: "modified"}}}]}


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("plot.dpi", 80, "plot"),
        ("evaluate.batch_size", 50, "evaluate"),  # the same predictions, so the same plots
    ],
)
def test_change_reruns_one_stage(project, key, value, stage):
    project.set({key: value})
    assert project.repro() == [stage]


def test_new_data_changes_later_stages(project):
    project.set({"preprocess.seed": 7})
    project.run("dvc", "repro", "preprocess")
    train, validation = "data/processed/train.npz", "data/processed/validation.npz"
    found = json.loads(project.run("dvc", "status", "--json").stdout)
    for stage, content in read_graph().items():
        changed = {dep: "modified" for dep in content["deps"] if dep in (train, validation)}
        assert found.get(stage, []) == ([{"changed deps": changed}] if changed else [])
    assert found.keys() >= {"train", "evaluate"}


def test_branched_network_and_early_stopping(project):
    """Two outputs, other metrics, plateau schedule and early stopping, from end to end."""
    project.set(
        {
            "model.architecture": "branched",
            "model.filters": [[2], [3]],
            "train.metrics": ["precision", "recall"],
            "train.epochs": 3,
            "train.label_smoothing": 0.0,
            "train.learning_rate": 1e-9,
            "train.schedule.name": "plateau",
            "train.early_stopping.enabled": True,
            "train.early_stopping.patience": 1,
            "train.early_stopping.min_delta": 0.5,
        }
    )
    assert project.repro() == list_dependents("train")
    history = pd.read_csv(project.folder / "data/model/history.csv")
    assert {"precision", "val_recall", "main_loss", "val_auxiliary_loss"} <= set(history)
    metrics = json.loads((project.folder / "data/evaluation/metrics.json").read_text())
    assert metrics["train"] == {"epochs": 2, "chosen_epoch": 1}  # the second improved too little
    # evaluate uses the main output. Keras averages the loss over batches, and gives a small batch
    # the same weight as a large one. So the two losses differ in their last digits.
    assert metrics["validation"]["loss"] == pytest.approx(history["val_main_loss"][0], rel=0.01)
    assert history["val_loss"][0] > 1.2 * history["val_main_loss"][0]


def test_ensemble_with_test_time_augmentation(project):
    project.set({"model.members": 2, "model.test_time_augmentation": True, "train.epochs": 1})
    assert project.repro() == list_dependents("train")
    with zipfile.ZipFile(project.folder / "data/model/model.keras") as archive:
        network = archive.read("config.json").decode()
    kinds = re.findall(r'"class_name": "(\w+)"', network)
    assert (kinds.count("Functional"), kinds.count("Average")) == (4, 2)
    assert (kinds.count("ZeroPadding2D"), kinds.count("Cropping2D")) == (1, 5)


def test_experiments_keep_comments_and_name_the_key_that_was_meant(project):
    path = project.folder / "params.yaml"
    before = path.read_text().splitlines()
    project.run("dvc", "exp", "run", "-S", "plot.dpi=62")
    assert path.read_text().splitlines() == [line.replace("dpi: 60", "dpi: 62") for line in before]
    said = project.run("dvc", "exp", "run", "-S", "train.schedule=cosine", code=255)
    assert (
        "error: params.yaml: train.schedule is 'cosine', but it is a section: restore it with "
        "`git checkout params.yaml`, then set train.schedule.name\n"
    ) in said.stdout + said.stderr
    assert "wrong  parameters: params.yaml: train.schedule is 'cosine'" in (
        project.run("python", "-m", "tools.doctor", code=1).stdout
    )


def test_deleted_output_comes_back_without_training(project):
    (project.folder / "data/model/model.keras").unlink()
    before = (project.folder / "dvc.lock").read_bytes()
    assert project.repro() == []
    assert (project.folder / "data/model/model.keras").exists()
    assert (project.folder / "dvc.lock").read_bytes() == before


# What dvc.yaml lists


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_what_the_stage_uses(first_run, name):
    used = json.loads((first_run / "used.json").read_text())[name]
    assert used == list_declared(read_graph()[name])


# Each line makes the stage plot use something that dvc.yaml does not list for it.
UNLISTED = """
import ruamel.yaml
from stages.model.settings import TrainParameters
TrainParameters.read()
open("data/evaluation/metrics.json").close()
open("data/plots/extra.txt", "w").close()
ruamel.yaml.YAML().load(open("params.yaml").read())
"""


def test_spy_finds_unlisted_and_unused_entries(project):
    script = project.folder / "stages/plot.py"
    script.write_text(script.read_text() + UNLISTED)
    graph_file = project.folder / "dvc.yaml"
    text = graph_file.read_text()
    unused = text.replace("- stages/plot.py", "- recipes\n      - stages/plot.py")
    graph_file.write_text(unused.replace("      - plot\n", "      - evaluate\n      - plot\n"))
    listed = read_graph(project.folder)["plot"]
    found = spy_on_stage(project, "plot")
    assert set(found["deps"]) - set(listed["deps"]) == {
        "data/evaluation/metrics.json",
        "stages/model/__init__.py",
        "stages/model/settings.py",
    }
    assert set(listed["deps"]) - set(found["deps"]) == {"recipes"}
    assert set(found["outputs"]) - set(list_outputs(listed)) == {"data/plots/extra.txt"}
    assert set(found["params"]) - set(listed["params"]) == {
        "params.yaml, not by a section",
        "train",
    }
    assert set(listed["params"]) - set(found["params"]) == {"evaluate"}
