"""Where people run the tools: in a git hook, a subfolder, a ZIP, another user's folder, a clone."""

import importlib
import os
import shutil

import pytest
from helpers.project import AUTHOR, Project

from dvc_verify import VerifyError
from dvc_verify.contents import Contents
from dvc_verify.lockfile import compute_md5, list_files, read_lock
from stages.core.errors import StageError

TOOLS = [
    ("dvc_verify.__main__", "lock"),
    ("tools.compare", "HEAD~1"),
    ("tools.seeds", "2"),
    ("tools.recipe", "fast"),
]


@pytest.fixture
def project(small_project, tmp_path):
    """A copy of the project and its results, which a test may change."""
    return small_project.copy(tmp_path / "copy")


@pytest.fixture
def fail(monkeypatch, capsys):
    """A function that runs a tool in a project, where it must fail with one line; returns that."""

    def run(project, module, *arguments):
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr("sys.argv", [module, *arguments])
        capsys.readouterr()
        with pytest.raises((StageError, VerifyError, SystemExit)) as ended:
            importlib.import_module(module).main()
        if ended.type is not SystemExit:
            line = str(ended.value)
        else:  # dvc_verify and tools.compare print their line
            assert ended.value.code in (1, 2)
            line = capsys.readouterr().err.strip().removeprefix("error: ")
        assert "\n" not in line
        return line

    return run


def doctor(project, *prefix):
    """Return what the doctor finds, by check."""
    ended = project.run("sh", "-c", f"{' '.join(prefix)} python -m tests.helpers.doctor; true")
    assert "Traceback" not in ended.stdout + ended.stderr
    lines = [line.split(maxsplit=2) for line in ended.stdout.splitlines()]
    return {check.removesuffix(":"): text for verdict, check, text in lines if verdict == "wrong"}


# Git hooks


def write_hook(folder, name, command="exec python -m dvc_verify lock"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{command}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    "commit",
    [
        ("commit", "-qam", "change"),
        ("commit", "-qm", "change", "--only", "LICENSE"),
        ("-c", "core.hooksPath=.git/hooks", "commit", "-qam", "change"),
        ("--work-tree=.", "--git-dir=.git", "commit", "-qam", "change"),
    ],
    ids=["all", "only one file", "option of git", "named repository"],
)
def test_lock_check_in_a_pre_commit_hook(project, commit):
    write_hook(project.folder / ".git/hooks", "pre-commit")
    with (project.folder / "LICENSE").open("a") as file:
        file.write("changed\n")
    project.run("git", *AUTHOR, *commit)
    shown = project.run("git", "show", "--format=%s", "--name-only", "HEAD").stdout.split()
    assert shown == ["change", "LICENSE"]
    assert project.run("git", "status", "--short", "--branch").stdout == "## main\n"


def test_tools_in_hooks_of_a_linked_worktree(project, tmp_path):
    folder = tmp_path / "linked"
    project.run("git", "worktree", "add", "-q", "-b", "f", str(folder))
    project.run("git", "init", "-q", "--bare", str(tmp_path / "bare.git"))
    write_hook(project.folder / ".git/hooks", "pre-push", "python -m dvc_verify lock >&2")
    write_hook(project.folder / ".git/hooks", "pre-commit", "python -m tools.recipe fast >&2")
    linked = Project(folder)
    linked.run("git", "push", "-q", str(tmp_path / "bare.git"), "f")
    (folder / "LICENSE").write_text("changed\n")
    linked.run("git", *AUTHOR, "commit", "-qam", "change")
    assert linked.run("git", "status", "-sb").stdout == "## f\n M params.yaml\n"
    assert project.run("git", "status", "-sb").stdout == "## main\n"
    assert linked.run("git", "show", "--format=", "--name-only").stdout == "LICENSE\n"


def test_hooks_of_the_user_do_not_run_in_clones(project, tmp_path):
    """Neither those of core.hooksPath nor those of a template."""
    for folder in ("hooks", "template/hooks"):
        (tmp_path / folder).mkdir(parents=True)
        write_hook(tmp_path / folder, "post-checkout", f"touch {tmp_path}/ran")
    config = tmp_path / "config"
    config.write_text(
        f"[core]\nhooksPath = {tmp_path}/hooks\n[init]\ntemplateDir = {tmp_path}/template\n"
    )
    project.run("env", f"GIT_CONFIG_GLOBAL={config}", "python", "-m", "dvc_verify", "lock")
    assert not (tmp_path / "ran").exists()


# Folders


@pytest.fixture
def subfolder(project, tmp_path):
    """The project as the folder `course` of a larger repository."""
    whole = Project(tmp_path / "whole")
    whole.folder.mkdir()
    shutil.copytree(project.folder, whole.folder / "course", symlinks=True)
    shutil.rmtree(whole.folder / "course/.git")
    (whole.folder / "neighbour.txt").write_text("text\n")
    whole.run("git", "init", "-q", "--initial-branch=main")
    whole.commit("start")
    return Project(whole.folder / "course")


def test_tools_work_in_a_subfolder_of_a_repository(subfolder, fail):
    """Changes of the neighbours do not count."""
    (subfolder.folder / "../neighbour.txt").write_text("changed\n")
    assert "belongs to this commit" in subfolder.run("python", "-m", "dvc_verify", "lock").stdout
    assert doctor(subfolder) == {}
    assert "have the same files" in fail(subfolder, "tools.compare", "HEAD")
    license_file = subfolder.folder / "LICENSE"
    license_file.write_text(license_file.read_text() + "changed\n")
    assert "differs from the last commit" in fail(subfolder, "tools.seeds", "2")
    subfolder.run("python", "-m", "tools.compare", "HEAD")
    subfolder.run("git", "checkout", "-q", ".")
    subfolder.run("python", "-m", "tools.recipe", "fast")
    subfolder.run("git", "checkout", "-q", ".")
    with (subfolder.folder / "stages/plot.py").open("a") as file:
        file.write("# changed\n")
    subfolder.commit("stage")
    assert "dvc.lock is out of date" in fail(subfolder, "dvc_verify.__main__", "lock")


def test_folder_without_git_is_named_and_can_be_run(project, fail):
    """As after `Download ZIP`."""
    shutil.rmtree(project.folder / ".git")
    for arguments in TOOLS:
        line = fail(project, *arguments)
        assert line.startswith("this folder is not a git repository, as after 'Download")
        assert "git init && git add --all && git commit" in line
    assert "dvc config --local core.no_scm true" in fail(project, "tools.recipe")
    found = doctor(project)
    assert list(found) == ["repository"]
    assert "git init && git add --all" in found["repository"]
    project.run("dvc", "config", "--local", "core.no_scm", "true")
    project.run("python", "-m", "tools.recipe")
    assert "up to date" in project.run("dvc", "repro").stdout
    assert doctor(project) == {}
    project.run("git", "init", "-q")
    assert "has no commit yet: git add" in fail(project, "dvc_verify.__main__", "lock")
    assert "has no commit yet" in doctor(project)["repository"]


def test_project_that_is_not_committed_is_named(subfolder, fail):
    """In a folder of another repository, as after unpacking a ZIP there."""
    subfolder.run("git", "rm", "-r", "-q", "--cached", ".")
    subfolder.run("git", *AUTHOR, "commit", "-qm", "without")
    line = fail(subfolder, "dvc_verify.__main__", "lock")
    assert "does not have course/dvc.yaml" in line
    assert "git add . && git commit" in doctor(subfolder)["lock"]


# Owners


def test_folder_of_another_owner_is_named(small_project, fail, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for arguments in TOOLS:
        line = fail(small_project, *arguments)
        assert f"git config --global --add safe.directory '{small_project.folder}'" in line


def test_doctor_names_another_owner_and_the_command_works(project, tmp_path):
    home = f"HOME={tmp_path}"
    found = doctor(project, "GIT_TEST_ASSUME_DIFFERENT_OWNER=1", home)
    assert list(found) == ["repository"]
    if os.geteuid():
        pytest.skip("only root can give files to another user")
    project.run("chown", "-R", "12345", ".")
    found = doctor(project, home)
    assert list(found) == ["repository"]
    project.run("env", home, "sh", "-c", found["repository"].rpartition(": ")[2])
    assert doctor(project, home) == {}
    unprivileged = "setpriv --bounding-set=-dac_override"
    assert "sudo chown -R $(id -u) ." in doctor(project, home, unprivileged)["disk"]


# Incomplete clones


def test_incomplete_clones_work_and_a_partial_one_can_be_completed(project, tmp_path):
    serve = "git -c uploadpack.allowFilter=true -c uploadpack.allowAnySHA1InWant=true upload-pack"
    (project.folder / "LICENSE").write_text("changed\n")
    project.commit("license")
    clone = Project(tmp_path / "partial")
    command = ("git", "clone", "-q", "--filter=blob:none", "-u", serve)
    project.run(*command, f"file://{project.folder}", str(clone.folder))
    clone.run("python", "-m", "dvc_verify", "lock")
    found = doctor(clone)["repository"]
    assert "partial clone" in found
    clone.run("sh", "-c", found.rpartition(": ")[2])
    assert "repository" not in doctor(clone)
    shallow = Project(tmp_path / "shallow")
    command = ("git", "clone", "-q", "--depth=1", f"file://{project.folder}")
    project.run(*command, str(shallow.folder))
    shallow.run("python", "-m", "dvc_verify", "lock")
    assert "repository" not in doctor(shallow)


# Environments and caches


def test_doctor_names_packages_and_variables_from_elsewhere(project, tmp_path, monkeypatch):
    (tmp_path / "other/matplotlib").mkdir(parents=True)
    (tmp_path / "other/matplotlib/__init__.py").touch()
    variables = ("SHELL=/usr/sbin/nologin", "TF_CONFIG={}", "GIT_DIR=.git")
    found = doctor(project, f"PYTHONPATH={tmp_path}/other", *variables)
    assert found.keys() >= {"places", "variables"}  # the stages cannot import the empty package
    assert found["places"].endswith("/other/matplotlib/__init__.py: unset PYTHONPATH")
    # The last of its lines; each variable has its own.
    assert found["variables"].endswith("if you do not train on several: unset TF_CONFIG")


def test_cache_in_another_folder_is_used(project, tmp_path, monkeypatch):
    """As on a server, where several projects share one cache."""
    (project.folder / ".dvc/cache").rename(tmp_path / "cache")
    project.run("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    other = tmp_path / "cache/files/md5/00/0123"
    other.parent.mkdir(exist_ok=True)
    other.write_text("an incomplete file of another project")
    assert doctor(project) == {}
    recorded = list_files(read_lock(project.folder), "outs")["data/model/model.keras"]
    found = Contents(project.folder, False, tmp_path).find(
        recorded._replace(path="absent"), tmp_path
    )
    assert compute_md5(found) == recorded.md5
