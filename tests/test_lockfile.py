"""What `find_stale` reports on a tiny DVC project after one change."""

import shutil
from pathlib import Path

import pytest
from helpers.project import ROOT
from helpers.six_projects import commit, edit, run, start, write

from dvc_verify import VerifyError
from dvc_verify.lockfile import list_files, read_lock
from dvc_verify.project import read_project
from dvc_verify.stale import find_stale

GRAPH = """
stages:
  make:
    cmd: cp code/a.py a.txt
    deps: [code]
    params: [train, plot.dpi]
    outs:
      - a.txt: {cache: false}
  count:
    cmd: wc -c < a.txt > count.txt
    deps: [a.txt, code/sub]
    outs: [count.txt]
"""
PARAMETERS = """
train: {epochs: 4, layers: [[24], [48]], schedule: {name: step, every: 1}}
plot: {dpi: 60, samples: 10}
"""
# The files that .dvcignore leaves out.
IGNORED = ("code/.a.py.swp", "code/a.py~", "code/sub/.#b.py", "code/__pycache__/a.cpython-311.pyc")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project whose dvc.lock DVC wrote, then a commit that does not touch what it records."""
    folder = tmp_path_factory.mktemp("recorded")
    code = {"code/a.py": "a", "code/sub/b.py": "b", "code/sub/한글.py": "c", "README.md": ""}
    start(folder, {"dvc.yaml": GRAPH, "params.yaml": PARAMETERS, **code})
    shutil.copy(ROOT / ".dvcignore", folder)
    run(folder, "dvc", "repro", "-q")
    commit(folder)
    write(folder, {"README.md": "Later."})
    commit(folder)
    return folder


@pytest.fixture
def folder(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def find(folder):
    return find_stale(read_project(folder))


def test_read_lock(folder):
    lock = read_lock(folder)
    assert list(list_files(lock, "deps")) == ["code", "a.txt", "code/sub"]
    assert list_files(lock, "outs")["count.txt"].size == 2


@pytest.mark.parametrize("text", ["schema: '2.0'\n", "stages: [1]\n", "- 1\n", "{"])
def test_damaged_lock_is_refused(tmp_path, text):
    write(tmp_path, {"dvc.lock": text})
    with pytest.raises(VerifyError, match=r"dvc\.lock: "):
        read_lock(tmp_path)


def test_nothing_is_stale_after_dvc_repro(folder):
    """The hash of a folder is DVC's, with or without files that .dvcignore leaves out."""
    assert find(folder) == {"make": [], "count": []}
    write(folder, dict.fromkeys(IGNORED, "x"))
    assert "up to date" in run(folder, "dvc", "status")
    assert find(folder) == {"make": [], "count": []}
    commit(folder)
    assert find(folder) == {"make": [], "count": []}


# File, old and new text, and what is said of it.
CHANGES = [
    ("params.yaml", "epochs: 4", "epochs: 5",
     ["train.epochs is 5 in params.yaml and 4 in dvc.lock"]),
    ("params.yaml", "every: 1", "every: 2",
     ["train.schedule.every is 2 in params.yaml and 1 in dvc.lock"]),
    ("params.yaml", "[[24], [48]]", "[[24]]",
     ["train.layers is [[24]] in params.yaml and [[24], [48]] in dvc.lock"]),
    ("params.yaml", "epochs: 4", "passes: 4",
     ["train.passes is 4 in params.yaml and missing in dvc.lock",
      "train.epochs is missing in params.yaml and 4 in dvc.lock"]),
    ("params.yaml", "dpi: 60", "dpi: 61", ["plot.dpi is 61 in params.yaml and 60 in dvc.lock"]),
    ("params.yaml", "samples: 10", "samples: 11", []),  # no stage lists it
    ("dvc.yaml", "cp code/", "cp ./code/",
     ["cmd of make is 'cp ./code/a.py a.txt' in dvc.yaml and 'cp code/a.py a.txt' in dvc.lock"]),
    ("dvc.yaml", "[code]", "[code, z, y]", ["only dvc.yaml lists y, z in deps of make"]),
    ("dvc.yaml", "[train, plot.dpi]", "[train]",
     ["only dvc.lock lists plot.dpi in params of make"]),
    ("dvc.yaml", "[count.txt]", "[n.txt]",
     ["only dvc.yaml lists n.txt in outs of count",
      "only dvc.lock lists count.txt in outs of count"]),
    ("dvc.yaml", "  count:", "  more:",
     ["only dvc.lock has the stage count", "only dvc.yaml has the stage more"]),
    ("a.txt", "a", "A", ["a.txt has changed since dvc.lock was recorded"] * 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "lines"), CHANGES)
def test_change_is_named(folder, name, old, new, lines):
    edit(folder / name, (old, new))
    assert [note for notes in find(folder).values() for note in notes] == lines


def test_changed_files_in_a_folder_are_named(folder):
    write(folder, {"code/a.py": "A", "code/sub/new.py": "", "code/z/ä.py": "z"})
    (folder / "code/sub/b.py").unlink()
    found = find(folder)
    assert found["make"] == [
        "code/a.py has changed since dvc.lock was recorded",
        "code/sub/new.py was added since dvc.lock was recorded",
        "code/z/ä.py was added since dvc.lock was recorded",
        "code/sub/b.py was deleted since dvc.lock was recorded",
    ]
    assert found["count"] == [found["make"][1], found["make"][3]]
    for _ in range(2):
        commit(folder)
        assert find(folder) == found
        write(folder, {"README.md": "Later still."})


def test_files_are_named_if_the_lock_is_not_committed(folder):
    write(folder, {"code/a.py": "A"})
    commit(folder)
    run(folder, "dvc", "repro", "-q")
    assert find(folder) == {"make": [], "count": []}
    write(folder, {"code/sub/b.py": "B"})
    assert find(folder)["count"] == ["code/sub/b.py has changed since dvc.lock was recorded"]


@pytest.mark.parametrize("shallow", [True, False])
def test_folder_is_named_if_git_lacks_the_recorded_files(folder, tmp_path, shallow):
    write(folder, {"code/sub/b.py": "B"})
    commit(folder)
    if shallow:
        run(tmp_path, "git", "clone", "-q", "--depth=1", f"file://{folder}", "clone")
    else:
        shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns(".git"))
    assert find(tmp_path / "clone") == {
        "make": ["code has changed since dvc.lock was recorded"],
        "count": ["code/sub has changed since dvc.lock was recorded"],
    }


def test_folder_that_git_does_not_have_is_not_checked(folder):
    """For example, a user's own dataset is not in git."""
    shutil.rmtree(folder / "code")
    assert find(folder) == {"make": [], "count": []}
    Path(folder / "code/__pycache__").mkdir(parents=True)
    write(folder, {"code/__pycache__/a.pyc": ""})
    assert find(folder) == {"make": [], "count": []}


def test_stages_that_disagree_are_named(folder):
    lock = (folder / "dvc.lock").read_text()
    first, second = lock.split("  count:")
    md5 = list_files(read_lock(folder), "deps")["a.txt"].md5
    (folder / "a.txt").unlink()
    (folder / "dvc.lock").write_text(f"{first}  count:{second.replace(md5, md5[::-1])}")
    assert find(folder) == {
        "make": [],
        "count": [
            "dvc.lock has two hashes of a.txt: one as the output of a stage, another one as the "
            "input of count"
        ],
    }
