"""What befalls a run: signals, full disks, folders without permission, a second run, bad locks.

Real DVC on a small project, real signals to real processes; docs/faults.md lists every fault.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.project import ROOT, SMALL, STAGES, Project, graph, heed_interrupts, outputs

MODEL, HISTORY = "data/model/model.keras", "data/model/history.csv"
LONG = {"train.epochs": 100_000}


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"), SMALL | {"train.epochs": 1})
    assert project.repro() == STAGES
    project.commit("first run")
    return project


@pytest.fixture
def project(committed):
    """The project after its first run, brought back to that afterwards."""
    before = contents(committed)
    yield committed
    committed.run("git", "checkout", "-q", ".")
    if contents(committed) != before:
        committed.restore()


def start(project, *command, **environment):
    """Start a command as a terminal would: in a process group of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def ended(process):
    """Wait until a process and all that writes to its output have failed; return the output."""
    printed, _ = process.communicate()
    assert process.returncode != 0, printed
    assert "Traceback" not in printed
    return printed


def failed(project, *command, **environment):
    return ended(start(project, *command, **environment))


def training(project):
    """Start a run, and return it and the process of its stage once that trains."""
    process = start(project, "dvc", "repro", "train")
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("Epoch 2/"):
            (stage,) = psutil.Process(process.pid).children(recursive=True)  # and no shell
            return process, stage
    pytest.fail("".join(printed))


def contents(project):
    return {
        path.relative_to(project.folder): path.read_bytes()
        for path in (project.folder / "data").rglob("*")
        if path.is_file()
    }


# A run that is broken off


def interrupt(process, stage):
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does


def kill_the_stage(process, stage):
    stage.kill()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (interrupt, "error: interrupted"),
        (kill_the_stage, "failed to run: exec python -m stages.train, exited with -9"),
    ],
)
def test_after_a_training_that_was_broken_off_the_next_run_just_works(project, fault, line):
    before = contents(project)
    project.set(LONG)
    process, stage = training(project)
    fault(process, stage)
    assert line in ended(process)
    assert set(contents(project)) < set(before)  # no model, no part of one, no other name
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.repro() == []  # from the cache
    assert contents(project) == before


def test_a_stage_dies_with_its_dvc_and_the_next_run_trains(project):
    before = contents(project)
    project.set(LONG)
    process, stage = training(project)
    process.kill()
    ended(process)  # the stage, which held the other end of the pipe, too
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
    part = project.folder / f"{MODEL}.part"
    part.write_bytes(b"half")  # as a kill in the middle of writing leaves it
    project.set({"train.epochs": 2})
    assert "Running stage 'train'" in project.run("dvc", "repro", "train").stdout
    assert not part.exists()
    assert set(contents(project)) == set(before)


def test_a_second_run_at_once_is_refused_and_the_first_not_disturbed(project):
    project.set({"train.epochs": 3})
    process, stage = training(project)
    stage.suspend()
    try:
        refused = failed(project, "dvc", "repro", "train")
    finally:
        stage.resume()
    assert f"PID {process.pid}" in refused
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert len((project.folder / HISTORY).read_text().splitlines()) == 4


# A run that refuses


@pytest.mark.parametrize(
    ("changes", "stage", "line"),
    [
        (
            {"preprocess.validation_fraction": 0.001},
            "preprocess",
            "error: preprocess.validation_fraction is 0.001: ",
        ),
        (
            {"train.optimizer": "sgd", "train.learning_rate": 1e38},
            "train",
            "error: the loss is no longer a number",
        ),
    ],
    ids=["empty class", "loss that is no number"],
)
def test_what_dvc_removed_for_a_stage_that_fails_comes_back(project, changes, stage, line):
    before = contents(project)
    project.set(changes)
    printed = failed(project, "dvc", "repro", stage)
    assert line in printed
    assert f"failed to reproduce '{stage}'" in printed
    for output in outputs(graph()[stage]):
        assert not (project.folder / output).exists()
    project.restore()
    assert contents(project) == before


def test_make_refuses_a_wrong_value_before_anything_changes(project):
    (project.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    before = contents(project)
    project.set({"preprocess.validation_fraction": 1.5})
    printed = failed(project, "make", "--no-print-directory", "-o", ".venv/runtime", "repro")
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
        pytest.skip("may not mount; other tests limit the size of files instead")


@pytest.mark.usefixtures("mounting")
def test_a_disk_full_at_any_write_is_named_and_leaves_nothing_half_written(project):
    ended = project.run(*NAMESPACE, "python", "-m", "tests.helpers.fill_disk")
    said = json.loads(ended.stdout.splitlines()[-1])
    expected = [output for stage in graph().values() for output in outputs(stage)]
    assert sorted(said) == sorted(expected)
    for output, message in said.items():
        assert message.startswith(f"{output}: cannot be written: No space left on device")
        assert "\n" not in message


@pytest.mark.usefixtures("mounting")
@pytest.mark.parametrize(
    ("folder", "line"),
    [
        (
            "data/processed",
            "error: data/processed/train.npz: cannot be written: No space left on device",
        ),
        (".dvc/cache", "No space left on device"),
    ],
)
def test_a_disk_that_was_full_needs_only_room(project, folder, line):
    mount = f"mount -t tmpfs -o size=1m tmpfs {folder} && dvc repro -f -s preprocess"
    assert line in failed(project, *NAMESPACE, "sh", "-c", mount)
    project.run("git", "checkout", "-q", "data")
    assert project.repro() == []


FILL_TEMPORARY = """
import tempfile
from stages.core.errors import run

run(lambda: tempfile.TemporaryFile().write(bytes(1_000_000)))
"""


@pytest.mark.usefixtures("mounting")
def test_a_full_disk_of_temporary_files_is_named(project):
    mount = 'mount -t tmpfs -o size=100k tmpfs /mnt && TMPDIR=/mnt python -c "$0"'
    printed = failed(project, *NAMESPACE, "sh", "-c", mount, FILL_TEMPORARY)
    assert printed == "error: [Errno 28] No space left on device: /mnt\n"


def test_a_folder_without_write_permission_is_named(project):
    before = contents(project)
    folder = project.folder / "data/processed"
    # Root may write anywhere, unless it gives up that right.
    powerless = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
    command = [*powerless, "dvc", "repro", "-f", "-s", "preprocess"]
    folder.chmod(0o555)
    try:
        printed = failed(project, *command)  # DVC, which would clear the way for the stage
        assert contents(project) == before
        assert "Permission denied" in printed
        assert "data/processed/test.npz" in printed
        folder.chmod(0o755)
        for path in folder.glob("*.npz"):
            path.unlink()
        folder.chmod(0o555)
        printed = failed(project, *command)
    finally:
        folder.chmod(0o755)
    assert "error: data/processed/train.npz: cannot be written: Permission denied" in printed
    assert project.repro() == []
    assert contents(project) == before


# dvc.lock, and what the doctor finds


def doctor(project, **environment):
    """Return what the doctor calls wrong, and the command that mends it, by the check's name."""
    printed = failed(project, "python", "-m", "tools.doctor", **environment)
    wrong = {}
    for line in printed.splitlines():
        verdict, check, finding = line.split(maxsplit=2)
        assert verdict in ("ok", "wrong"), line
        if verdict == "wrong":
            assert check not in wrong
            wrong[check.removesuffix(":")] = finding, finding.rpartition(": ")[2]
    return wrong


def cut_short(text):
    """Return the lock as a kill while it is written leaves it: here in the middle of a key."""
    return text[: text.rindex("md5:") + 2]


def merge_conflict(text):
    """Return the lock as git leaves it where two branches have trained."""
    lines = text.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "model.keras" in line) + 2
    mine, theirs = lines[at], lines[at].replace("md5: ", "md5: 0")
    lines[at] = f"<<<<<<< HEAD\n{mine}=======\n{theirs}>>>>>>> other\n"
    return "".join(lines)


@pytest.mark.parametrize("damage", [cut_short, merge_conflict])
def test_a_damaged_lock_is_named_and_the_doctor_says_what_mends_it(project, damage):
    lock = project.folder / "dvc.lock"
    right, before = lock.read_text(), contents(project)
    lock.write_text(damage(right))
    assert "dvc.lock" in failed(project, "dvc", "repro")
    wrong = doctor(project)
    assert list(wrong) == ["pipeline"]
    finding, command = wrong["pipeline"]
    assert "dvc.lock" in finding
    project.run("sh", "-c", command)
    assert lock.read_text() == right
    assert contents(project) == before


def flip(path):
    """Flip a bit in the middle of a file, as a failing disk does: its date stays."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_doctor_says_in_a_line_each_what_is_wrong_and_what_mends_it(project):
    before = contents(project)
    prepared = project.folder / "data/processed/validation.npz"
    with prepared.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
    flip(project.folder / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    assert "up to date" in project.run("dvc", "status").stdout  # DVC trusts a read-only object
    raw = project.folder / "data/raw/t10k-labels-idx1-ubyte"
    raw.unlink()  # a link into the cache
    raw.write_bytes(b"<html>")
    metrics = project.folder / "data/evaluation/metrics.json"
    metrics.write_text(metrics.read_text().replace("0.", "0.9", 1))
    project.commit("better figures")
    requirements = project.folder / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("\nnumpy==", "\nnumpy==1."))

    wrong = doctor(project, TF_XLA_FLAGS="--tf_xla_auto_jit=2")
    assert list(wrong) == ["libraries", "processor", "cache", "raw", "results"]
    assert wrong["libraries"][0].startswith("numpy ")
    assert wrong["libraries"][1] == "rm .venv/runtime && make .venv/runtime"
    assert wrong["processor"][1] == "unset TF_XLA_FLAGS"
    assert f"{md5[2:]} (data/processed/validation.npz) has MD5" in wrong["cache"][0]
    assert wrong["raw"][0].startswith("data/raw/t10k-labels-idx1-ubyte is not of digits")
    assert "data/evaluation/metrics.json in the commit is not the file" in wrong["results"][0]

    project.run("git", "checkout", "-q", "requirements.txt")
    for check in ("cache", "raw"):
        project.run("sh", "-c", wrong[check][1])
    project.run("git", "reset", "-q", "--hard", "HEAD~")
    ended = project.run("python", "-m", "tools.doctor").stdout.splitlines()
    assert [line.split()[0] for line in ended] == ["ok"] * 7
    assert contents(project) == before


@pytest.mark.usefixtures("mounting")
def test_the_doctor_sees_that_there_is_no_room(project):
    mount = "mount -t tmpfs -o size=50m tmpfs /mnt && TMPDIR=/mnt python -m tools.doctor"
    printed = failed(project, *NAMESPACE, "sh", "-c", mount)
    (line,) = (line for line in printed.splitlines() if line.startswith("wrong"))
    assert line.startswith("wrong  disk: /mnt has 0.1 GB free, a run may take 1: ")


# The list


def test_every_fault_of_the_list_has_a_test():
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", (ROOT / "docs/faults.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 32))
    for _, tests in rows:
        for module, name in re.findall(r"`(\w+\.py)::(\w+)`", tests) or [("", tests)]:
            assert f"\ndef {name}(" in (ROOT / "tests" / module).read_text(encoding="utf-8")
