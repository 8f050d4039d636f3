"""Real runs of `dvc repro` that are killed, interrupted or find another run's checkpoint."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.cases import KINDS
from helpers.project import Project, allow_interrupts, list_dependents, list_outputs, read_graph

from dvc_verify.lockfile import compute_md5

# How often each training is killed. More takes minutes: KILLS=20 pytest tests/test_interruption.py
KILLS = int(os.environ.get("KILLS", "1"))
# With --no-run-cache, DVC does not restore the results of an earlier run.
TRAIN = ["repro", "--force", "--no-run-cache", "--single-item", "train"]
CHECKPOINT = "data/checkpoint/checkpoint.npz"

# Epochs for the kills to interrupt. Early stopping keeps the best weights, but never stops.
LONG = {"train.epochs": 40, "train.early_stopping.patience": 40}


def start(project: Project, *arguments: str) -> subprocess.Popen:
    """Start `dvc` in a new process group, as a terminal does."""
    bin_folder = Path(sys.executable).parent
    return subprocess.Popen(
        ["dvc", *arguments],
        cwd=project.folder,
        env=os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=allow_interrupts,
    )


def hashes(project: Project, *names: str) -> dict[str, str]:
    """Return the MD5 of every output of the named stages."""
    stages = read_graph(project.folder)
    paths = [path for name in names for path in list_outputs(stages[name])]
    return {path: compute_md5(project.folder / path) for path in paths}


def wait_for_epochs(process: subprocess.Popen, count: int) -> str:
    """Read the output of `process` until `count` more epochs are complete, and return it."""
    said = ""
    for line in process.stdout:
        said += line
        count -= bool(re.match(r"(member \d of \d, )?epoch \d+ of", line))
        if not count:
            break
    return said


@pytest.fixture
def project(small_project):
    with small_project.undo_changes():
        yield small_project


def repair(project):
    """Repair the file that DVC was writing when it was killed, as `make doctor` says."""
    status = subprocess.run(
        ["dvc", "status"], cwd=project.folder, check=False, capture_output=True, text=True
    )
    if status.returncode and "rwlock" in status.stderr:
        (project.folder / ".dvc/tmp/rwlock").unlink()
    elif status.returncode:
        assert "dvc.lock" in status.stderr
        project.run("git", "checkout", "-q", "dvc.lock")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_training_ends_in_the_same_bytes(project, kind):
    """Kills DVC, or DVC and its stage, at random moments, and then lets the training finish."""
    project.set(KINDS[kind] | LONG)
    project.run_stages("train")
    expected = hashes(project, "train")
    rng = random.Random(kind)  # noqa: S311  # not for security
    said = ""
    for _ in range(KILLS):
        process = start(project, *TRAIN)
        said += wait_for_epochs(process, rng.randint(1, 3))
        time.sleep(rng.uniform(0, 0.1))
        rng.choice([os.kill, os.killpg])(process.pid, rng.choice([signal.SIGKILL, signal.SIGTERM]))
        said += process.communicate()[0]
        repair(project)
    said += project.run("dvc", *TRAIN).stdout
    assert "resuming after epoch" in said
    assert hashes(project, "train") == expected
    assert not (project.folder / CHECKPOINT).parent.exists()


@pytest.mark.slow
def test_training_killed_at_any_time_ends_in_the_same_bytes(project):
    """The kills come while Python starts, TensorFlow loads, an epoch runs or DVC saves results."""
    stages = list_dependents("train")
    project.set({"train.epochs": 4})
    project.run("dvc", "repro")
    expected = hashes(project, *stages)
    rng = random.Random(0)  # noqa: S311  # not for security
    for _ in range(KILLS):
        process = start(project, *TRAIN)
        time.sleep(rng.uniform(0, 8))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        repair(project)
    project.run("dvc", *TRAIN)
    project.run("dvc", "repro")
    assert hashes(project, *stages) == expected


def test_interrupted_training_says_how_to_go_on(project):
    project.set({"train.epochs": 200})
    process = start(project, "repro", "train")
    wait_for_epochs(process, 2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode
    line = re.search(r"^error: .*$", said, re.M)[0]
    assert line == (
        f"error: interrupted; {CHECKPOINT} holds all complete epochs; run `dvc repro` to continue"
    )
    assert "Traceback" not in said
    # history.csv exists, and its rows are complete.
    rows = (project.folder / "data/model/history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *map(str, range(1, len(rows)))]
    # With other parameters, the checkpoint is not used.
    project.set({"train.epochs": 1})
    said = project.run("dvc", "repro", "train").stdout
    assert f"{CHECKPOINT} is from a run with different train.epochs; starting over" in said
    assert "epoch 1 of 1" in said
    assert not (project.folder / CHECKPOINT).exists()
