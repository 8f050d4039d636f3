"""A small clone of the project, under real git and DVC, and what its stages really use."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from . import fork_server
from .checks import read_contents
from .parameters import DEFAULTS, change_file

ROOT = Path(__file__).parents[2]
AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
SMALL = {
    "download.dataset": "digits",
    "model.architecture": "dense",
    "model.hidden_units": [16],
    "model.seed": 1,
    "train.seed": 1,
    "train.epochs": 2,
    "plot.dpi": 60,
}


class Project:
    """A folder with a clone of the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, values: dict[str, object] = SMALL) -> "Project":
        """Clone the project as it is in the working tree, with these parameters; commit it.

        The other parameters have the values in DEFAULTS, whatever params.yaml holds. The clone has
        no results and an empty cache.
        """
        project = cls(folder)
        listed = project.run("git", "-C", str(ROOT), "ls-files", "-z", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("data/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / "dvc.lock").unlink(missing_ok=True)
        project.set(DEFAULTS | values)
        project.run("git", "init", "-q", "--initial-branch=main")
        project.commit("start")
        return project

    def copy(self, folder: Path) -> "Project":
        """Copy the project with its results and its cache to a folder that does not exist yet."""
        self.run("cp", "-a", str(self.folder), str(folder))
        return Project(folder)

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        code: int = 0,
        programs: Path | None = None,
    ) -> subprocess.CompletedProcess:
        """Run a command, which must end with the exit code `code`, and return what it printed.

        It finds the programs in the folder `programs` first, and then those of the fork server.
        """
        folders = (programs, Path(fork_server.find("python")).parent, os.environ["PATH"])
        result = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=os.environ | {"PATH": os.pathsep.join(map(str, filter(None, folders)))},
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode == code, f"{command}:\n{result.stdout}\n{result.stderr}"
        return result

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", *AUTHOR, "commit", "-q", "-m", message)

    def restore(self) -> None:
        """Go back to the last commit."""
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q", "--force")

    @contextmanager
    def undo_changes(self) -> Iterator["Project"]:
        """Bring the project back to its present commit afterwards, even if a test fails."""
        commit = self.run("git", "rev-parse", "HEAD").stdout.strip()
        before = read_contents(self.folder / "data")
        try:
            yield self
        finally:
            self.run("git", "reset", "-q", "--hard", commit)
            self.run("git", "clean", "-q", "-d", "--force")
            shutil.rmtree(self.folder / "data/checkpoint", ignore_errors=True)
            if read_contents(self.folder / "data") != before:
                self.restore()

    def repro(self) -> list[str]:
        """Run `dvc repro` and return the stages that really ran."""
        return re.findall(r"^Running stage '(\w+)'", self.run("dvc", "repro").stdout, re.M)

    def run_stages(self, *stages: str) -> None:
        """Run stages without DVC, which would also copy their outputs to its cache."""
        for stage in stages:
            self.run("python", "-m", f"stages.{stage}")

    def set(self, values: dict[str, object]) -> None:
        """Change params.yaml; the keys are dotted, as in `train.seed`."""
        change_file(self.folder / "params.yaml", values)


def allow_interrupts() -> None:
    """Let Ctrl-C end a child process, even if the tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def list_outputs(stage: dict) -> list[str]:
    """Return the paths of all outputs of a stage in dvc.yaml."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return sorted(next(iter(out)) if isinstance(out, dict) else out for out in listed)


def read_graph(folder: Path = ROOT) -> dict[str, dict]:
    """Return the stages of dvc.yaml, by name."""
    return YAML(typ="safe").load(folder / "dvc.yaml")["stages"]


def list_declared(stage: dict) -> dict[str, list[str]]:
    """Return what dvc.yaml lists for a stage, in the form in which the spy says what it used."""
    return {
        # datasets holds your own images, which tests/test_sharing.py downloads.
        "deps": [path for path in stage["deps"] if path != "datasets"],
        "outputs": list_outputs(stage),
        "params": stage.get("params", []),
    }


STAGES = list(read_graph())  # in the order in which they run


def list_dependents(name: str) -> list[str]:
    """Return a stage and all that use its outputs, directly or not, in the order of STAGES."""
    stages, found, changed = read_graph(), [], set()
    for stage, content in stages.items():
        if stage == name or changed & set(content["deps"]):
            found.append(stage)
            changed |= set(list_outputs(content))
    return found


def spy_on_repro(project: Project, programs: Path) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Run `dvc repro` with every stage under the spy; return what each used and what was printed.

    DVC starts a stage with the `python` on the PATH: here a script in the folder `programs`.
    """
    programs.mkdir()
    script = programs / "python"
    python = fork_server.find("python")
    script.write_text(f'#!/bin/sh\nexec {python} -m tests.helpers.spy "$@"\n')
    script.chmod(0o755)
    printed = project.run("dvc", "repro", programs=programs).stdout
    return _used(project, printed), printed


def spy_on_stage(project: Project, stage: str) -> dict[str, list[str]]:
    """Run a stage under the spy, and return what it used."""
    printed = project.run("python", "-m", "tests.helpers.spy", "-m", f"stages.{stage}").stdout
    return _used(project, printed)[stage]


def _used(project: Project, printed: str) -> dict[str, dict[str, list[str]]]:
    """Return what each stage used, as the spy printed it, in the form of the lists in dvc.yaml.

    A file in a folder that dvc.yaml lists counts as that folder.
    """
    found = {}
    for stage, line in re.findall(r"^USED BY stages\.(\w+): (.*)$", printed, re.M):
        found[stage] = json.loads(line)
        # The checkpoint is gone when the training ends, so it is not an output.
        outs = [path for path in found[stage]["outputs"] if "checkpoint" not in path]
        found[stage]["outputs"] = outs
        listed = read_graph(project.folder)[stage]["deps"]
        deps = {
            next((dep for dep in listed if path == dep or path.startswith(f"{dep}/")), path)
            for path in found[stage]["deps"]
        }
        found[stage]["deps"] = sorted(deps)
    return found
