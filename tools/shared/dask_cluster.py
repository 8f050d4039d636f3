"""Run experiments on Dask workers, and keep each as soon as it is finished."""

import argparse
import hashlib
import logging
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudpickle
from distributed import Client, Future, LocalCluster, wait
from distributed.comm import get_address_host_port
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo
from tqdm import tqdm

from dvc_verify.git import ask_git, run_git
from stages.core import machine
from stages.core.errors import StageError
from stages.core.files import write_bytes, write_text
from stages.core.paths import REPORTS
from stages.core.terminal import make_printable
from tools.shared import dask_worker as worker
from tools.shared.machines import find_difference
from tools.shared.revision import Result, read_commit, resolve_commit
from tools.shared.runs import Run, choose_names, find_finished, require_commit

LOGS = REPORTS / "sweep"
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
MOST_FRAMES = 1 << 16  # in a Dask message; text, read as a number of frames, is far more


@dataclass(frozen=True)
class Place:
    """Where to run experiments."""

    jobs: int = 1  # workers on this machine, or
    cluster: str | None = None  # the address of a Dask scheduler
    models: bool = False  # bring the trained networks from the cluster's workers to DVC's cache


def parse_count(text: str, above: int = 0) -> int:
    """Return a whole number above a limit, for argparse."""
    with suppress(ValueError):
        if (number := int(text)) > above:
            return number
    raise argparse.ArgumentTypeError(f"expected a whole number above {above}, found {text!r}")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to run: the fields of Place."""
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


def read_place(arguments: argparse.Namespace) -> Place:
    """Return where to run."""
    return Place(arguments.jobs, arguments.cluster, arguments.models)


def check_scheduler(address: str) -> None:
    """Raise OSError or ValueError unless a Dask scheduler answers.

    Dask would wait forever for any other program. A scheduler speaks first: it sends the number of
    frames of its message, in eight bytes. With TLS, Dask itself finds the fault.
    """
    if address.startswith("tls://"):
        return
    host, port = get_address_host_port(address)
    with socket.create_connection((host, port), timeout=10) as connection:
        if not 0 < int.from_bytes(connection.recv(8), "little") < MOST_FRAMES:
            raise ValueError("another program listens there")


@contextmanager
def connect(place: Place) -> Iterator[Client]:
    """Yield a client of the cluster, or of one that is started on this machine and ends with it.

    Raises StageError if no scheduler answers, or if a worker may compute other bytes.
    """
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors get one line below
    # The workers have no copy of the project.
    for module in (worker, machine):
        cloudpickle.register_pickle_by_value(module)
    if place.cluster:
        try:
            check_scheduler(place.cluster)
            client = Client(place.cluster)
        except (OSError, ValueError) as error:
            raise StageError(
                f"{place.cluster}: no Dask scheduler answers: {error}; a scheduler's port is 8786 "
                "unless you chose another, and 8787 is the port of its dashboard"
            ) from error
        with client:
            check_workers(client, place.cluster)
            yield client
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=place.jobs,
            threads_per_worker=1,
            memory_limit=None,  # the memory is in the runs' own processes
            dashboard_address="127.0.0.1:0",  # any free port, not 8787
            scheduler_kwargs={"dashboard": False},
            security=True,  # encrypted, so that no other user of this machine can send it code
            local_directory=folder,
            preload=IGNORE_CTRL_C,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def send_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same. Dask sends its code, so workers need no copy of it.

    If a function can be imported here, Dask sends only its name.
    """
    return lambda *arguments: function(*arguments)


def check_workers(client: Client, address: str) -> None:
    """Wait for a worker. Raise StageError if one may compute other bytes than this machine."""
    if not client.nthreads():
        print(f"waiting for a worker of {address}", flush=True)
        client.wait_for_workers(1)
    here = machine.collect_fingerprint()
    for name, there in client.run(machine.collect_fingerprint).items():
        if difference := find_difference(here, there):
            raise StageError(f"the worker {name} may compute other bytes: {difference}")


def make_bundle() -> bytes:
    """Return a git bundle with the last commit, as HEAD, and its history."""
    with tempfile.TemporaryDirectory() as folder:
        # Not standard output, `-`, which git takes for a file name in a folder of the repository.
        bundle = Path(folder) / "commit.bundle"
        run_git("bundle", "create", "--quiet", str(bundle), "HEAD")
        return bundle.read_bytes()


def describe_jobs(commit: str, place: Place) -> dict[str, Any]:
    """Return what all runs have in common for tools.shared.dask_worker."""
    cache, local_config = None, ""
    if not place.cluster:
        with Repo() as repo:
            cache = str(repo.cache.local_cache_dir)
            private = Path(repo.dvc_dir) / "config.local"
            local_config = private.read_text(encoding="utf-8") if private.exists() else ""
    return {
        "author": {key: ask_git("config", key) or "sweep" for key in ("user.name", "user.email")},
        "cache": cache,
        "commit": commit,
        "fingerprint": machine.collect_fingerprint(),
        "local_config": local_config,
        "models": place.models and bool(place.cluster),
        "prefix": ask_git("rev-parse", "--show-prefix"),
    }


def keep(job: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    """Add the experiment to the user's repository, and its model to DVC's cache, under its MD5.

    A second sweep at the same time may have added the same experiment, with the same bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "experiment.bundle"
        bundle.write_bytes(done["bundle"])
        reference = job["reference"]
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc")
        run_git("fetch", *options, str(bundle), f"+{reference}:{reference}")
    if done["model"]:
        md5 = hashlib.md5(done["model"], usedforsecurity=False).hexdigest()
        with Repo() as repo:
            path = Path(repo.cache.local.oid_to_path(md5))
        if not path.exists():
            write_bytes(path, done["model"])
            path.chmod(0o444)  # as DVC protects the files of its cache


def find_reason(done: Mapping[str, Any], log: Path) -> str:
    """Return why a run failed: the error message of its stage, and where all of its output is."""
    lines = [line.strip() for line in done["log"].splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("error: ")] or lines or ["no output"]
    return f"{found[-1].removeprefix('error: ')} (all output: {log})"


class Progress:
    """How far a sweep is: on a terminal a line that changes, elsewhere a line for each change."""

    def __init__(self, count: int) -> None:
        """Prepare for `count` runs."""
        self.count, self.done, self.failed, self.line = count, 0, 0, ""
        self.bar = tqdm(
            total=count,
            file=sys.stdout,
            bar_format="{desc}, about {remaining} left",
            disable=not sys.stdout.isatty(),
        )

    def show(self, slots: int) -> None:
        """Show the progress. `slots` is the number of runs that the workers can do at a time."""
        running = min(slots, self.count - self.done - self.failed)
        line = f"{self.done} of {self.count} done, {running} running, {self.failed} failed"
        if self.bar.disable and line != self.line:
            print(line, flush=True)
        self.line = line
        self.bar.set_description_str(line)

    def end_run(self, failure: str = "") -> None:
        """Count a run, and report its failure if it has failed."""
        self.done += not failure
        self.failed += bool(failure)
        self.bar.update()
        if failure:
            self.bar.write(make_printable(failure), file=sys.stdout)


def run_all(runs: Sequence[Run], place: Place) -> dict[str, Result]:
    """Run the experiments that have not run before, and return the results of all, by Run.text.

    A run that fails is reported, and is not in the result. Raises StageError if the user
    interrupts; what is finished is kept.
    """
    require_commit()
    commit = resolve_commit("HEAD")
    distinct = {run.text: run for run in reversed(runs)}
    finished = find_finished(commit, distinct.values())
    left = [run for run in reversed(distinct.values()) if run.text not in finished]
    if finished:
        print(f"{len(finished)} of {len(distinct)} runs were done before", flush=True)
    if not left:
        return finished
    names, common, bundle = choose_names(commit, left), describe_jobs(commit, place), make_bundle()
    progress = Progress(len(left))
    try:
        with connect(place) as client:
            run_job = send_code(worker.run_job)
            shared = client.submit(bytes, bundle, key=f"commit-{uuid4().hex}")
            waiting: dict[Future, tuple[Run, dict[str, Any]]] = {}
            for run in left:
                job = common | {
                    "name": names[run],
                    "overrides": list(run.overrides),
                    "reference": str(ExpRefInfo(commit, names[run])),
                }
                key = f"{names[run]}-{uuid4().hex}"
                waiting[client.submit(run_job, shared, job, key=key)] = run, job
            try:
                for future in wait_for_each(client, waiting, progress):
                    run, job = waiting.pop(future)
                    if result := collect(future, run, job, progress):
                        finished[run.text] = result
            finally:
                client.cancel([*waiting, shared])
    except (KeyboardInterrupt, ConnectionError) as error:
        raise StageError(
            f"{str(error) or 'interrupted'}; {progress.done} of {len(left)} runs are done and "
            "kept, and the same command does the others"
        ) from None
    finally:
        progress.bar.close()
    return finished


def wait_for_each(
    client: Client, waiting: Mapping[Future, object], progress: Progress
) -> Iterator[Future]:
    """Yield each future when it is done, and show the progress meanwhile.

    Raises ConnectionError if the connection to the scheduler is lost.
    """
    while waiting:
        try:
            progress.show(sum(client.nthreads().values()))
            with suppress(TimeoutError):
                wait(list(waiting), timeout=1, return_when="FIRST_COMPLETED")
        except (OSError, CancelledError) as error:
            raise ConnectionError("the scheduler no longer answers") from error
        yield from [future for future in waiting if future.done()]
    progress.show(0)


def collect(future: Future, run: Run, job: dict[str, Any], progress: Progress) -> Result | None:
    """Keep the result of a run and return it, or report why it failed and return None."""
    reason = str(future.exception())  # KilledWorker: several workers were killed
    if future.status == "finished":
        done = future.result()
        if not done["code"]:
            keep(job, done)
            progress.end_run()
            return read_commit(job["name"], resolve_commit(job["reference"]))
        log = LOGS / f"{job['name']}.log"
        write_text(log, done["log"])
        reason = find_reason(done, log)
    progress.end_run(f"failed: {run.label}: {reason}")
    return None
