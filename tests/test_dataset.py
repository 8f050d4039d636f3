"""Custom datasets in clones: what `make seeds` and sweeps check."""

from pathlib import Path

import pytest
from helpers.checks import get_refusal
from helpers.project import AUTHOR, Project

from stages.download import DownloadParameters
from tools.shared.runs import check_dataset


@pytest.fixture
def project(project, monkeypatch):
    """A repository under git and DVC with an untracked dataset, as the current folder."""
    place = Project(project / "course")
    place.folder.mkdir()
    place.run("git", "init", "-q", cwd=project)
    place.run("dvc", "init", "-q", "--subdir")
    for name in ("a/0.png", "a/1.png", "b/.hidden", "b/0.png"):
        path = place.folder / "datasets/mine/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (place.folder / ".dvcignore").touch()
    place.run("git", *AUTHOR, "commit", "-q", "--allow-empty", "-m", "start")
    monkeypatch.chdir(place.folder)
    return place


def check(folder="datasets/mine"):
    return check_dataset(DownloadParameters(dataset="custom", folder=folder))


def test_dataset_that_no_clone_has_is_refused(project):
    found = get_refusal(check)
    assert "download.folder is 'datasets/mine'" in found
    assert "lacks 3, such as datasets/mine/train/a/0.png" in found
    project.commit("dataset")
    assert check() is None
    Path("datasets/mine/train/a/2.png").touch()
    Path("datasets/mine/train/a/.DS_Store").touch()
    assert "lacks 1, such as datasets/mine/train/a/2.png" in get_refusal(check)
    assert "lacks all" in get_refusal(check, "datasets/none")
    assert "which a clone in another place does not find" in get_refusal(check, "../elsewhere")
    assert check(str(Path.cwd())) is check("~") is None
    assert check_dataset(DownloadParameters(dataset="mnist", folder="none")) is None


def test_dataset_in_dvc_is_accepted_if_it_is_committed(project):
    project.run("dvc", "add", "-q", "datasets/mine")
    assert "lacks 3" in get_refusal(check)
    project.commit("dataset")
    assert check() is check("datasets/mine/train") is None
    Path("datasets/mine/train/a/2.png").touch()
    assert "lacks 1" in get_refusal(check)
