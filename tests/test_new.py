"""`make new`: a project of each kind is complete, runs, and mentions nothing that was left out."""

import re
from pathlib import Path

import pytest
from helpers.checks import get_refusal
from helpers.parameters import change_file
from helpers.project import ROOT, Project

from tools import new

QUICK = {
    "model.architecture": "dense",
    "model.hidden_units": [16],
    "train.epochs": 4,
    "plot.dpi": 60,
}


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


def list_texts(folder: Path):
    """Return the text files of a new project, without results."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return [path for path in paths if path.relative_to(folder).parts[0] not in ("data", ".git")]


def find_wrong(folder: Path, left_out: new.Pruner):
    """Return the dead links and the mentions of what is left out."""
    wrong = []
    for path in list_texts(folder):
        text = path.read_text()
        wrong += [(path.name, word) for word in left_out.find(text)]
        for link in re.findall(r"\]\(([^)\s#]+)", text) if path.suffix == ".md" else ():
            if not link.startswith("http") and not (path.parent / link).exists():
                wrong.append((path.name, link))
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "grey", "colour"])
def test_new_project_runs_and_passes_its_tests(kind, tmp_path):
    folder = tmp_path / "churn"
    left_out = new.make_project(folder, "churn", kind)
    assert find_wrong(folder, left_out) == []
    assert {"stages.cluster.worker", "make draw", "benchmarks", "README.ko.md"} <= left_out.words
    project = Project(folder)
    project.run("ruff", "check", "--no-cache")
    project.run("ruff", "format", "--no-cache", "--check")
    project.run("make", "--dry-run", "--always-make", "repro", "test", "verify", "resolve")
    change_file(folder / "params.yaml", QUICK)
    project.run("git", "init", "-q")
    project.run("git", "add", "--all")
    project.run("dvc", "repro", "-q")
    project.run("python", "-m", "dvc_verify", "record")
    project.commit("start")
    project.run("pytest", "-q", "-n", "0")
    project.run("python", "-m", "dvc_verify", "lock")


def test_rooms_are_brought_in(tmp_path):
    """A room brings its files, its targets, its pages, its packages and the modules it needs."""
    folder = tmp_path / "churn"
    left_out = new.make_project(folder, "churn", "digits", ["draw", "cluster", "korean"])
    assert "churn" in (folder / "README.ko.md").read_text()
    assert find_wrong(folder, left_out) == []
    for name in ("tools/draw.py", "tools/predict/picture.py", "docs/predict.md", "docs/cluster.md"):
        assert (folder / name).is_file(), name
    assert re.search("^draw:", (folder / "Makefile").read_text(), re.M)
    assert "TF_CONFIG" in (folder / "stages/train.py").read_text()
    assert re.search("^flask==", (folder / "requirements-tools.txt").read_text(), re.M)
    Project(folder).run("ruff", "check", "--no-cache")


def test_all_rooms_together_are_code_without_faults(tmp_path):
    new.make_project(tmp_path / "churn", "churn", "digits", new.ROOMS)
    Project(tmp_path / "churn").run("ruff", "check", "--no-cache")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("churn", "nowhere"), "DATASET"),
        (("Churn", "digits"), "NAME"),
        (("churn", "digits", ["kitchen"]), "kitchen"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, named, tmp_path):
    refusal = get_refusal(new.make_project, tmp_path / "new", *arguments)
    assert named in refusal
    assert not (tmp_path / "new").exists()


def test_folder_with_files_is_kept(tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert str(tmp_path) in get_refusal(new.make_project, tmp_path, "churn", "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
