"""A small clone of the project, under real git and DVC, and what its stages really use."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
SMALL = {
    "download.dataset": "digits",
    "model.architecture": "dense",
    "model.hidden_units": [16],
    "train.epochs": 2,
    "plot.dpi": 60,
}


class Project:
    """A clone of the project as it is in the working tree, committed, with an empty cache."""

    def __init__(self, folder: Path, values: dict[str, object] = SMALL) -> None:
        self.folder = folder
        listed = self.run("git", "-C", str(ROOT), "ls-files", "-z", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("data/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.set(values)
        self.run("git", "init", "-q")
        self.commit("start")

    def run(
        self, *command: str, cwd: Path | None = None, code: int = 0
    ) -> subprocess.CompletedProcess:
        bin_folder = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        result = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=environment,
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
        """Go back to the last commit, as README says."""
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q", "--force")

    def repro(self) -> list[str]:
        """Run `dvc repro` and return the stages that really ran."""
        return re.findall(r"^Running stage '(\w+)'", self.run("dvc", "repro").stdout, re.M)

    def set(self, values: dict[str, object]) -> None:
        yaml = YAML()
        path = self.folder / "params.yaml"
        content = yaml.load(path)
        for key, value in values.items():
            *parents, last = key.split(".")
            section = content
            for parent in parents:
                section = section[parent]
            section[last] = value
        yaml.dump(content, path)


def heed_interrupts() -> None:
    """Let a child process end at Ctrl-C even where the tests run in the background, ignoring it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def outputs(stage: dict) -> list[str]:
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return sorted(next(iter(out)) if isinstance(out, dict) else out for out in listed)


def graph(folder: Path = ROOT) -> dict[str, dict]:
    """Return the stages of dvc.yaml, by name."""
    return YAML(typ="safe").load(folder / "dvc.yaml")["stages"]


STAGES = list(graph())  # in the order in which they run


def used(project: Project, stage: str) -> dict[str, list[str]]:
    """Return what a stage really used, in the form in which dvc.yaml lists it.

    A file in a folder that dvc.yaml lists counts as that folder.
    """
    result = project.run("python", "-m", "tests.helpers.spy", f"stages.{stage}")
    found = json.loads(re.search(r"^USED (.*)$", result.stdout, re.M)[1])
    listed = graph(project.folder)[stage]["deps"]
    deps = {
        next((dep for dep in listed if path == dep or path.startswith(f"{dep}/")), path)
        for path in found["deps"]
    }
    return found | {"deps": sorted(deps)}
