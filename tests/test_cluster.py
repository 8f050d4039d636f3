"""Trainings on several workers: real processes that talk over loopback."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.checks import refusal
from helpers.project import Project

from stages.core.errors import StageError
from stages.model.addresses import read_tf_config
from tools.worker import find_free_addresses, make_tf_config, read_kubernetes, read_slurm

TWO = {"worker": ["127.0.0.1:2222", "127.0.0.1:2223"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "TF_CONFIG is not readable (JSONDecodeError"),
        ({}, "TF_CONFIG is not readable (KeyError: 'cluster')"),
        ({"cluster": TWO, "task": {"type": "worker"}}, "TF_CONFIG is not readable (KeyError"),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, "index is 2, expected 0 to 1"),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, "index is -1, expected 0 to 1"),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, "have to be of type worker"),
        (
            {"cluster": TWO | {"ps": ["a:1"]}, "task": {"type": "worker", "index": 0}},
            "have to be of type worker",
        ),
        (
            {"cluster": {"worker": ["host"]}, "task": {"type": "worker", "index": 0}},
            "'host' is not an address such as host:2222",
        ),
        (
            {"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}},
            "TF_CONFIG has an address twice: a:1",
        ),
    ],
)
def test_wrong_tf_config_is_one_line(config, message):
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(StageError, match=re.escape(message)) as caught:
        read_tf_config(text)
    assert "\n" not in str(caught.value)


def test_tf_config_of_the_launcher_is_read_back():
    variables = make_tf_config(TWO["worker"], 1)
    assert read_tf_config(variables["TF_CONFIG"]) == (TWO["worker"], 1)


def test_workers_are_read_from_slurm(tmp_path, monkeypatch):
    """A stand-in for `scontrol` answers as SLURM's documentation says."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    step = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]"}
    assert read_slurm(step) == (["node1:2222", "node2:2222"], 1)
    with pytest.raises(StageError, match=r"3 tasks on 2 nodes: use --ntasks-per-node=1"):
        read_slurm(step | {"SLURM_NTASKS": "3"})
    with pytest.raises(StageError, match="SLURM_PROCID is not set; start this command with srun"):
        read_slurm({})


def test_workers_are_read_from_an_indexed_job():
    found = read_kubernetes({"JOB_COMPLETION_INDEX": "1"}, "mnist", "workers", 2)
    assert found == (["mnist-0.workers:2222", "mnist-1.workers:2222"], 1)
    with pytest.raises(StageError, match="the Job needs completionMode: Indexed"):
        read_kubernetes({}, "mnist", "workers", 2)


def test_sums_do_not_depend_on_the_number_of_workers():
    """The largest nodes of all workers cover the tree, and lead to the same sum."""
    from stages.model.parallel import Workers, add_tree, largest_nodes

    rng = np.random.default_rng(0)
    for replicas in (1, 2, 3, 4, 5, 8, 13):
        leaves = {
            (i, i + 1): [rng.standard_normal(100).astype(np.float32)] for i in range(replicas)
        }
        expected = add_tree(leaves, (0, replicas))[0]
        for count in range(1, replicas + 1):
            workers = Workers()
            workers.count = count
            own = [
                largest_nodes(workers.replicas_of(worker, replicas), (0, replicas))
                for worker in range(count)
            ]
            sums = {node: add_tree(leaves, node) for nodes in own for node in nodes}
            assert add_tree(sums, (0, replicas))[0].tobytes() == expected.tobytes()
    backwards = sum(leaves[i, i + 1][0] for i in reversed(range(replicas)))
    assert backwards.tobytes() != expected.tobytes()  # so the order does matter


CASES = {
    "dense, dropout, plateau": {
        "train.optimizer": "adam",
        "model.dropout": 0.3,
        "train.schedule.name": "plateau",
        "train.label_smoothing": 0.0,
        "train.epochs": 3,
    },
    "convolutional, muon, augmentation, early stopping": {
        "model.architecture": "convolutional",
        "model.filters": [[2], [3]],
        "train.augmentation.rotation": 5.0,
        "train.early_stopping.enabled": True,
        "train.epochs": 2,
    },
    "branched ensemble over shifts": {
        "model.architecture": "branched",
        "model.filters": [[2], [3]],
        "model.members": 2,
        "model.test_time_augmentation": True,
        "train.optimizer": "sgd",
        "train.momentum": 0.9,
        "train.epochs": 1,
    },
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project on digits with four replicas, prepared for training."""
    project = Project.create(tmp_path_factory.mktemp("cluster") / "project_0")
    project.set({"train.replicas": 4, "train.batch_size": 64})
    project.run_stages("download", "preprocess")
    return project


@pytest.fixture
def clones(prepared, tmp_path):
    """A function that returns that many copies of the prepared project, with changed parameters."""

    def copy(count, values):
        found = [prepared.copy(tmp_path / f"clone_{i}_{time.monotonic_ns()}") for i in range(count)]
        for project in found:
            project.set(values)
        return found

    return copy


TRAIN = "from stages.train import *; run(main)"


def start_workers(projects, addresses=None, code=TRAIN):
    """Start a worker in each project, and return the processes. One worker needs no addresses."""
    addresses = addresses or find_free_addresses(len(projects))
    processes = []
    for index, project in enumerate(projects):
        variables = make_tf_config(addresses, index) if len(addresses) > 1 else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=project.folder,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes):
    """Wait for all workers, and return what each printed."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text
    return printed


def results(project):
    """Return the MD5 of the outputs of the training."""
    return [
        hashlib.md5((project.folder / path).read_bytes()).hexdigest()  # noqa: S324  # not for security
        for path in ("data/model/model.keras", "data/model/history.csv")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "counts"), [*zip(CASES, ([2, 3], [4], [3]), strict=True)])
def test_any_number_of_workers_gives_the_same_bytes(clones, case, counts):
    (alone,) = clones(1, CASES[case])
    finish(start_workers([alone]))
    for count in counts:
        projects = clones(count, CASES[case])
        printed = finish(start_workers(projects))
        assert all(text.count(f"{count} workers, 4 replicas") == 1 for text in printed)
        assert results(projects[0]) == results(alone)
        for other in projects[1:]:
            assert not (other.folder / "data/model").exists()
            assert not (other.folder / "data/checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSTOP])
def test_others_end_and_a_later_run_resumes(clones, kill):
    """A worker dies or hangs; one process goes on from the checkpoint of worker 0."""
    values = CASES["dense, dropout, plateau"] | {"train.epochs": 150}
    projects = clones(3, values)
    addresses = find_free_addresses(3)
    processes = start_workers(projects, addresses)
    for line in processes[0].stdout:
        if line.startswith("epoch 2 of"):
            break
    processes[1].send_signal(kill)
    started = time.monotonic()
    printed = [processes[i].communicate(timeout=120)[0] for i in (0, 2)]
    assert time.monotonic() - started < 120
    processes[1].kill()
    processes[1].communicate()
    for text in printed:
        assert f"error: worker 1 ({addresses[1]}) no longer answers" in text
    assert processes[0].returncode == 1
    assert not (projects[0].folder / "data/model/model.keras").exists()
    (alone,) = clones(1, values)
    (resumed,), _ = finish(start_workers([projects[0]])), finish(start_workers([alone]))
    assert "resuming after epoch" in resumed
    assert results(projects[0]) == results(alone)


@pytest.mark.slow
def test_difference_between_workers_is_named(clones):
    projects = clones(2, {"train.epochs": 1})
    projects[1].set({"train.seed": 99})
    processes = start_workers(projects)
    for process in processes:
        text = process.communicate(timeout=120)[0]
        host = socket.gethostname()
        message = f"error: worker 1 ({host}) has other train.seed than worker 0 ({host})"
        assert message in text.splitlines()
        assert process.returncode == 1
    assert not (projects[0].folder / "data/model").exists()


@pytest.mark.slow
def test_more_workers_than_replicas_are_refused(clones):
    projects = clones(1, {})
    (process,) = start_workers(projects, [f"127.0.0.1:{port}" for port in range(2222, 2227)])
    text = process.communicate(timeout=120)[0]
    assert "error: there are 5 workers and train.replicas is 4" in text
    assert process.returncode == 1
    assert not (projects[0].folder / "data/model").exists()


def test_address_in_use_is_named():
    from stages.model.addresses import check_address_is_free

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "Address already in use" in refusal(check_address_is_free, address)
    check_address_is_free(address)
    message = refusal(check_address_is_free, "192.0.2.1:2222")  # an address for documentation
    assert "Cannot assign requested address" in message


def test_connections_to_other_addresses_are_dropped():
    """The filter on a socket that listens on all addresses lets one address through."""
    from stages.model.addresses import accept_only

    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))  # noqa: S104  # as TensorFlow does
        listener.listen()
        port = listener.getsockname()[1]
        accept_only(f"127.0.0.2:{port}")
        socket.create_connection(("127.0.0.2", port), timeout=5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.3", port), timeout=1)
