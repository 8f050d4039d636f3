"""The graph under real DVC, in a fresh clone, on scikit-learn's digits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = ["download", "preprocess", "train", "evaluate", "plot"]
SMALL = {
    "download.dataset": "digits",
    "model.architecture": "dense",
    "model.hidden_units": [16],
    "train.epochs": 2,
}


class Project:
    """A clone of the project as it is in the working tree, committed, with an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self.run("git", "-C", str(ROOT), "ls-files", "-z", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("data/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.set(SMALL)
        self.run("git", "init", "-q")
        self.commit("start")

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        bin_folder = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        result = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
        return result

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        author = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
        self.run("git", *author, "commit", "-q", "-m", message)

    def repro(self) -> list[str]:
        """Run `dvc repro` and return the stages that really ran."""
        return re.findall(r"^Running stage '(\w+)'", self.run("dvc", "repro").stdout, re.M)

    def set(self, values: dict[str, object]) -> None:
        yaml = YAML()
        path = self.folder / "params.yaml"
        content = yaml.load(path)
        for key, value in values.items():
            *parents, last = key.split(".")
            section = content
            for parent in parents:
                section = section[parent]
            section[last] = value
        yaml.dump(content, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.repro() == STAGES
    project.commit("first run")
    return project


def outputs(stage: dict) -> list[str]:
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return sorted(next(iter(out)) if isinstance(out, dict) else out for out in listed)


def graph() -> dict[str, dict]:
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


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
        "data/raw/dataset.json",
    }


def test_second_run_does_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status").stdout


@pytest.mark.parametrize(
    ("key", "value", "rerun"),
    [
        ("plot.dpi", 80, ["plot"]),
        ("evaluate.batch_size", 50, ["evaluate", "plot"]),
        ("train.seed", 7, ["train", "evaluate", "plot"]),
        ("model.hidden_units", [12], ["train", "evaluate", "plot"]),
        ("preprocess.seed", 7, ["preprocess", "train", "evaluate", "plot"]),
    ],
)
def test_a_change_reruns_just_what_depends_on_it(project, key, value, rerun):
    project.set({key: value})
    assert project.repro() == rerun
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


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
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def test_same_bytes_in_another_clone(project, tmp_path):
    project.run("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    project.run("dvc", "repro", "--force", "--no-run-cache", cwd=tmp_path / "clone")
    assert project.run("git", "status", "--short", cwd=tmp_path / "clone").stdout == ""


# Runs a stage and prints which of the project's modules it imported, which files it opened and
# which parameters it asked for.
SPY = """
import json, os, runpy, sys
seen = {"modules": [], "reads": [], "writes": [], "parameters": [], "used": []}
root = os.getcwd() + os.sep
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(root + "data"):
            kind = "reads" if arguments[2] & (os.O_WRONLY | os.O_RDWR) == 0 else "writes"
            seen[kind].append(path.removeprefix(root).removesuffix(".part"))
sys.addaudithook(hook)
sys.path.insert(0, root)
from stages.parameters import Section
def spy(section, name):
    fields = type(section).model_fields
    if name in fields and "." not in type(section).section:
        seen["used"].append(f"{type(section).section}.{name}")
    return object.__getattribute__(section, name)
check = Section.check.__func__
def spying_check(section, *arguments):
    seen["parameters"] += [f"{section.section}.{name}" for name in section.model_fields]
    return check(section, *arguments)
Section.check = classmethod(spying_check)
Section.__getattribute__ = spy
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
for name, module in sys.modules.copy().items():
    file = getattr(module, "__file__", None) or ""
    if file.startswith(root + "stages"):
        seen["modules"].append(file.removeprefix(root))
seen["modules"].append(sys.argv[1].replace(".", "/") + ".py")
print("SEEN", json.dumps({key: sorted(set(value)) for key, value in seen.items()}))
"""


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_what_the_stage_really_uses(project, name):
    stage = graph()[name]
    for output in outputs(stage):  # an output that is there already would hide a write
        (project.folder / output).unlink()
    result = project.run("python", "-c", SPY, f"stages.{name}")
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")
    seen = json.loads(re.search(r"^SEEN (.*)$", result.stdout, re.M)[1])
    assert sorted({*seen["modules"], "requirements.txt", *seen["reads"]}) == stage["deps"]
    assert seen["writes"] == outputs(stage)
    assert seen["parameters"] == stage["params"]
    assert set(seen["used"]) <= set(stage["params"])
