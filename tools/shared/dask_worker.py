"""What a Dask worker does for one run of a sweep.

Dask sends the function `run_job` to the worker, which needs the installed environment but no copy
of the project. The function clones the commit from a git bundle and starts this module there:

    python -m tools.shared.dask_worker JOB.json

The current folder is then the project in the clone. JOB.json says what to run. The results are
written beside it: experiment.bundle and, if it is asked for, the model.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from distributed import get_worker
from dvc.cli import main as call_dvc
from dvc.repo import Repo

from dvc_verify.git import ask_git, run_git
from stages.core.errors import StageError, run
from stages.core.files import read_json
from stages.core.machine import collect_fingerprint, promises_same_bytes
from stages.core.paths import MODEL

# Variables that affect git, DVC or the stages.
FOREIGN = ("DVC_EXP_", "DVC_ROOT", "DVC_STAGE", "GIT_", "TENSORBOARD_LOGDIR", "TF_CONFIG")
SECONDS = 0.5  # between two checks whether the run is still wanted

# Arguments: the job and the project's folder in the clone. No hooks of the worker's user run.
SCRIPT = """
git clone --quiet --template= -c core.hooksPath=/dev/null -c advice.detachedHead=false \
    commit.bundle clone && cd "clone/$2" && exec python -m tools.shared.dask_worker "$1"
"""


def run_job(bundle: bytes, job: dict[str, Any]) -> dict[str, Any]:
    """Run one experiment in a new clone of the commit in `bundle`; `job` becomes JOB.json.

    Returns `code` (the exit code of the run), `log` (what it printed), and, after a successful run,
    `bundle` (the experiment) and `model` (its bytes, if the job asks for them).

    The run ends early if the command no longer waits for it, or if this worker is killed. Uses
    nothing of the project, which the worker does not have.
    """
    worker = get_worker()
    key = worker.get_current_task()
    with tempfile.TemporaryDirectory(dir=worker.local_directory, prefix="run-") as name:
        folder = Path(name)
        (folder / "commit.bundle").write_bytes(bundle)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {n: value for n, value in os.environ.items() if not n.startswith(FOREIGN)}
        environment["DVC_SITE_CACHE_DIR"] = str(folder / "site")
        programs = str(Path(sys.executable).parent)
        if programs not in environment["PATH"].split(os.pathsep):
            environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["sh", "-c", SCRIPT, "sh", str(folder / "job.json"), job["prefix"]],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is for the command alone
            )
        try:
            while process.poll() is None:
                task = worker.state.tasks.get(key)
                wanted = task is not None and task.state != "cancelled"
                if not wanted or worker.status.name.startswith("clos"):
                    raise RuntimeError("the run was cancelled")
                time.sleep(SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        model = folder / "model.keras"
        return {
            "code": code,
            "log": (folder / "log").read_text(encoding="utf-8", errors="replace"),
            "bundle": None if code else (folder / "experiment.bundle").read_bytes(),
            "model": model.read_bytes() if model.exists() else None,
        }


def find_difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return why the machine `there` may compute other bytes than the one `here`, or "".

    docs/reproducibility.md says what the bytes depend on.
    """
    if promises_same_bytes(here) and not promises_same_bytes(there):
        return (
            f"its processor is {there['processor'] or there['machine']}, and the same bytes are "
            "promised only on Linux on arm64 and on x86-64 with FMA"
        )
    for name in sorted(here["libraries"].keys() | there["libraries"].keys()):
        expected, found = (side["libraries"].get(name, "missing") for side in (here, there))
        if expected != found:
            return f"{name} is {found} instead of {expected}"
    return ""


def use_cache(project: Path) -> None:
    """Use the cache of the user's project, which is on this machine, and its private settings.

    DVC's own writer of settings fails at a path that is not ASCII.
    """
    with Repo(str(project)) as repo:
        settings = ConfigObj(f"{repo.dvc_dir}/config.local", encoding="utf-8")
        settings.setdefault("cache", {})["dir"] = str(repo.cache.local_cache_dir)
    settings.filename = ".dvc/config.local"
    settings.write()
    call_dvc(["checkout", "--quiet", "--allow-missing"])


def pull_raw_data() -> bool:
    """Get the raw data from the DVC remote. Return whether there is a remote.

    What the remote does not have, the stage `download` gets.
    """
    with Repo() as repo:
        if not repo.config["core"].get("remote"):
            return False
    tracked = filter(None, ask_git("ls-files", "-z", "*.dvc").split("\0"))
    call_dvc(["pull", "--quiet", "download", *tracked])
    return True


def main() -> None:
    """Run the experiment, and write it to a bundle."""
    if sys.platform == "linux":  # the system kills this process when the Dask worker ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    path = Path(sys.argv[1])
    job: dict[str, Any] = read_json(path)
    if difference := find_difference(job["fingerprint"], collect_fingerprint()):
        raise StageError(f"this worker's results could have other bytes: {difference}")
    for name, value in job["author"].items():
        run_git("config", name, value)
    if job["project"]:
        use_cache(Path(job["project"]))
    remote = not job["project"] and pull_raw_data()
    settings = [text for override in job["overrides"] for text in ("--set-param", override)]
    if code := call_dvc(["exp", "run", "--name", job["name"], *settings]):
        sys.exit(code)
    if remote and call_dvc(["push", "--quiet"]):
        raise StageError("the experiment ran, but its outputs could not be pushed to the remote")
    if job["models"]:
        shutil.copyfile(MODEL, path.with_name("model.keras"))
    bundle = str(path.with_name("experiment.bundle"))
    run_git("bundle", "create", "--quiet", bundle, "^HEAD", job["reference"])


if __name__ == "__main__":
    run(main)
