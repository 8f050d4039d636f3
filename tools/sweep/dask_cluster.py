"""Run experiments on Dask workers, and keep each as soon as it is finished."""

import logging
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
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from dvc_verify.git import ask_git, run_git
from stages.core import machine
from stages.core.errors import StageError
from stages.core.files import write_bytes, write_text
from stages.core.paths import REPORTS
from tools.compare.revision import Result, read_commit, resolve_commit
from tools.sweep import dask_worker
from tools.sweep.machines import find_difference
from tools.sweep.runs import Run, choose_names, find_finished, require_commit

LOGS = REPORTS / "sweep"
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@dataclass(frozen=True)
class Place:
    """Where to run experiments."""

    jobs: int = 1  # workers on this machine, or
    cluster: str | None = None  # the address of a Dask scheduler
    models: bool = False  # bring the trained networks from the cluster's workers to DVC's cache


@contextmanager
def connect(place: Place) -> Iterator[Client]:
    """Yield a client of the cluster, or of one that is started on this machine and ends with it.

    Raises StageError if no scheduler answers, or if a worker may compute other bytes.
    """
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors get one line below
    # The workers have no copy of the project.
    for module in (dask_worker, machine):
        cloudpickle.register_pickle_by_value(module)
    if place.cluster:
        try:
            client = Client(place.cluster)
        except (OSError, ValueError) as error:
            raise StageError(f"{place.cluster}: no Dask scheduler answers: {error}") from error
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


def make_job(commit: str, name: str, run: Run, place: Place) -> dict[str, Any]:
    """Return what tools.sweep.job has to know of a run."""
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
        "name": name,
        "overrides": list(run.overrides),
        "prefix": ask_git("rev-parse", "--show-prefix"),
        "reference": str(ExpRefInfo(commit, name)),
    }


def keep(job: dict[str, Any], done: dict[str, Any]) -> None:
    """Add the experiment to the user's repository, and its model to DVC's cache."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "experiment.bundle"
        bundle.write_bytes(done["bundle"])
        reference = job["reference"]
        run_git("fetch", "--quiet", "--no-tags", str(bundle), f"{reference}:{reference}")
    with Repo() as repo:
        for md5, content in done["models"].items():
            path = Path(repo.cache.local.oid_to_path(md5))
            if not path.exists():
                write_bytes(path, content)
                path.chmod(0o444)  # as DVC protects the files of its cache


def explain(done: dict[str, Any], log: Path) -> str:
    """Return why a run failed: the error message of its stage, and where all of its output is."""
    lines = [line.strip() for line in done["log"].splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("error: ")] or lines or ["no output"]
    return f"{found[-1].removeprefix('error: ')} (all output: {log})"


class Progress:
    """One line that says how far a sweep is."""

    def __init__(self, count: int) -> None:
        """Prepare for `count` runs."""
        self.count = count
        self.seconds: list[float] = []  # of each run that is done
        self.failed = 0
        self.shown = ""
        self.terminal = sys.stdout.isatty()

    def show(self, slots: int) -> None:
        """Show the line, over the last one on a terminal; elsewhere only if it has changed.

        `slots` is the number of runs that the workers can do at a time.
        """
        done = len(self.seconds)
        left = self.count - done - self.failed
        running = min(slots, left)
        line = f"{done} of {self.count} done, {running} running, {self.failed} failed"
        if done and running:
            rest = sum(self.seconds) / done * left / running
            line += f", about {format_time(rest)} left"
        if self.terminal:
            print(f"\r{line}\x1b[K", end="", flush=True)
        elif line != self.shown:
            print(line, flush=True)
        self.shown = line

    def print(self, text: str) -> None:
        """Print a line of text above the progress line."""
        print(f"\r{text}\x1b[K" if self.terminal else text, flush=True)


def format_time(seconds: float) -> str:
    """Return a duration for people."""
    minutes = seconds / 60
    if minutes < 1:
        return "1 minute" if seconds > 45 else f"{max(5, 5 * round(seconds / 5))} seconds"
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"


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
    names = choose_names(commit, left)
    bundle = make_bundle()
    progress = Progress(len(left))
    try:
        with connect(place) as client:
            shared = client.submit(bytes, bundle, key=f"commit-{uuid4().hex}")
            run_job = send_code(dask_worker.run_job)
            waiting: dict[Future, tuple[Run, dict[str, Any]]] = {}
            for run in left:
                job = make_job(commit, names[run], run, place)
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
        progress.print("")
        done = f"{len(progress.seconds)} of {len(left)} runs are done and kept"
        raise StageError(
            f"{str(error) or 'interrupted'}; {done}, and the same command does the others"
        ) from None
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
    if progress.terminal:
        print()


def collect(future: Future, run: Run, job: dict[str, Any], progress: Progress) -> Result | None:
    """Keep the result of a run and return it, or report why it failed and return None."""
    if future.status == "finished":
        done = future.result()
        if not done["code"]:
            keep(job, done)
            progress.seconds.append(done["seconds"])
            return read_commit(job["name"], resolve_commit(job["reference"]))
        log = LOGS / f"{job['name']}.log"
        write_text(log, done["log"])
        reason = explain(done, log)
    else:
        reason = str(future.exception())  # KilledWorker: several workers were killed
    progress.failed += 1
    progress.print(f"failed: {run.label}: {reason}")
    return None
