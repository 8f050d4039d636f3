"""Failures during a run: signals, full disks, missing permissions, a second run, damaged locks.

Real DVC runs on a small project, and real signals go to real processes. FAULTS.md lists every fault
with its test.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.checks import read_contents
from helpers.needs import find_program
from helpers.project import ROOT, allow_interrupts, list_outputs, read_graph

import tools.doctor

MODEL, HISTORY = "data/model/model.keras", "data/model/history.csv"
LONG = {"train.epochs": 100_000}


@pytest.fixture
def project(small_project):
    """The small project after its first run; changes are undone after each test."""
    with small_project.undo_changes():
        yield small_project


def start(project, *command, **environment):
    """Start a command as a terminal would: in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=allow_interrupts,
    )


def wait_for_failure(process):
    """Wait until a process and all that write to its output have ended; return the output."""
    printed, _ = process.communicate()
    assert process.returncode != 0, printed
    assert "Traceback" not in printed
    return printed


def run_failing(project, *command, **environment):
    return wait_for_failure(start(project, *command, **environment))


def start_training(project):
    """Start `dvc repro train`; return it and the process of its stage once that trains."""
    process = start(project, "dvc", "repro", "train")
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("epoch 1 of"):
            (stage,) = psutil.Process(process.pid).children(recursive=True)  # and no shell
            return process, stage
    pytest.fail("".join(printed))


def data(project):
    """Return every file in data except the checkpoint, by its path."""
    found = read_contents(project.folder / "data")
    return {path: content for path, content in found.items() if "checkpoint" not in path}


# Interrupted runs


def interrupt(process, stage):
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does


def kill_the_stage(process, stage):
    stage.kill()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (interrupt, "error: interrupted"),
        (kill_the_stage, "failed to run: exec python -m stages.train, exited with -9"),
    ],
)
def test_next_run_works_after_interrupted_training(project, fault, line):
    before = data(project)
    project.set(LONG)
    process, stage = start_training(project)
    fault(process, stage)
    assert line in wait_for_failure(process)
    assert set(data(project)) < set(before)  # no model, whole or partial, and no other new file
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.repro() == []  # from the cache
    assert data(project) == before


@pytest.mark.linux
def test_stage_ends_when_dvc_is_killed(project):
    before = data(project)
    project.set(LONG)
    process, stage = start_training(project)
    process.kill()
    wait_for_failure(process)  # the stage has ended too, since it held the pipe's other end
    deadline = time.monotonic() + 10  # the process is removed a moment after its files are closed
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    part = project.folder / f"{MODEL}.part"
    part.write_bytes(b"half")  # as a kill in the middle of writing leaves it
    project.set({"train.epochs": 1})
    assert "Running stage 'train'" in project.run("dvc", "repro", "train").stdout
    assert not part.exists()
    assert set(data(project)) == set(before)


def test_second_run_at_once_is_refused(project):
    project.set({"train.epochs": 3})
    process, stage = start_training(project)
    stage.suspend()
    try:
        refused = run_failing(project, "dvc", "repro", "train")
    finally:
        stage.resume()
    assert f"PID {process.pid}" in refused
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert len((project.folder / HISTORY).read_text().splitlines()) == 4


# Stages that fail


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
            "error: the loss is NaN or infinite",
        ),
    ],
    ids=["empty class", "loss that is not a number"],
)
def test_outputs_of_a_failed_stage_come_back(project, changes, stage, line):
    before = data(project)
    project.set(changes)
    printed = run_failing(project, "dvc", "repro", stage)
    assert line in printed
    assert f"failed to reproduce '{stage}'" in printed
    for output in list_outputs(read_graph()[stage]):
        assert not (project.folder / output).exists()
    project.restore()
    assert data(project) == before


def test_make_checks_parameters_before_it_runs(project):
    (project.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    before = data(project)
    project.set({"preprocess.validation_fraction": 1.5})
    printed = run_failing(project, "make", "--no-print-directory", "-o", ".venv/runtime", "repro")
    (project.folder / ".venv").unlink()
    assert printed.startswith("error: params.yaml: preprocess.validation_fraction is 1.5: ")
    assert data(project) == before


# Disks and folders

NAMESPACE = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]


@pytest.fixture(scope="session")
def mounting():
    """Skip where the system does not let tests mount a file system."""
    find_program("unshare")
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, check=False).returncode:
        pytest.skip("not allowed to mount; other tests limit the size of files instead")


@pytest.mark.usefixtures("mounting")
def test_full_disk_is_named_at_every_write(project):
    """The helper also checks that no partial file is left."""
    project.set({"train.epochs": 1})
    ended = project.run(*NAMESPACE, "python", "-m", "tests.helpers.fill_disk")
    messages = json.loads(ended.stdout.splitlines()[-1])
    expected = [output for stage in read_graph().values() for output in list_outputs(stage)]
    expected.append("data/checkpoint/checkpoint.npz")
    expected.remove("data/model/trace.csv")  # fits where the history of the last epoch was
    assert sorted(messages) == sorted(expected)
    for output, message in messages.items():
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
def test_run_works_once_the_disk_has_room(project, folder, line):
    mount = f"mount -t tmpfs -o size=1m tmpfs {folder} && dvc repro -f -s preprocess"
    assert line in run_failing(project, *NAMESPACE, "sh", "-c", mount)
    project.run("git", "checkout", "-q", "data")
    assert project.repro() == []


FILL_TEMPORARY = """
import tempfile
from stages.core.errors import run

run(lambda: tempfile.TemporaryFile().write(bytes(1_000_000)))
"""


@pytest.mark.usefixtures("mounting")
def test_full_disk_for_temporary_files_is_named(project):
    mount = 'mount -t tmpfs -o size=100k tmpfs /mnt && TMPDIR=/mnt python -c "$0"'
    printed = run_failing(project, *NAMESPACE, "sh", "-c", mount, FILL_TEMPORARY)
    assert printed == "error: [Errno 28] No space left on device: /mnt\n"


def test_folder_without_permission_is_named(project):
    before = data(project)
    folder = project.folder / "data/processed"
    # Root may write anywhere, unless it gives up that capability.
    unprivileged = [] if os.geteuid() else [find_program("setpriv"), "--bounding-set=-dac_override"]
    command = [*unprivileged, "dvc", "repro", "-f", "-s", "preprocess"]
    folder.chmod(0o555)
    try:
        printed = run_failing(project, *command)  # DVC itself, which would remove the outputs
        assert data(project) == before
        assert "Permission denied" in printed
        assert "data/processed/test.npz" in printed
        folder.chmod(0o755)
        for path in folder.glob("*.npz"):
            path.unlink()
        folder.chmod(0o555)
        printed = run_failing(project, *command)
    finally:
        folder.chmod(0o755)
    assert "error: data/processed/train.npz: cannot be written: Permission denied" in printed
    assert project.repro() == []
    assert data(project) == before


# A damaged dvc.lock, and the doctor


def doctor(project, **environment):
    """Return each check that found a fault, with its finding and the command that fixes it."""
    printed = run_failing(project, "python", "-m", "tests.helpers.doctor", **environment)
    wrong = {}
    for line in printed.splitlines():
        verdict, check, finding = line.split(maxsplit=2)
        assert verdict in ("ok", "wrong"), line
        if verdict == "wrong":
            assert check not in wrong
            wrong[check.removesuffix(":")] = finding, finding.rpartition(": ")[2]
    return wrong


def cut_short(text):
    """Cut the lock in the middle of a key, as a kill during writing would."""
    return text[: text.rindex("md5:") + 2]


def merge_conflict(text):
    """Return the lock as git leaves it after merging two branches that both trained."""
    lines = text.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "model.keras" in line) + 2
    mine, theirs = lines[at], lines[at].replace("md5: ", "md5: 0")
    lines[at] = f"<<<<<<< HEAD\n{mine}=======\n{theirs}>>>>>>> other\n"
    return "".join(lines)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("dvc.lock", cut_short),
        ("dvc.lock", merge_conflict),
        # DVC opens this file, and is killed or finds the disk full before it writes.
        (".dvc/tmp/rwlock", lambda _: ""),
    ],
    ids=["cut short", "conflict", "empty rwlock"],
)
def test_doctor_fixes_a_damaged_lock(project, name, damage):
    path, before = project.folder / name, data(project)
    right = (project.folder / "dvc.lock").read_text()
    path.write_text(damage(right))
    assert path.name in run_failing(project, "dvc", "repro")
    wrong = doctor(project)
    assert list(wrong) == ["pipeline"]
    finding, command = wrong["pipeline"]
    assert path.name in finding
    project.run("sh", "-c", command)
    assert project.repro() == []
    assert (project.folder / "dvc.lock").read_text() == right
    assert data(project) == before


def flip(path):
    """Flip a bit in the middle of a file and keep its date, as a failing disk does."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_doctor_names_every_fault_and_its_fix(project):
    before = data(project)
    prepared = project.folder / "data/processed/validation.npz"
    with prepared.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
    project.run("dvc", "status")  # DVC remembers the hashes of this copy
    flip(project.folder / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    assert "up to date" in project.run("dvc", "status").stdout  # DVC trusts a read-only object
    raw = project.folder / "data/raw/t10k-labels-idx1-ubyte"
    raw.unlink()  # a link into the cache
    raw.write_bytes(b"<html>")
    metrics = project.folder / "data/evaluation/metrics.json"
    metrics.write_text(metrics.read_text().replace("0.", "0.9", 1))
    project.commit("better metrics")
    requirements = project.folder / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("\nnumpy==", "\nnumpy==1."))

    wrong = doctor(project, TF_XLA_FLAGS="--tf_xla_auto_jit=2")
    assert list(wrong) == ["packages", "processor", "cache", "raw", "lock"]
    assert wrong["packages"][0].startswith("numpy ")
    assert wrong["packages"][1] == "rm .venv/runtime && make .venv/runtime"
    assert wrong["processor"][1] == "unset TF_XLA_FLAGS"
    assert f"{md5[2:]} (data/processed/validation.npz) has the MD5" in wrong["cache"][0]
    assert wrong["raw"][0].startswith("data/raw/t10k-labels-idx1-ubyte does not have")
    assert "data/evaluation/metrics.json has changed" in wrong["lock"][0]

    project.run("git", "checkout", "-q", "requirements.txt")
    for check in ("cache", "raw"):
        project.run("sh", "-c", wrong[check][1])
    project.run("git", "reset", "-q", "--hard", "HEAD~")
    ended = project.run("python", "-m", "tools.doctor").stdout.splitlines()
    assert [line.split()[0] for line in ended] == ["ok"] * 12
    assert data(project) == before


def test_doctor_checks_nothing_with_damaged_packages(monkeypatch, capsys):
    """To import one can end the process."""
    monkeypatch.chdir(ROOT)
    found = {"numpy": "numpy/core.py has changed", "foreign": "x is missing"}
    monkeypatch.setattr("tools.doctor.find_changed_packages", lambda: found)
    with pytest.raises(SystemExit, match="True"):
        tools.doctor.main()
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("wrong  files: numpy: numpy/core.py has changed: rm .venv/runtime")
    assert len(others) == len(tools.doctor.CHECKS) - 1
    assert all(line.split()[0] == "-" for line in others)


def test_command_for_a_torn_output_replaces_the_cached_file(project):
    """A power cut tears the output and DVC's file, because they are one file."""
    before = data(project)
    torn = project.folder / "data/processed/train.npz"
    torn.chmod(0o644)
    os.truncate(torn, 1000)
    printed = run_failing(project, "python", "-m", "stages.train")
    project.run("sh", "-c", printed.rpartition("make it again: ")[2])
    assert data(project) == before


def test_doctor_and_lock_check_refuse_a_conflict_in_the_fingerprint(project):
    """`make repro` writes the file again."""
    record = project.folder / "fingerprint.json"
    right = record.read_text()
    record.write_text(f"<<<<<<< HEAD\n{right}=======\n{right}>>>>>>> other\n")
    project.commit("merge")
    assert "fingerprint.json" in doctor(project)["pipeline"][0]
    assert "fingerprint.json" in run_failing(project, "python", "-m", "dvc_verify", "lock")
    project.run("python", "-m", "dvc_verify", "record")
    assert record.read_text() == right


@pytest.mark.usefixtures("mounting")
def test_doctor_warns_of_a_nearly_full_disk(project):
    mount = "mount -t tmpfs -o size=50m tmpfs /mnt && TMPDIR=/mnt python -m tests.helpers.doctor"
    printed = run_failing(project, *NAMESPACE, "sh", "-c", mount)
    (line,) = (line for line in printed.splitlines() if line.startswith("wrong"))
    assert line.startswith("wrong  disk: /mnt has 0.1 GB free, but a run may need 1 GB: ")


# FAULTS.md


def test_every_listed_fault_has_a_test():
    text = (ROOT / "tests/FAULTS.md").read_text()
    rows = re.findall(r"^\| (?!fault |what is read |-).*\|(.*)\|$", text, re.M)
    assert len(rows) > 90
    assert all("::" in tests for tests in rows)
    listed = set(re.findall(r"`(\w+\.py)::(\w+)`", text))
    assert {
        f"{module}::{name}"
        for module, name in listed
        if f"\ndef {name}(" not in (ROOT / "tests" / module).read_text(encoding="utf-8")
    } == set()
