"""Run experiments on Dask workers, and keep each as soon as it is finished."""

import argparse
import hashlib
import logging
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, Future, LocalCluster, as_completed
from distributed.comm import CommClosedError, get_address_host_port
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo
from tqdm import tqdm

from dvc_verify.git import ask_git, run_git
from stages.core import machine
from stages.core.errors import StageError
from stages.core.files import write_text
from stages.core.paths import REPORTS
from stages.core.terminal import make_printable
from tools.shared import dask_worker
from tools.shared.revision import Result, read_commit, resolve_commit
from tools.shared.runs import Run, find_finished, name_experiments, require_commit

MOST_FRAMES = 1 << 16  # in a Dask message; text, read as a number of frames, is far more


def parse_count(text: str, above: int = 0) -> int:
    """Return a whole number above a limit, for argparse."""
    with suppress(ValueError):
        if (number := int(text)) > above:
            return number
    raise argparse.ArgumentTypeError(f"expected a whole number above {above}, found {text!r}")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to run: `jobs`, `cluster` and `models`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=parse_count, default=1, help="how many runs at a time on this machine"
    )
    where.add_argument("--cluster", metavar="ADDRESS", help="the address of a Dask scheduler")
    parser.add_argument(
        "--models",
        action="store_true",
        help="with --cluster: also bring the trained networks, for projects without a DVC remote",
    )


def check_scheduler(address: str) -> None:
    """Raise OSError or ValueError unless a Dask scheduler answers.

    Dask would wait forever for any other program. A scheduler speaks first: it sends the number of
    frames of its message, in eight bytes. With TLS, Dask itself finds the fault.
    """
    if address.startswith("tls://"):
        return
    with socket.create_connection(get_address_host_port(address), timeout=10) as connection:
        if not 0 < int.from_bytes(connection.recv(8), "little") < MOST_FRAMES:
            raise ValueError("another program listens there")


@contextmanager
def connect(jobs: int, address: str | None) -> Iterator[Client]:
    """Yield a client of the cluster at an address, or of `jobs` threads of this process.

    Raises StageError if no scheduler answers, or if a worker may compute other bytes.
    """
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error gets one line below
    if address is None:
        with (
            tempfile.TemporaryDirectory() as folder,
            LocalCluster(
                n_workers=1,
                threads_per_worker=jobs,
                processes=False,  # each run has a process of its own
                memory_limit=None,
                dashboard_address="127.0.0.1:0",  # any free port, not 8787
                worker_dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                local_directory=folder,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        check_scheduler(address)
        client = Client(address)
    except (OSError, ValueError) as error:
        raise StageError(
            f"{address}: no Dask scheduler answers: {error}; a scheduler's port is 8786 unless you "
            "chose another, and 8787 is the port of its dashboard"
        ) from error
    # The workers have no copy of the project.
    for module in (dask_worker, machine):
        cloudpickle.register_pickle_by_value(module)
    with client:
        if not client.nthreads():
            print(f"waiting for a worker of {address}", flush=True)
            client.wait_for_workers(1)
        here = machine.collect_fingerprint()
        for name, there in client.run(machine.collect_fingerprint).items():
            if difference := dask_worker.find_difference(here, there):
                raise StageError(f"the worker {name} may compute other bytes: {difference}")
        yield client


def submit(
    client: Client, commit: str, runs: Sequence[Run], local: bool, models: bool
) -> dict[Future, Run]:
    """Send the runs to the workers. They end early if the client is closed before they are done."""
    code = dask_worker.run_job
    job = {
        "author": {key: ask_git("config", key) or "sweep" for key in ("user.name", "user.email")},
        "fingerprint": machine.collect_fingerprint(),
        "models": models and not local,
        "prefix": ask_git("rev-parse", "--show-prefix"),
        "project": str(Path.cwd()) if local else None,
    }
    with tempfile.TemporaryDirectory() as folder:
        # Not standard output, `-`, which git takes for a file name in a folder of the repository.
        path = Path(folder) / "commit.bundle"
        run_git("bundle", "create", "--quiet", str(path), "HEAD")
        bundle = client.submit(bytes, path.read_bytes(), pure=False)
    return {
        client.submit(
            lambda *arguments: code(*arguments),  # Dask sends its code, but only a name of `code`
            bundle,
            job
            | {
                "name": run.name,
                "overrides": run.overrides,
                "reference": name_reference(commit, run),
            },
            pure=False,
        ): run
        for run in runs
    }


def name_reference(commit: str, run: Run) -> str:
    """Return the git reference of a run's experiment."""
    return str(ExpRefInfo(commit, run.name))


def keep(reference: str, done: Mapping[str, Any]) -> None:
    """Add the experiment to the user's repository, and its model to DVC's cache, under its MD5.

    A second sweep at the same time may have added the same experiment, with the same bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "experiment.bundle"
        bundle.write_bytes(done["bundle"])
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc")
        run_git("fetch", *options, str(bundle), f"+{reference}:{reference}")
    if done["model"]:
        md5 = hashlib.md5(done["model"], usedforsecurity=False).hexdigest()
        with Repo() as repo:
            cache = repo.cache.local
            if not cache.exists(md5):
                cache.add_bytes(md5, done["model"])
                cache.protect(cache.oid_to_path(md5))


def collect(future: Future, commit: str, run: Run) -> Result | str:
    """Keep the result of a run and return it, or return why the run failed.

    Raises CancelledError if the connection to the scheduler is lost.
    """
    if error := future.exception():  # KilledWorker: several workers were killed
        return str(error)
    done, reference = future.result(), name_reference(commit, run)
    if not done["code"]:
        keep(reference, done)
        return read_commit(str(run.name), resolve_commit(reference))
    log = REPORTS / f"sweep/{run.name}.log"
    write_text(log, done["log"])
    return f"{find_reason(done['log'])} (all output: {log})"


def find_reason(log: str) -> str:
    """Return why a run failed: the error message of its stage, or the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no output"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines)[-1]


def run_all(
    runs: Sequence[Run], jobs: int = 1, cluster: str | None = None, models: bool = False
) -> dict[str, Result]:
    """Run the experiments that have not run before, and return the results of all, by Run.text.

    `jobs` of them run at a time on this machine, or all on a Dask cluster, from which `models`
    brings the trained networks. A run that fails is reported, and is not in the result. Raises
    StageError if the user interrupts; what is finished is kept.
    """
    commit = require_commit()
    distinct = {run.text: run for run in reversed(runs)}  # of those with equal text, the first
    finished = find_finished(commit, distinct.values())
    left = [run for run in reversed(distinct.values()) if run.text not in finished]
    if finished:
        print(f"{len(finished)} of {len(distinct)} runs were done before", flush=True)
    if not left:
        return finished
    left, done, failed = name_experiments(commit, left), 0, 0
    bar = tqdm(total=len(left), unit="run", file=sys.stdout, disable=None)  # None: no bar in a pipe

    def show_progress(client: Client, waiting: Mapping[Future, Run]) -> None:
        running = min(sum(client.nthreads().values()), len(waiting))
        line = f"{done} of {len(left)} done, {running} running, {failed} failed"
        bar.write(line, sys.stdout)

    try:
        with bar, connect(jobs, cluster) as client:
            waiting = submit(client, commit, left, cluster is None, models)
            show_progress(client, waiting)
            for future in as_completed(waiting):
                run = waiting.pop(future)
                result = collect(future, commit, run)
                bar.update()
                if isinstance(result, Result):
                    done, finished[run.text] = done + 1, result
                else:
                    failed += 1
                    bar.write(make_printable(f"failed: {run.label}: {result}"), sys.stdout)
                show_progress(client, waiting)
    except (KeyboardInterrupt, CancelledError, CommClosedError) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        raise StageError(
            f"{'interrupted' if interrupted else 'the scheduler no longer answers'}; {done} of "
            f"{len(left)} runs are done and kept, and the same command does the others"
        ) from None
    return finished
