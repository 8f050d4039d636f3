"""`make resolve` after merges of two branches that both ran the stages."""

import re
import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from dvc.repo import Repo
from helpers.project import AUTHOR, ROOT

# DVC uses a deprecated function of pygtrie when it adds stages.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.xdist_group("test_resolve"),
]

# Three cheap stages, which write small files that git tracks, as this project's do.
STAGE = """
  {name}:
    cmd: cat {source} step.sh params.yaml | grep -e ^# -e {key} > data/{name}.txt
    deps: [{source}, step.sh]
    params: [{key}]
    outs: [data/{name}.txt: {{cache: false}}]
"""


def stage(name, key, source="source.txt"):
    return STAGE.format(name=name, key=key, source=source)


START = {
    "dvc.yaml": "stages:"
    + "".join([stage("one", "a"), stage("two", "b", "data/one.txt"), stage("three", "c")]),
    "params.yaml": "a: 1\n\n\n\nb: 1\n\n\n\nc: 1\n",
    "step.sh": "# first\n\n\n\n# second\n",
    "source.txt": "# raw\n",
    ".gitattributes": (ROOT / ".gitattributes").read_text(),
}


def git(*arguments, code=0):
    ended = subprocess.run(
        ["git", *AUTHOR, *arguments], capture_output=True, text=True, check=False
    )
    assert code in (None, ended.returncode), ended.stdout + ended.stderr
    return ended.stdout


def repro():
    """Run the stages, and write what `make resolve` writes after them."""
    with Repo() as repo:
        repo.reproduce()
    digest = sha256(Path("dvc.lock").read_bytes()).hexdigest()
    Path("fingerprint.json").write_text(f'{{"dvc_lock": "{digest}"}}\n')
    texts = [path.read_text() for path in sorted(Path("data").glob("*.txt"))]
    Path("docs/model-card.md").write_text("".join(texts))


def replace(file, old, new):
    """Return a function that changes a file."""

    def change():
        assert old in Path(file).read_text()
        Path(file).write_text(Path(file).read_text().replace(old, new))

    return change


def stale(change):
    """Return a function that makes a change and does not run the stages."""

    def apply():
        change()
        return "stale"

    return apply


def delete(file):
    return lambda: Path(file).unlink()


A, B, C = (replace("params.yaml", f"{key}: 1", f"{key}: 2") for key in "abc")
OTHER_A = replace("params.yaml", "a: 1", "a: 3")
FIRST, SECOND = (replace("step.sh", f"# {name}", f"# new {name}") for name in ("first", "second"))
OTHER_FIRST = replace("step.sh", "# first", "# other first")
RAW, OTHER_RAW = (replace("source.txt", "raw", text) for text in ("new", "other"))
RENAMED = replace("dvc.yaml", "  three:", "  last:")
RENAMED_TOO = replace("dvc.yaml", "  three:", "  final:")
ADDED = replace("dvc.yaml", "stages:", f"stages:{stage('zero', 'b')}")
REMOVED = replace("dvc.yaml", stage("three", "c"), "\n")

MERGES = {
    "nothing in common": (A, C, []),
    "one before the other": (A, B, []),
    "the other before the one": (B, A, []),
    "same key": (A, OTHER_A, ["params.yaml"]),
    "same key and value": (A, A, []),
    "code and a parameter": (FIRST, A, []),
    "two places in the code": (FIRST, SECOND, []),
    "same place in the code": (FIRST, OTHER_FIRST, ["step.sh"]),
    "data and a parameter": (RAW, C, []),
    "same data": (RAW, OTHER_RAW, ["source.txt"]),
    "code and data": (RAW, SECOND, []),
    "renamed stage and its parameter": (C, RENAMED, []),
    "renamed stage and the code": (RENAMED, FIRST, []),
    "renamed twice": (RENAMED, RENAMED_TOO, ["dvc.yaml"]),
    "added stage": (A, ADDED, []),
    "removed stage and its parameter": (C, REMOVED, []),
    "ours stale": (stale(A), C, []),
    "theirs stale": (A, stale(C), []),
    "same key, ours stale": (stale(A), OTHER_A, ["params.yaml"]),
    "deleted lock": (A, stale(delete("dvc.lock")), []),
    "deleted code": (FIRST, stale(delete("step.sh")), ["step.sh"]),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A function that returns the branch with a change, in one repository for all tests."""
    folder = tmp_path_factory.mktemp("history")
    found = {}

    def make(change):
        if change not in found:
            found[change] = f"branch{len(found)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                git("checkout", "-q", "-b", found[change], *(["start"] if change else []))
                if change is None or change() != "stale":
                    repro()
                git("add", "--all")
                git("commit", "-q", "-m", found[change])
        return folder, found[change]

    for name in ("data", "docs"):
        (folder / name).mkdir()
    for file, text in START.items():
        (folder / file).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        git("init", "-q")
        Repo.init().close()
        make(None)
        git("branch", "start")
    return make


@pytest.fixture
def branches(history, tmp_path, monkeypatch):
    """A function that makes a repository with two changed branches; `ours` is checked out."""

    def make(ours, theirs):
        places = {"theirs": history(theirs), "ours": history(ours)}
        shutil.copytree(places["ours"][0], tmp_path / "copy", symlinks=True)
        monkeypatch.chdir(tmp_path / "copy")
        for name, (_, branch) in places.items():
            git("checkout", "-q", "--force", "-b", name, branch)
            git("commit", "-q", "--amend", "-m", name)  # two commits, even of the same change

    return make


def resolve(code=0):
    command = [sys.executable, ROOT / "tools/resolve.py"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    return ended.stderr


def check_result():
    """Check that all files are merged, and are those of a run from the beginning."""
    repro()
    git("add", "--all")
    assert git("ls-files", "--unmerged") == ""
    assert "<<<<" not in "".join(Path(path).read_text() for path in git("ls-files").split())
    before = {path: path.read_text() for path in (Path("dvc.lock"), *Path("data").iterdir())}
    with Repo() as repo:
        assert not repo.status()
        repo.reproduce(force=True, run_cache=False)
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize("name", MERGES)
def test_merge_is_resolved(branches, name):
    ours, theirs, expected = MERGES[name]
    branches(ours, theirs)
    git("merge", "theirs", code=None)
    if expected:
        found = re.search(r"^error: these conflicts are yours: ([^.]*\.\w+)\. ", resolve(code=1))[1]
        assert found.split(", ") == expected
        for path in expected:  # a person decides
            git("checkout", "--ours", "--", path)
            git("add", "--", path)
    resolve()
    check_result()


@pytest.mark.parametrize("command", ["rebase", "cherry-pick"])
def test_other_commands_that_merge_are_resolved(branches, command):
    branches(A, C)
    git(command, "theirs", code=1)
    resolve()
    check_result()
    git("-c", "core.editor=true", command, "--continue")


@pytest.mark.parametrize(("theirs", "left"), [(C, []), (OTHER_A, ["params.yaml"])])
def test_merge_driver_leaves_only_the_conflicts_of_a_person(branches, theirs, left):
    page = (ROOT / "docs/sharing.md").read_text()
    (command,) = re.findall(r"^\$ git (config merge\.stages\.driver .*)$", page, re.M)
    branches(A, theirs)
    git(*shlex.split(command.replace(".venv/bin/python tools", f"{sys.executable} {ROOT}/tools")))
    git("merge", "theirs", code=int(bool(left)))
    unmerged = git("diff", "--name-only", "--diff-filter=U").split()
    assert unmerged == left
    for path in left:
        git("checkout", "--ours", "--", path)
    resolve()
    check_result()
