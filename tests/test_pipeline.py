"""The graph under real DVC, in a fresh clone, on scikit-learn's digits."""

import json
import re
import zipfile

import pandas as pd
import pytest
from helpers.project import STAGES, Project, graph, outputs, used


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.repro() == STAGES
    project.commit("first run")
    return project


def test_first_run_leaves_every_output_in_place(project):
    for stage in graph().values():
        for output in outputs(stage):
            assert (project.folder / output).stat().st_size > 0
    metrics = json.loads((project.folder / "data/evaluation/metrics.json").read_text())
    assert metrics["train"] == {"chosen_epoch": 2, "epochs": 2}
    assert metrics["test"]["accuracy"] > 0.6  # of ten classes, after two epochs of few digits
    low, high = metrics["test"]["accuracy_low"], metrics["test"]["accuracy_high"]
    assert low < metrics["test"]["accuracy"] < high


def test_predictions_agree_with_the_metrics(project):
    metrics = json.loads((project.folder / "data/evaluation/metrics.json").read_text())
    table = pd.read_csv(project.folder / "data/evaluation/predictions.csv")
    assert list(table) == ["index", "actual", "predicted", "confidence"]
    assert len(table) == 297
    assert (table["actual"] == table["predicted"]).mean() == metrics["test"]["accuracy"]


def test_what_a_comparison_needs_is_in_git(project):
    tracked = project.run("git", "ls-files", "data").stdout.split()
    assert {path for path in tracked if not path.endswith(".gitignore")} == {
        "data/evaluation/metrics.json",
        "data/evaluation/predictions.csv",
        "data/model/history.csv",
        "data/plots/confusion_matrix.png",
        "data/plots/curves.png",
        "data/plots/mistakes.png",
        "data/plots/samples.png",
        "data/plots/weaknesses.png",
        "data/raw/dataset.json",
    }


def test_second_run_does_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status").stdout


@pytest.mark.parametrize(
    ("key", "value", "rerun"),
    [
        ("plot.dpi", 80, ["plot"]),
        ("evaluate.batch_size", 50, ["evaluate"]),  # the same predictions, so the same pictures
        ("train.seed", 7, ["train", "evaluate", "plot"]),
        ("model.hidden_units", [12], ["train", "evaluate", "plot"]),
        ("preprocess.seed", 7, ["preprocess", "train", "evaluate", "plot"]),
    ],
)
def test_a_change_reruns_just_what_depends_on_it(project, key, value, rerun):
    project.set({key: value})
    assert project.repro() == rerun
    project.restore()


def test_two_outputs_other_metrics_and_early_stopping_go_end_to_end(project):
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
    assert project.repro() == ["train", "evaluate", "plot"]
    history = pd.read_csv(project.folder / "data/model/history.csv")
    assert {"precision", "val_recall", "main_loss", "val_auxiliary_loss"} <= set(history)
    metrics = json.loads((project.folder / "data/evaluation/metrics.json").read_text())
    assert metrics["train"] == {"epochs": 2, "chosen_epoch": 1}  # the second improved too little
    # The main output is the one that is judged. Keras averages its loss over batches, whatever
    # their size, so the two are not equal to the last digit.
    assert metrics["validation"]["loss"] == pytest.approx(history["val_main_loss"][0], rel=0.01)
    assert history["val_loss"][0] > 1.2 * history["val_main_loss"][0]
    project.restore()


def test_an_ensemble_averaged_over_shifts_goes_end_to_end(project):
    project.set({"model.members": 2, "model.test_time_augmentation": True, "train.epochs": 1})
    assert project.repro() == ["train", "evaluate", "plot"]
    with zipfile.ZipFile(project.folder / "data/model/model.keras") as archive:
        network = archive.read("config.json").decode()
    kinds = re.findall(r'"class_name": "(\w+)"', network)
    assert (kinds.count("Functional"), kinds.count("Average")) == (4, 2)
    assert (kinds.count("ZeroPadding2D"), kinds.count("Cropping2D")) == (1, 5)
    project.restore()


def test_deleted_outputs_come_back_without_training(project):
    (project.folder / "data/model/model.keras").unlink()
    before = (project.folder / "dvc.lock").read_bytes()
    assert project.repro() == []
    assert (project.folder / "data/model/model.keras").exists()
    assert (project.folder / "dvc.lock").read_bytes() == before


def test_experiments_and_metrics_diff_show_what_a_parameter_did(project):
    project.run("dvc", "exp", "run", "-S", "train.epochs=1")
    difference = json.loads(project.run("dvc", "metrics", "diff", "HEAD", "--json").stdout)
    epochs = difference["data/evaluation/metrics.json"]["train.epochs"]
    assert epochs == {"old": 2, "new": 1, "diff": -1}
    parameters = json.loads(project.run("dvc", "params", "diff", "HEAD", "--json").stdout)
    assert parameters["params.yaml"]["train.epochs"]["new"] == 1
    project.run("dvc", "plots", "diff", "HEAD")
    report = (project.folder / "dvc_plots/index.html").read_text()
    drawn = ["Loss", "Accuracy", "Learning rate", "Confusion matrix", "mistakes.png", "curves.png"]
    assert [name for name in drawn if name not in report] == []
    project.restore()


def test_same_bytes_in_another_clone(project, tmp_path):
    project.run("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    project.run("dvc", "repro", "--force", "--no-run-cache", cwd=tmp_path / "clone")
    assert project.run("git", "status", "--short", cwd=tmp_path / "clone").stdout == ""


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_what_the_stage_uses(project, name):
    stage = graph()[name]
    for output in outputs(stage):  # the spy would not see a write to an output that is there
        (project.folder / output).unlink()
    found = used(project, name)
    project.restore()
    assert found == {
        # datasets holds your own images, which tests/test_sharing.py downloads.
        "deps": [path for path in stage["deps"] if path != "datasets"],
        "outputs": outputs(stage),
        "params": stage["params"],
    }


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
    listed = graph(project.folder)["plot"]
    found = used(project, "plot")
    project.restore()
    (project.folder / "data/plots/extra.txt").unlink()
    assert set(found["deps"]) - set(listed["deps"]) == {
        "data/evaluation/metrics.json",
        "stages/model/__init__.py",
        "stages/model/settings.py",
    }
    assert set(listed["deps"]) - set(found["deps"]) == {"recipes"}
    assert set(found["outputs"]) - set(outputs(listed)) == {"data/plots/extra.txt"}
    assert set(found["params"]) - set(listed["params"]) == {
        "params.yaml, not by a section",
        "train",
    }
    assert set(listed["params"]) - set(found["params"]) == {"evaluate"}
