"""Run one experiment in a clone that a worker of a sweep has made for it.

The current folder is the project in the clone. JOB.json says what to run. The results are written
beside it: experiment.bundle and, if they are asked for, models/.

    python -m tools.sweep.job JOB.json
"""

import ctypes
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from dvc.cli import main as call_dvc
from dvc.repo import Repo

from dvc_verify.git import ask_git, run_git
from dvc_verify.lockfile import list_files, read_lock
from stages.core.errors import StageError, run
from stages.core.files import read_json
from stages.core.machine import collect_fingerprint
from stages.core.paths import MODEL
from tools.sweep.machines import find_difference


def end_with_parent() -> None:
    """Make the system kill this process when the Dask worker that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def use_cache(cache: str, local_config: str) -> None:
    """Use the cache of the user's project, which is on this machine, and its private settings."""
    with Repo() as repo:
        (Path(repo.dvc_dir) / "config.local").write_text(local_config, encoding="utf-8")
        with repo.config.edit("local") as settings:
            settings.setdefault("cache", {})["dir"] = cache
    call_dvc(["checkout", "--quiet", "--allow-missing"])


def pull_raw_data() -> bool:
    """Get the raw data from the DVC remote. Return whether there is a remote.

    What the remote does not have, the stage `download` gets.
    """
    with Repo() as repo:
        if not repo.config["core"].get("remote"):
            return False
    call_dvc(["pull", "--quiet", "download", *ask_git("ls-files", "*.dvc").splitlines()])
    return True


def collect_models(folder: Path) -> None:
    """Copy the trained network into `folder`, with its MD5 as name."""
    folder.mkdir()
    file = list_files(read_lock(), "outs")[MODEL.as_posix()]
    shutil.copyfile(MODEL, folder / file.md5)


def main() -> None:
    """Run the experiment, and write it to a bundle."""
    end_with_parent()
    path = Path(sys.argv[1])
    job: dict[str, Any] = read_json(path)
    difference = find_difference(job["fingerprint"], collect_fingerprint())
    if difference:
        raise StageError(f"this worker's results could have other bytes: {difference}")
    for name, value in job["author"].items():
        run_git("config", name, value)
    shared = job["cache"] is not None
    if shared:
        use_cache(job["cache"], job["local_config"])
    remote = not shared and pull_raw_data()
    settings = [text for override in job["overrides"] for text in ("--set-param", override)]
    code = call_dvc(["exp", "run", "--name", job["name"], *settings])
    if code:
        sys.exit(code)
    if remote and call_dvc(["push", "--quiet"]):
        raise StageError("the experiment ran, but its outputs could not be pushed to the remote")
    if job["models"]:
        collect_models(path.parent / "models")
    bundle = str(path.parent / "experiment.bundle")
    run_git("bundle", "create", "--quiet", bundle, f"^{job['commit']}", job["reference"])


if __name__ == "__main__":
    run(main)
