"""Trainings on several workers: real processes that talk over loopback."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.cases import KINDS
from helpers.checks import get_refusal
from helpers.needs import miss
from helpers.project import ROOT, SMALL, Project, allow_interrupts
from ruamel.yaml import YAML

from dvc_verify.lockfile import compute_md5
from stages.cluster import peers, transport
from stages.cluster.addresses import find_own_ips, read_tf_config, split_address
from stages.cluster.transport import Transport, listen, pack_frame
from stages.core.errors import StageError
from tools.worker import find_free_addresses, make_tf_config, read_kubernetes, read_slurm

# The tests share the prepared data and the results of one worker.
pytestmark = pytest.mark.xdist_group("test_cluster")

TWO = ["127.0.0.1:2222", "127.0.0.1:2223"]


def make_config(workers=TWO, index=0, kind="worker", **others):
    """Return a TF_CONFIG, as JSON has it."""
    return {"cluster": {"worker": workers} | others, "task": {"type": kind, "index": index}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "TF_CONFIG is not readable (JSONDecodeError"),
        ({}, "TF_CONFIG is not readable (KeyError: 'cluster')"),
        ([], "TF_CONFIG is not readable (TypeError"),
        ("[" * 100_000, "TF_CONFIG is not readable (RecursionError"),
        (make_config(index=None), "TF_CONFIG is not readable (TypeError"),
        (make_config(index=float("inf")), "TF_CONFIG is not readable (OverflowError"),
        (make_config(index=2), "index is 2, expected 0 to 1"),
        (make_config(index=-1), "index is -1, expected 0 to 1"),
        (make_config(kind="chief"), "have to be of type worker"),
        (make_config(ps=["a:1"]), "have to be of type worker"),
        (make_config([]), "worker is [], expected a list of host:port"),
        *(
            (make_config([address]), f"{address!r} is not an address such as host:2222")
            for address in ("host", "host:", "host:0", "host:65536", "a..b:1", 2222)
        ),
        (make_config(["a:1", "a:1"]), "TF_CONFIG has an address twice: a:1"),
        (make_config(["a:1", "localhost:1"]), "localhost:1 means another machine to each worker"),
    ],
)
def test_wrong_tf_config_is_one_line(config, message):
    text = config if isinstance(config, str) else json.dumps(config)
    assert message in get_refusal(read_tf_config, text)


def test_tf_config_of_the_launcher_is_read_back():
    assert read_tf_config(make_tf_config(TWO, 1)["TF_CONFIG"]) == (TWO, 1)


def test_workers_are_read_from_slurm(tmp_path, monkeypatch):
    """A stand-in for `scontrol` answers as SLURM's documentation says."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n" && exit\n'
        "echo wrong list >&2; exit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    step = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]"}
    assert read_slurm(step) == (["node1:2222", "node2:2222"], 1)
    with pytest.raises(StageError, match=r"3 tasks on 2 nodes: use --ntasks-per-node=1"):
        read_slurm(step | {"SLURM_NTASKS": "3"})
    with pytest.raises(StageError, match=r"scontrol show hostnames node\[ failed: wrong list"):
        read_slurm(step | {"SLURM_STEP_NODELIST": "node["})
    with pytest.raises(StageError, match="SLURM_PROCID is not set; start this command with srun"):
        read_slurm({})


def test_workers_are_read_from_an_indexed_job():
    found = read_kubernetes({"JOB_COMPLETION_INDEX": "1"}, "mnist", "workers", 2)
    assert found == (["mnist-0.workers:2222", "mnist-1.workers:2222"], 1)
    with pytest.raises(StageError, match="the Job needs completionMode: Indexed"):
        read_kubernetes({}, "mnist", "workers", 2)


# Workers find each other


@pytest.fixture
def wait_for_all(monkeypatch):
    """A function that lets workers with these addresses and indices wait for all, side by side.

    It returns the line with which each fails, or what each gathers.
    """

    def wait(addresses, index):
        try:
            worker = Transport(addresses, index)
            with worker.connect():
                return worker.gather_bytes(bytes([index]) * 10_000_000)
        except StageError as error:
            return str(error)

    def wait_side_by_side(*workers, patience=2):
        monkeypatch.setattr(transport, "PATIENCE", patience)
        with ThreadPoolExecutor(len(workers)) as pool:
            return [*pool.map(wait, *zip(*workers, strict=True))]

    return wait_side_by_side


def connect_to(address):
    return socket.create_connection(split_address(address))


def say_hello(index, addresses):
    return pack_frame(transport.HELLO, json.dumps([index, addresses]).encode())


def test_workers_go_on_when_all_have_come(wait_for_all):
    addresses = find_free_addresses(4)
    addresses[3] = addresses[3].replace("127.0.0.1", "localhost")
    workers = [(addresses, index) for index in range(4)]
    gathered = [bytes([index]) * 10_000_000 for index in range(4)]
    assert wait_for_all(*workers, patience=60) == [gathered] * 4


@pytest.mark.parametrize("silence", [1, 60])
def test_worker_that_ends_or_hangs_is_named_by_all(monkeypatch, silence):
    """Also by a worker that hears of it from another. What was sent before is received."""
    monkeypatch.setattr(transport, "SILENCE", silence)
    monkeypatch.setattr(transport, "BEAT", 100 if silence == 1 else 0.1)
    addresses = find_free_addresses(3)

    def train(index):
        worker = Transport(addresses, index)
        try:
            with worker.connect():
                assert worker.gather_bytes(b"a") == [b"a"] * 3
                if index == 1:
                    time.sleep(3 if silence == 1 else 0)
                    return ""
                if silence == 1:  # the two others are alive
                    for other in {0, 2} - {index}:
                        worker._frames[other].put_nowait(b"")
                return worker.gather_bytes(b"b")
        except StageError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        lines = [*pool.map(train, range(3))]
    assert lines[::2] == [f"worker 1 ({addresses[1]}) no longer answers"] * 2


def test_missing_workers_are_named(wait_for_all):
    addresses = find_free_addresses(4)
    missing = f"worker 1 ({addresses[1]}), worker 2 ({addresses[2]}) did not start within 2 s"
    assert wait_for_all((addresses, 0), (addresses, 3)) == [
        f"{missing}, or cannot reach worker 0 ({addresses[0]})",
        f"{missing}, or cannot reach worker 3 ({addresses[3]})",
    ]


def test_two_workers_with_one_index_are_named(wait_for_all):
    addresses = find_free_addresses(2)
    first, second = sorted(wait_for_all((addresses, 0), (addresses, 0)))
    assert first.startswith(f"TF_CONFIG: this worker cannot listen at {addresses[0]}: Address alre")
    assert "is another worker started with the same index" in first
    assert second.startswith(f"worker 1 ({addresses[1]}) did not start")


def test_workers_with_different_addresses_are_named(wait_for_all):
    addresses = find_free_addresses(2)
    for other in (addresses[::-1], 0), ([*addresses, "127.0.0.1:9"], 1):
        lines = wait_for_all((addresses, 0), other, patience=60)
        pairs = [(0, addresses[0], other[1]), (other[1], addresses[1], 0)]
        assert lines == [
            f"worker {mine} ({address}) and worker {sender} have different addresses in TF_CONFIG"
            for mine, address, sender in pairs
        ]


def test_other_connections_do_not_count_as_workers(wait_for_all):
    """Something connects and sends anything, and a worker that ends again and never comes back."""
    addresses = find_free_addresses(2)
    contents = [b"", b"[]", b"[[], 1]", b"{}", b"\xff", b"[" * 60_000, b"[Infinity, []]"]
    messages = [pack_frame(transport.HELLO, content) for content in contents]
    messages += [b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 100_000, say_hello(1, addresses)]
    with ThreadPoolExecutor() as pool:
        lines = pool.submit(wait_for_all, (addresses, 0))
        while not lines.done():
            with suppress(OSError), connect_to(addresses[0]) as connection:
                connection.sendall(messages[0])
                messages = messages[1:] or messages
    (line,) = lines.result()
    assert line.startswith(f"worker 1 ({addresses[1]}) did not start within 2 s")


def test_worker_that_does_not_reach_all_is_named(wait_for_all):
    addresses = find_free_addresses(2)
    with listen(addresses[1])[0], ThreadPoolExecutor() as pool:
        lines = pool.submit(wait_for_all, (addresses, 0))
        while not lines.done():
            with suppress(OSError), connect_to(addresses[0]) as connection:
                connection.sendall(say_hello(1, addresses))
                while not lines.done():
                    connection.sendall(pack_frame(transport.ALIVE))
                    time.sleep(0.1)
    assert lines.result() == [f"worker 1 ({addresses[1]}) did not find all workers within 2 s"]


def test_address_of_another_machine_is_named():
    message = get_refusal(listen, "192.0.2.1:2222")  # an address for documentation
    assert "cannot listen at 192.0.2.1:2222: Cannot assign requested address" in message
    assert "is not a known host" in get_refusal(listen, "host.invalid:2222")


def test_address_can_be_used_again_at_once():
    """The system keeps the closed connections of an earlier run for a minute."""
    (address,) = find_free_addresses(1)
    with listen(address)[0] as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()  # first, so that this side waits
        client.close()
    listen(address)[0].close()


def test_names_that_other_machines_cannot_use_are_refused(monkeypatch):
    """Debian gives a machine's own name the address 127.0.1.1."""
    for address in ("127.0.0.1:2222", "localhost:2222", "[::1]:2222"):
        assert find_own_ips(address)
    assert "0.0.0.0 is not an address that other workers" in get_refusal(
        find_own_ips, "0.0.0.0:2222"
    )
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 2222))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    message = get_refusal(find_own_ips, "host0:2222")
    assert "host0 is 127.0.1.1 on this machine, which other machines cannot reach" in message


# Runs as another user, and prints what it gets from each port until its input closes.
STRANGER = """
import encodings.idna, os, select, socket, sys
os.setgid(65534)
os.setuid(65534)
found = set()
print("started", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for address in sys.argv[1:]:
        host, port = address.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), timeout=0.3) as connection:
                found.add("served" if connection.recv(1) else "closed")
        except OSError as error:
            found.add(type(error).__name__)
print(sorted(found))
"""


@pytest.fixture
def stranger():
    """A function that lets another user of this machine connect to addresses during a block.

    It yields a list, to which it then adds the results of the attempts: "served" is the worst.
    """
    if os.geteuid():
        pytest.skip("needs root to become another user")

    @contextmanager
    def try_to_connect(*addresses):
        command, results = [sys.executable, "-c", STRANGER, *addresses], []
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
            assert process.stdout.readline() == "started\n"
            yield results
            results += ast.literal_eval(process.communicate("\n")[0])

    return try_to_connect


@pytest.mark.linux
def test_another_user_is_no_worker(wait_for_all, stranger):
    """It connects while a worker waits, and is not heard."""
    addresses = find_free_addresses(2)
    with stranger(addresses[0]) as results:
        (line,) = wait_for_all((addresses, 0))
    assert line.startswith(f"worker 1 ({addresses[1]}) did not start within 2 s")
    assert line.endswith("; refused connections from 127.0.0.1")
    assert set(results) <= {"closed", "ConnectionResetError", "ConnectionRefusedError"}


@pytest.mark.linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_of_this_user_are_recognised(host):
    """By both ends, so that no connection to another program counts. Others: by the address."""
    address = find_free_addresses(1)[0].replace("127.0.0.1", host)
    with listen(address)[0] as listener, connect_to(address) as client:
        accepted, _ = listener.accept()
        with accepted:
            peer, own = (peers.make_end(each.getsockname()) for each in (client, accepted))
            assert peers.is_worker(peer, own, [])
            assert not peers.is_worker(peer, (own[0], own[1] + 1), [])
    other = peers.make_end(("192.0.2.1", 4711))
    assert peers.is_worker(other, own, ["host.invalid:2222", "192.0.2.1:2222"])
    assert not peers.is_worker(other, own, ["192.0.2.2:2222"])


# Trainings


def test_sums_do_not_depend_on_the_number_of_workers():
    """The largest nodes of all workers cover the tree, and lead to the same sum."""
    from stages.cluster.worker import find_largest_nodes, list_replicas
    from stages.model.parallel import add_tree

    rng = np.random.default_rng(0)
    for replicas in (1, 2, 3, 4, 5, 8, 13):
        leaves = {
            (i, i + 1): [rng.standard_normal(100).astype(np.float32)] for i in range(replicas)
        }
        expected = add_tree(leaves, (0, replicas))[0]
        for count in range(1, replicas + 1):
            own = [
                find_largest_nodes(list_replicas(worker, count, replicas), (0, replicas))
                for worker in range(count)
            ]
            sums = {node: add_tree(leaves, node) for nodes in own for node in nodes}
            assert add_tree(sums, (0, replicas))[0].tobytes() == expected.tobytes()
    backwards = sum(leaves[i, i + 1][0] for i in reversed(range(replicas)))
    assert backwards.tobytes() != expected.tobytes()  # so the order does matter


# A training of a second, and one that is long enough for a kill.
SHORT = {"model.dropout": 0.3, "train.schedule.name": "plateau", "train.epochs": 3}
LONG = SHORT | {"train.epochs": 20}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project on digits with four replicas, prepared for training."""
    values = SMALL | {"train.replicas": 4, "train.batch_size": 64}
    project = Project.create(tmp_path_factory.mktemp("cluster") / "project_0", values)
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


@pytest.fixture(scope="module")
def results_alone(prepared, tmp_path_factory):
    """A function that returns the results of one worker with changed parameters."""
    found = {}

    def train(values):
        key = json.dumps(values)
        if key not in found:
            alone = prepared.copy(tmp_path_factory.mktemp("alone") / "project")
            alone.set(values)
            finish(start_workers([alone]))
            found[key] = results(alone)
        return found[key]

    return train


TRAIN = "from stages.train import *; run(main)"


def start_workers(projects, addresses=None, code=TRAIN, hosts=None, first=0):
    """Start a worker in each project, and return the processes. One worker needs no addresses.

    `hosts` are the network namespaces in which they run, `first` is the index of the first one.
    """
    addresses = addresses or find_free_addresses(len(projects))
    processes = []
    for index, project in enumerate(projects, first):
        variables = make_tf_config(addresses, index) if len(addresses) > 1 else {}
        host = ["ip", "netns", "exec", hosts[index]] if hosts else []
        processes.append(
            subprocess.Popen(
                [*host, sys.executable, "-c", code],
                cwd=project.folder,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes, code=0, seconds=None):
    """Wait for processes, which may have to end in time; return what each printed."""
    printed = [process.communicate(timeout=seconds)[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == code, text
    return printed


def wait_for_epoch(process, number):
    """Wait until a training has completed that epoch."""
    for line in process.stdout:
        if line.startswith(f"epoch {number} of"):
            return
    pytest.fail("the training has ended")


def find_errors(printed):
    """Return the lines with errors that a process printed."""
    assert "Traceback" not in printed
    return [line for line in printed.splitlines() if line.startswith("error: ")]


def results(project):
    """Return the MD5 of the outputs of the training."""
    outputs = ("model.keras", "history.csv", "trace.csv")
    return [compute_md5(project.folder / "data/model" / path) for path in outputs]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [*zip(KINDS, (4, 2, 3, 2), strict=True)])
def test_any_number_of_workers_gives_the_same_bytes(clones, results_alone, kind, count):
    projects = clones(count, KINDS[kind])
    printed = finish(start_workers(projects))
    assert all(text.count(f"{count} workers, 4 replicas") == 1 for text in printed)
    assert results(projects[0]) == results_alone(KINDS[kind])
    for other in projects[1:]:
        assert not (other.folder / "data/model").exists()
        assert not (other.folder / "data/checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "count"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 2)])
def test_others_end_and_a_later_run_resumes(clones, results_alone, kill, count):
    """A worker dies or hangs; one process goes on from the checkpoint of worker 0."""
    projects = clones(count, LONG)
    addresses = find_free_addresses(count)
    processes = start_workers(projects, addresses)
    wait_for_epoch(processes[0], 2)
    processes[1].send_signal(kill)
    for text in finish([*processes[:1], *processes[2:]], code=1, seconds=120):
        assert find_errors(text) == [f"error: worker 1 ({addresses[1]}) no longer answers"]
    processes[1].kill()
    processes[1].communicate()
    assert not (projects[0].folder / "data/model/model.keras").exists()
    (resumed,) = finish(start_workers([projects[0]]))
    assert "resuming after epoch" in resumed
    assert results(projects[0]) == results_alone(LONG)


@pytest.mark.slow
def test_worker_that_dies_when_the_result_is_saved_loses_nothing(clones, results_alone):
    dying = "import os; from stages.model import ensemble\n"
    dying += "ensemble.average_members = lambda _: os._exit(9)\n" + TRAIN
    values = SHORT
    projects, addresses = clones(2, values), find_free_addresses(2)
    processes = [
        *start_workers(projects[:1], addresses),
        *start_workers(projects[1:], addresses, dying, first=1),
    ]
    finish(processes[1:], code=9)
    finish(processes[:1])
    assert results(projects[0]) == results_alone(values)


@pytest.mark.slow
def test_faults_before_training_write_nothing(clones):
    """A worker that never comes, an address in use, an unreadable TF_CONFIG."""
    impatient = "from stages.cluster import transport; transport.PATIENCE = 2\n" + TRAIN
    projects = clones(3, {})
    addresses = find_free_addresses(2)
    with socket.create_server(split_address(addresses[1])):
        processes = [
            *start_workers(projects[:1], addresses, impatient),
            *start_workers(projects[1:2], addresses, first=1),
            *start_workers(projects[2:], ["a:1", "b"]),
        ]
        lines = [find_errors(text) for text in finish(processes, code=1)]
    assert [len(each) for each in lines] == [1, 1, 1]
    assert lines[0][0].startswith(f"error: worker 1 ({addresses[1]}) did not start within 2 s")
    assert f"cannot listen at {addresses[1]}: Address already in use" in lines[1][0]
    assert "'b' is not an address such as host:2222" in lines[2][0]
    for project in projects:
        assert not (project.folder / "data/model").exists()
        assert not (project.folder / "data/checkpoint").exists()


@pytest.mark.slow
@pytest.mark.linux
def test_another_user_is_not_served(clones, results_alone, stranger):
    """Before, while and after the workers connect, at all addresses of the machine."""
    values = SHORT
    projects, addresses = clones(2, values), find_free_addresses(2)
    ports = [split_address(address)[1] for address in addresses]
    tried = [f"{host}:{each}" for host in ("127.0.0.1", "127.0.0.9", "::1") for each in ports]
    with stranger(*tried) as results_of_stranger:
        finish(start_workers(projects, addresses))
    assert "served" not in results_of_stranger
    assert {"closed", "ConnectionResetError"} & {*results_of_stranger}  # while workers connected
    assert results(projects[0]) == results_alone(values)


@pytest.mark.slow
def test_difference_between_workers_is_named(clones):
    projects = clones(2, {"train.epochs": 1})
    projects[1].set({"train.seed": 99})
    host = socket.gethostname()
    for text in finish(start_workers(projects), code=1):
        message = f"error: worker 1 ({host}) and worker 0 ({host}) differ in train.seed"
        assert find_errors(text) == [message]
    assert not (projects[0].folder / "data/model").exists()


# The launcher


def test_wrong_numbers_of_workers_are_one_line(prepared):
    for count, message in {
        "0": "error: the number of workers is 0, expected 1 to 4\n",
        "-1": "error: the number of workers is -1, expected 1 to 4\n",
        "5": "error: there are 5 workers and train.replicas is 4: each worker computes at least "
        "one replica; start at most 4 workers or raise train.replicas\n",
    }.items():
        command = ("python", "-m", "tools.worker", "--local", count)
        assert prepared.run(*command, code=1).stderr == message


@pytest.mark.slow
def test_local_workers_run_under_dvc(clones, results_alone):
    """Workers start only if `train` runs. Ctrl-C ends them all and loses nothing."""
    (project,) = clones(1, LONG)
    launcher = [sys.executable, "-m", "tools.worker", "--local", "2"]
    process = subprocess.Popen(
        launcher,
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=allow_interrupts,
    )
    wait_for_epoch(process, 2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len([child for child in children if "stages.train" in child.cmdline()]) == 2
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode
    (line,) = find_errors(text)
    assert "interrupted; data/checkpoint/checkpoint.npz holds all complete epochs" in line
    assert psutil.wait_procs(children, timeout=10)[1] == []
    resumed = project.run("dvc", "repro", "train").stdout
    assert "resuming after epoch" in resumed
    assert results(project) == results_alone(LONG)
    assert "workers" not in project.run(*launcher, "train").stdout
    project.set({"train.learning_rate": 1e30, "train.epochs": 1})
    failed = project.run(*launcher, "train", code=255)
    assert "2 workers, 4 replicas" in failed.stdout
    (line,) = find_errors(failed.stderr)
    assert "the loss is NaN" in line


# Several machines


def run_ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """The names of three network namespaces, like hosts, and of the one that is their switch.

    Their packets are delayed if the kernel can do that (netem), or else limited to 20 Mbit/s.
    """
    if os.geteuid():
        pytest.skip("needs root for network namespaces")
    if not (shutil.which("ip") and shutil.which("tc")):
        miss("`ip` and `tc`; on Debian: apt-get install iproute2")
    names = [f"mnist{os.getpid()}-{i}" for i in (0, 1, 2, "switch")]
    *hosts, switch = names
    try:
        for name in names:
            run_ip("netns", "add", name)
        run_ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", switch, "link", "set", "bridge", "up")
        for i, host in enumerate(hosts):
            cable = ["cable", "type", "veth", "peer", f"port{i}", "netns", switch]
            run_ip("-n", host, "link", "add", *cable)
            run_ip("-n", host, "address", "add", f"10.99.0.{i + 1}/24", "dev", "cable")
            for link in ("lo", "cable"):
                run_ip("-n", host, "link", "set", link, "up")
            run_ip("-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            tc = ["tc", "-n", host, "qdisc", "add", "dev", "cable", "root"]
            slower = [*tc, "netem", "delay", "2ms"]
            if subprocess.run(slower, check=False, capture_output=True).returncode:
                limit = ["rate", "20mbit", "burst", "32kbit", "latency", "500ms"]
                subprocess.run([*tc, "tbf", *limit], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces do not work here: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.linux
def test_pulled_cable_ends_all_hosts(clones, results_alone, hosts):
    """All hosts end within two minutes. Two of them resume, and end in the same bytes."""
    projects = clones(3, LONG)
    addresses = [f"10.99.0.{i + 1}:2222" for i in range(3)]
    processes = start_workers(projects, addresses, hosts=hosts)
    wait_for_epoch(processes[0], 2)
    run_ip("-n", hosts[3], "link", "set", "port1", "nomaster")  # the switch drops its packets
    printed = finish(processes, code=1, seconds=120)
    for i in (0, 2):
        assert find_errors(printed[i]) == [f"error: worker 1 ({addresses[1]}) no longer answers"]
    assert len(find_errors(printed[1])) == 1
    two = addresses[::2]
    printed = finish(start_workers(projects[::2], two, hosts=hosts[::2]))
    assert all("resuming after epoch" in text for text in printed)
    assert results(projects[0]) == results_alone(LONG)


@pytest.fixture
def ssh(tmp_path):
    """The command that logs in at a real sshd on loopback, with a key made for it."""
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    if not (sshd and shutil.which("ssh")):
        miss("sshd and ssh; on Debian: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it
    key, port = tmp_path / "key", find_free_addresses(1)[0].rpartition(":")[2]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\n"
        "StrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n"
    )
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
    assert b"listening" in server.stderr.readline()
    known = f"UserKnownHostsFile={tmp_path / 'known_hosts'}"
    options = ["-i", str(key), "-p", port, "-o", "StrictHostKeyChecking=no", "-o", known]
    yield ["ssh", *options, "127.0.0.1"]
    server.terminate()
    server.communicate()


@pytest.mark.slow
@pytest.mark.linux
def test_launcher_runs_over_ssh(clones, results_alone, ssh):
    """Worker 1 is started with ssh in another clone, as docs/cluster.md says."""
    values = SHORT
    projects = clones(2, values)
    addresses = [
        address.replace(".1:", f".{i + 2}:") for i, address in enumerate(find_free_addresses(2))
    ]
    launcher = [sys.executable, "-m", "tools.worker", "--hosts", ",".join(addresses), "--index"]
    other = subprocess.Popen(
        [*ssh, f"cd {shlex.quote(str(projects[1].folder))} && {shlex.join([*launcher, '1'])}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    projects[0].run(*launcher, "0", "train")
    assert "2 workers, 4 replicas" in finish([other])[0]
    assert results(projects[0]) == results_alone(values)
    assert not (projects[1].folder / "data/model").exists()


# Schedulers


def read_blocks(language):
    """Return the blocks of code in that language in docs/cluster.md."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_batch_script_starts_a_worker_in_each_clone(tmp_path):
    """A stand-in for `srun` runs the tasks one after another, with SLURM's variables."""
    (script,) = [block for block in read_blocks("bash") if "tools.worker" in block]
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nfor i in 0 1; do SLURM_PROCID=$i "$@"; done\n')
    srun.chmod(0o755)
    for i in range(2):
        python = tmp_path / f"mnist-{i}/.venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\necho "$(pwd)" "$@"\n')
        python.chmod(0o755)
    (tmp_path / "script").write_text(script)
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", "-eu", tmp_path / "script"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/mnist-{i} -m tools.worker --slurm" for i in range(2)
    ]
    assert done.stderr == ""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.M))
    assert options["ntasks-per-node"] == "1"


def test_manifest_fits_the_launcher():
    (text,) = [block for block in read_blocks("yaml") if "tools.worker" in block]
    service, job = YAML(typ="safe").load_all(text)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(zip(*[iter(container["args"])] * 2, strict=True))
    name, subdomain = job["metadata"]["name"], pod["subdomain"]
    assert arguments == {"--job": name, "--service": subdomain, "--completions": "2"}
    assert service["metadata"]["name"] == subdomain
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["clusterIP"] == "None"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == f"{container['workingDir']}/data"
