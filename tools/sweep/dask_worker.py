"""What a Dask worker does for one run. Dask sends this function to the worker.

The worker needs the installed environment, but no copy of the project. So this module imports
nothing of the project: the commit's own code arrives in a git bundle and runs in its own process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distributed import get_worker

# Variables that affect git, DVC or the stages.
FOREIGN = ("DVC_EXP_", "DVC_ROOT", "DVC_STAGE", "GIT_", "TENSORBOARD_LOGDIR", "TF_CONFIG")
SECONDS = 0.5  # between two checks whether the run is still wanted


def run_job(bundle: bytes, job: dict[str, Any]) -> dict[str, Any]:
    """Run one experiment in a new clone of the commit in `bundle`; `job` is for tools.sweep.job.

    Returns `seconds`, `code` (the exit code of the run), `log` (what it printed), and, after a
    successful run, `bundle` (the experiment) and `models` (their bytes by MD5).

    The run ends early if the command no longer waits for it, or if this worker is killed.
    """
    worker = get_worker()
    key = worker.get_current_task()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=worker.local_directory, prefix="run-") as name:
        folder = Path(name)
        (folder / "commit.bundle").write_bytes(bundle)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith(FOREIGN)
        }
        programs = Path(sys.executable).parent
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        environment["DVC_SITE_CACHE_DIR"] = str(folder / "site")
        # The hooks of the worker's user must not run.
        git = ["git", "-c", "advice.detachedHead=false", "-c", "core.hooksPath=/dev/null"]
        clone = [*git, "clone", "--quiet", "--template=", "commit.bundle"]
        with (folder / "log").open("wb") as log:
            code = subprocess.run(
                [*clone, "clone"], cwd=folder, env=environment, stdout=log, stderr=log, check=False
            ).returncode
            if not code:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tools.sweep.job", str(folder / "job.json")],
                    cwd=folder / "clone" / job["prefix"],
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
        found = {path.name: path.read_bytes() for path in folder.glob("models/*")}
        experiment = folder / "experiment.bundle"
        return {
            "seconds": time.monotonic() - start,
            "code": code,
            "log": (folder / "log").read_text(encoding="utf-8", errors="replace"),
            "bundle": None if code else experiment.read_bytes(),
            "models": found,
        }
