"""What befalls a run: signals, full disks, folders without permission, a second run, bad locks.

Real DVC on a small project, real signals to real processes; docs/faults.md lists every fault.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_project import Project, graph, outputs

ROOT = Path(__file__).parents[1]
MODEL, HISTORY = "data/model/model.keras", "data/model/history.csv"
LONG = {"train.epochs": 100_000}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("dvc", "repro", "train")
    project.commit("first run")
    return project


@pytest.fixture
def project(trained):
    """The trained project, brought back to its commit afterwards."""
    yield trained
    trained.run("git", "checkout", "-q", ".")
    trained.run("dvc", "checkout", "-q", "--force")


def start(project, *command):
    """Start a command as a terminal would: in a process group of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=os.environ | {"PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def failed(project, *command):
    """Run a command that fails, and return what it printed, without a traceback."""
    process = start(project, *command)
    printed, _ = process.communicate()
    assert process.returncode != 0, printed
    assert "Traceback" not in printed
    return printed


def training(project):
    """Start a run, and return it and the process of its stage once that trains."""
    process = start(project, "dvc", "repro", "train")
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            break
    (stage,) = psutil.Process(process.pid).children(recursive=True)
    return process, stage


def contents(project):
    return {
        path: path.read_bytes() for path in (project.folder / "data").rglob("*") if path.is_file()
    }


def has_ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=60):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("not within a minute")


# A run that is broken off


def interrupt(process, stage):
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does


def kill_the_stage(process, stage):
    stage.kill()


def kill_dvc(process, stage):
    process.kill()


def terminate_dvc(process, stage):
    process.terminate()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (interrupt, "error: interrupted"),
        (kill_the_stage, "failed to run: exec python -m stages.train, exited with -9"),
        (kill_dvc, None),
        (terminate_dvc, None),
    ],
)
def test_after_a_run_that_was_broken_off_the_next_just_works(project, fault, line):
    before = contents(project)
    project.set(LONG)
    process, stage = training(project)
    fault(process, stage)
    printed, _ = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in printed
    assert line is None or line in printed
    wait_until(lambda: has_ended(stage))  # nothing goes on to write
    assert not (project.folder / MODEL).exists()
    assert set(contents(project)) < set(before)  # no part of a file, no other name
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.repro("train") == []  # from the cache
    assert contents(project) == before


def test_a_training_that_was_killed_can_be_made_up_for(project):
    project.set(LONG)
    process, _ = training(project)
    (project.folder / f"{MODEL}.part").write_bytes(b"half")  # as a kill while writing leaves it
    process.kill()
    process.communicate()
    project.set({"train.epochs": 1})
    assert project.repro("train") == ["train"]
    assert not (project.folder / f"{MODEL}.part").exists()
    assert project.run("dvc", "status", "train").stdout.strip().endswith("up to date.")


def test_a_second_run_at_once_is_refused_and_the_first_not_disturbed(project):
    project.set({"train.epochs": 3})
    process, stage = training(project)
    stage.suspend()
    try:
        printed = failed(project, "dvc", "repro", "train")
    finally:
        stage.resume()
    assert f"PID {process.pid}" in printed
    assert process.communicate()[0]
    assert process.returncode == 0
    assert len((project.folder / HISTORY).read_text().splitlines()) == 4
    assert project.repro("train") == []


def test_a_loss_that_is_no_number_leaves_no_model_and_the_earlier_one_in_the_cache(project):
    before = contents(project)
    project.set({"train.optimizer": "sgd", "train.learning_rate": 1e38})
    printed = failed(project, "dvc", "repro", "train")
    assert "error: the loss is no longer a number" in printed
    assert not (project.folder / MODEL).exists()
    project.run("git", "checkout", "-q", "params.yaml", "data")
    project.run("dvc", "checkout", "-q")
    assert contents(project) == before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"preprocess.validation_fraction": 1.5},
            "error: params.yaml: preprocess.validation_fraction is 1.5: Input should be less",
        ),
        (
            {"preprocess.validation_fraction": 0.001},
            "error: preprocess.validation_fraction is 0.001: ",
        ),
    ],
)
def test_what_dvc_removed_for_a_stage_that_refuses_comes_back(project, changes, line):
    before = contents(project)
    project.set(changes)
    printed = failed(project, "dvc", "repro", "preprocess")
    assert line in printed
    project.run("git", "checkout", "-q", "params.yaml", "data")
    project.run("dvc", "checkout", "-q")
    assert contents(project) == before


def test_make_refuses_a_wrong_value_before_anything_changes(project):
    (project.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    before = contents(project)
    project.set({"preprocess.validation_fraction": 1.5})
    printed = failed(project, "make", "-o", ".venv/runtime", "repro")
    (project.folder / ".venv").unlink()
    assert printed.startswith("error: params.yaml: preprocess.validation_fraction is 1.5: ")
    assert contents(project) == before


# Disks and folders

NAMESPACE = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]


@pytest.fixture(scope="session")
def mounting():
    """Skip where the system lets no one mount a file system of his own."""
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, check=False).returncode:
        pytest.skip("may not mount; RLIMIT_FSIZE takes the place of this in other tests")


@pytest.mark.usefixtures("mounting")
def test_a_disk_full_at_any_write_is_named_and_leaves_nothing_half_written(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "data").mkdir()
    said = json.loads(
        project.run(*NAMESPACE, "python", "tests/fill_disk.py").stdout.splitlines()[-1]
    )
    expected = [output for stage in graph().values() for output in outputs(stage)]
    assert sorted(said) == sorted(expected)
    for output, message in said.items():
        assert message.startswith(f"{output}: cannot be written: No space left on device")
        assert "\n" not in message


@pytest.mark.usefixtures("mounting")
def test_a_disk_that_was_full_needs_only_room(project):
    shutil.rmtree(project.folder / "data/processed")
    (project.folder / "data/processed").mkdir()
    mount = "mount -t tmpfs -o size=1m tmpfs data/processed && dvc repro --force preprocess"
    printed = failed(project, *NAMESPACE, "sh", "-c", mount)
    assert "error: data/processed/train.npz: cannot be written: No space left on device" in printed
    project.run("git", "checkout", "-q", "data")
    assert project.repro("train") == []


def test_a_folder_without_write_permission_is_named(project):
    folder = project.folder / "data/processed"
    for path in folder.glob("*.npz"):
        path.unlink()
    folder.chmod(0o555)
    # Root may write anywhere, unless it gives up that right.
    powerless = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
    try:
        printed = failed(project, *powerless, "dvc", "repro", "--force", "preprocess")
    finally:
        folder.chmod(0o755)
    assert "error: data/processed/train.npz: cannot be written: Permission denied" in printed
    assert project.repro("train") == []


# dvc.lock


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:300],
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(
            "stages:", "<<<<<<< HEAD\nstages:\n=======\nstages:\n>>>>>>> other"
        ),
    ],
    ids=["empty", "truncated in the first stage", "truncated", "merge conflict"],
)
def test_a_damaged_lock_is_named_and_the_doctor_says_what_mends_it(project, damage):
    lock = project.folder / "dvc.lock"
    right, before = lock.read_text(), contents(project)
    lock.write_text(damage(right))
    assert "dvc.lock' " in failed(project, "dvc", "repro", "train")
    (line,) = wrong(project, "pipeline")
    assert "dvc.lock" in line
    mend(project, line)
    assert lock.read_text() == right
    assert contents(project) == before


def wrong(project, check):
    """Return the lines in which the doctor says that something is wrong."""
    printed = failed(project, "python", "-m", "tools.doctor")
    return [line for line in printed.splitlines() if line.startswith(f"wrong  {check}: ")]


def mend(project, line):
    """Run the command that ends a line of the doctor's."""
    command = line.rpartition(": ")[2].replace("dvc repro", "dvc repro train")
    project.run("sh", "-c", command)
