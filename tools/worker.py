"""Run one worker of a training on several machines, or all workers on this machine.

Worker 0 runs `dvc repro`, and so the stage `train`. Every other worker runs
`dvc repro preprocess`, except with --local, and then the stage by itself; it writes no results.
TF_CONFIG tells each worker the addresses of all (docs/cluster.md).

    python -m tools.worker --local 4 [options and stages for dvc repro]
    python -m tools.worker --hosts host0:2222,host1:2222 --index 1
    python -m tools.worker --slurm
    python -m tools.worker --job NAME --service NAME --completions 4

The third form runs in a SLURM step with one task for each worker, the fourth in a pod of a
Kubernetes Indexed Job.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from stages.cluster.addresses import check_count, find_own_ips, read_tf_config, split_address
from stages.cluster.transport import PATIENCE
from stages.core.errors import StageError, run
from stages.model.settings import TrainParameters

PORT = 2222  # on machines of their own, workers can all use the same
TRAIN = [sys.executable, "-m", "stages.train"]
DVC = [sys.executable, "-m", "dvc", "repro"]


def make_tf_config(addresses: list[str], index: int) -> dict[str, str]:
    """Return the environment variable that tells a worker about all workers."""
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}


def find_free_addresses(count: int) -> list[str]:
    """Return addresses on the loopback interface whose ports are free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def read_variable(environment: Mapping[str, str], remedy: str, *names: str) -> str:
    """Return the first of these variables that a scheduler has set."""
    for name in names:
        if value := environment.get(name):
            return value
    raise StageError(f"{names[-1]} is not set; {remedy}")


def read_slurm(environment: Mapping[str, str]) -> tuple[list[str], int]:
    """Return the addresses of a SLURM step's tasks, one on each node, and the index of this one."""
    read = partial(read_variable, environment, "start this command with srun")
    index, count = int(read("SLURM_PROCID")), int(read("SLURM_NTASKS"))
    nodes = read("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    command = ["scontrol", "show", "hostnames", nodes]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode:
        raise StageError(f"{' '.join(command)} failed: {' '.join(found.stderr.split())}")
    hosts = found.stdout.split()
    if len(hosts) != count:
        raise StageError(f"{count} tasks on {len(hosts)} nodes: use --ntasks-per-node=1")
    return [f"{host}:{PORT}" for host in hosts], index


def read_kubernetes(
    environment: Mapping[str, str], job: str, service: str, completions: int
) -> tuple[list[str], int]:
    """Return the addresses of the pods of an Indexed Job, and the index of this pod."""
    remedy = "the Job needs completionMode: Indexed"
    index = int(read_variable(environment, remedy, "JOB_COMPLETION_INDEX"))
    return [f"{job}-{pod}.{service}:{PORT}" for pod in range(completions)], index


def wait_for_name(address: str) -> None:
    """Wait until the host of an address is known. A new pod gets its name after some seconds."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.getaddrinfo(split_address(address)[0], None)
            return
        time.sleep(1)


def run_locally(count: int, options: list[str], targets: list[str]) -> int:
    """Run all workers on this machine, and return the exit code of `dvc repro`.

    The other workers start only if the stage `train` will run, and end with `dvc repro`.
    """
    check_count(count, TrainParameters.read().replicas)
    prepared = call([*DVC, *options, "preprocess"])
    if prepared:
        return prepared
    plan = [*DVC, *options, "--dry", "--single-item", "train"]
    planned = subprocess.run(plan, check=False, capture_output=True, text=True).stdout
    # With --force, preprocess must not run again while the workers read its arrays.
    if "--force" in options:
        options, targets = [*options, "--downstream"], targets or ["train"]
    command = [*DVC, *options, *targets]
    if "Running stage 'train'" not in planned or count == 1:
        return call(command)
    addresses = find_free_addresses(count)
    with tempfile.TemporaryFile() as errors, ExitStack() as stack:
        for index in range(1, count):
            environment = os.environ | make_tf_config(addresses, index)
            environment.pop("TENSORBOARD_LOGDIR", None)  # worker 0 writes there
            # A session of its own, so that Ctrl-C reaches `dvc repro` alone.
            alone: Any = {"stdout": subprocess.DEVNULL, "start_new_session": True}
            other = subprocess.Popen(TRAIN, env=environment, stderr=errors, **alone)
            stack.enter_context(other)
            stack.callback(other.kill)
        code = call(command, make_tf_config(addresses, 0))
        errors.seek(0)
        for line in dict.fromkeys(errors.read().decode(errors="replace").splitlines()):
            # Worker 0 reports the same errors, except for an address that another cannot use.
            if code and (not line.startswith("error: ") or "TF_CONFIG" in line):
                print(line, file=sys.stderr)
        return code


def run_worker(addresses: list[str], index: int, options: list[str], targets: list[str]) -> int:
    """Run the worker `index`, and return the exit code of its last command."""
    variables = make_tf_config(addresses, index)
    # The stage checks all this too, but a mistake should be reported at once.
    read_tf_config(variables["TF_CONFIG"])
    check_count(len(addresses), TrainParameters.read().replicas)
    find_own_ips(addresses[index])
    if index == 0:
        return call([*DVC, *options, *targets], variables)
    return call([*DVC, *options, "preprocess"]) or call(TRAIN, variables)


def call(command: list[str], variables: Mapping[str, str] | None = None) -> int:
    """Run a command with more environment variables, and return its exit code.

    DVC starts the stages with the `python` of this environment. Ctrl-C also reaches the command,
    which then ends by itself; SIGTERM is passed on.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path} | dict(variables or {})
    with subprocess.Popen(command, env=environment) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def main() -> None:
    """Find out who the workers are, and run this one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--local", type=int, metavar="N", help="run N workers on this machine")
    way.add_argument("--hosts", metavar="HOST:PORT,...", help="the addresses of all workers")
    way.add_argument("--slurm", action="store_true", help="read the workers from SLURM's variables")
    way.add_argument("--job", metavar="NAME", help="the name of a Kubernetes Indexed Job")
    parser.add_argument("--index", type=int, help="with --hosts: the number of this worker, from 0")
    parser.add_argument("--service", help="with --job: the name of the headless Service")
    parser.add_argument("--completions", type=int, help="with --job: the number of pods")
    parser.add_argument("targets", nargs="*", help="stages for `dvc repro`; default: all")
    arguments, options = parser.parse_known_args()
    targets = arguments.targets
    if arguments.local is not None:
        sys.exit(run_locally(arguments.local, options, targets))
    if arguments.hosts:
        if arguments.index is None:
            parser.error("--hosts needs --index")
        addresses, index = arguments.hosts.split(","), arguments.index
    elif arguments.slurm:
        addresses, index = read_slurm(os.environ)
    else:
        if not (arguments.service and arguments.completions):
            parser.error("--job needs --service and --completions")
        addresses, index = read_kubernetes(
            os.environ, arguments.job, arguments.service, arguments.completions
        )
        wait_for_name(addresses[index])
    sys.exit(run_worker(addresses, index, options, targets))


if __name__ == "__main__":
    run(main)
