"""Measure accuracy over seeds, speed and memory, and write the tables of docs/.

Every training is a separate process in a fresh copy of the project, one at a time: seed 1 of every
recipe, then seed 2 of every recipe. So if the machine slows down, it affects all recipes equally.
Each result is appended to reports/benchmark.jsonl at once, so an interrupted run continues where it
stopped. A result is measured again if code, parameters, libraries or machine have changed since;
delete that file to measure everything again. Writes the tables to reports/benchmark.md and the plot
to reports/growth.png; with --docs, also into docs/.

    python -m benchmarks [--seeds N] [--recipes a,b] [--parts a,b] [--docs]
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from ruamel.yaml import YAML

from benchmarks import tables
from benchmarks.references import REFERENCES
from benchmarks.timers import RECORD
from dvc_verify.git import run_git
from dvc_verify.project import read_settings
from dvc_verify.run import make_environment
from stages import download, plot
from stages.core.errors import StageError, run
from stages.core.files import read_json, write_text
from stages.core.machine import collect_fingerprint
from stages.core.paths import GRAPH, METRICS, PARAMETERS, RAW, REPORTS
from stages.core.settings import read_yaml
from tools.recipe import RECIPES, check, merge_recipe

Result = dict[str, Any]  # what was recorded, by the name of the command or the stage
Command = tuple[str, ...]  # a name, and the words of the command

RECORDS = REPORTS / "benchmark.jsonl"
HERE = Path("benchmarks")
TIMERS = ("python", "-m", "benchmarks.timers")
SLOW = ("best", "small")  # measured only on request; small would take hours on MNIST
TWO_SEEDS = (*SLOW, "mnist_convnet")  # trainings of several minutes: two seeds at most
GROWN = "datasets/grown"
SWEPT = "fast"  # the recipe that is run with several seeds
PIPELINE = (GRAPH, Path("stages"))
COMMON = (Path("requirements.txt"), HERE / "timers.py")

FIRST = ("first", "dvc", "repro")
AUTHOR = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
# Runs belong to a commit. The raw and the prepared data are in DVC's cache.
BEFORE_SWEEP = (
    ("prepare", "dvc", "repro", "preprocess"),
    ("add", "git", "add", "--all"),
    ("commit", "git", *AUTHOR, "commit", "--quiet", "--message", "start"),
)


@dataclass(frozen=True)
class Trial:
    """One measurement, made once for each of its seeds."""

    part: str
    name: str
    parameters: str  # the text of params.yaml
    commands: tuple[Command, ...]  # that are run in a copy of the project; {seed} is the seed
    sources: tuple[Path, ...] = PIPELINE  # the files and folders whose code is measured
    sections: tuple[str, ...] = ()  # that it reads; empty for all
    stages: bool = True  # whether each stage is measured, too

    def count_seeds(self, asked: int) -> int:
        """Return the number of seeds to measure: one for larger training sets and sweeps."""
        most = 1 if self.part in ("growth", "sweep") else 2 if self.name in TWO_SEEDS else asked
        return min(asked, most)

    def compute_key(self, seed: int, machine: Mapping[str, Any]) -> str:
        """Return a hash of everything that the result may depend on."""
        digest = hashlib.sha256()
        for source in (*self.sources, *COMMON):
            for path in sorted(source.rglob("*.py")) if source.is_dir() else (source,):
                digest.update(path.read_bytes())
        content = YAML(typ="safe", pure=True).load(self.parameters)
        values = {section: content[section] for section in self.sections or content}
        what = [self.part, self.name, self.commands, seed, values, machine, digest.hexdigest()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def measure(self, seed: int) -> Result:
        """Run the commands, and return all measurements; if one ran several times, the fastest."""
        changes = {"model": {"seed": seed}, "train": {"seed": seed}}
        with copy_project(merge_recipe(self.parameters, changes), self.stages) as project:
            for command in self.commands:
                run_timed(project, *(word.replace("{seed}", str(seed)) for word in command))
            found: Result = {}
            for line in (project / RECORD).read_text(encoding="utf-8").splitlines():
                new = json.loads(line)
                old = found.setdefault(new.pop("name"), new)
                if new.get("seconds", 0) < old.get("seconds", 0):
                    old.update(new)
            if (project / METRICS).exists():
                found["metrics"] = {"test": read_json(project / METRICS)["test"]}
            return found


@contextmanager
def copy_project(parameters: str, measure_stages: bool) -> Iterator[Path]:
    """Yield a copy of the working tree, with uncommitted changes and with these parameters.

    The copy has no data except the raw data, and DVC's cache is empty. Its dvc.yaml can measure
    each stage.
    """
    graph = GRAPH.read_text(encoding="utf-8")
    if measure_stages:
        timers = " ".join(TIMERS)
        command = rf"\1{timers} command \2 python -m stages.\2"
        graph = re.sub(r"(?m)^( *cmd: (?:exec )?)python -m stages\.(\w+)$", command, graph)
        graph = graph.replace("python -m stages.train", f"{timers} training")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for name in filter(None, run_git("ls-files", "-z").decode().split("\0")):
            if Path(name).is_file() and not name.startswith("data/") and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, project / name)
        write_text(project / GRAPH, graph)
        write_text(project / PARAMETERS, parameters)
        run_git("init", "--quiet", cwd=project)
        # copyfile leaves out permissions: DVC's files are read-only.
        shutil.copytree(RAW, project / RAW, copy_function=shutil.copyfile)
        yield project


def run_timed(project: Path, name: str, *command: str) -> None:
    """Run a command in the copy of the project, and record its seconds and memory there.

    The environment is the user's, without the variables that the project sets.
    """
    done = subprocess.run(
        [*TIMERS, "command", name, *command],
        cwd=project,
        env=make_environment(project, set(), read_settings(Path()).hidden),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n  ".join(done.stdout.splitlines()[-20:])
        raise StageError(f"{' '.join(command)}: failed in a copy of the project:\n  {last}")


def list_trials(parts: list[str], names: list[str]) -> list[Trial]:
    """Return what to measure; raise StageError for an unknown part or recipe."""
    default = PARAMETERS.read_text(encoding="utf-8")
    recipes = {path.stem: read_yaml(path) for path in sorted(RECIPES.glob("*.yaml"))}
    texts = {name: merge_recipe(default, recipe) for name, recipe in recipes.items()}
    texts = {"default": default, **texts}
    known = [*REFERENCES, *texts]
    for kind, asked, choices in (("part", parts, [*tables.TABLES]), ("recipe", names, known)):
        for name in asked:
            if name not in choices:
                raise StageError(f"unknown {kind} {name!r}; choose from {', '.join(choices)}")
    again = (("status", "dvc", "status"), ("nothing", "dvc", "repro"))
    plot_alone = ("alone", "dvc", "repro", "--force", "--no-run-cache", "--single-item", "plot")
    commands: tuple[Command, ...]
    code: tuple[Path, ...]
    found = []
    for name in names or [name for name in known if name not in SLOW]:
        if name in REFERENCES:
            script = ("first", "python", "-m", "benchmarks.references", name, str(RAW), "{seed}")
            code = (HERE / "references.py",)
            found.append(Trial("recipes", name, default, (script,), code, ("download",)))
        else:
            check(YAML(typ="safe", pure=True).load(texts[name]))
            commands = (FIRST, *again, *again, *again, plot_alone)
            found.append(Trial("recipes", name, texts[name], commands))
    changes = {"download": {"dataset": "custom", "folder": GROWN}, "train": {"epochs": 1}}
    for factor in (1, 2, 4, 8):
        grow = ("grow", "python", "-m", "benchmarks.grow", GROWN, str(factor))
        label, text = f"{factor} times the training set", merge_recipe(default, changes)
        code = (*PIPELINE, HERE / "grow.py")
        found.append(Trial("growth", label, text, (grow, FIRST), code))
    for replicas, count in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4)):
        text = merge_recipe(default, {"train": {"epochs": 1, "replicas": replicas}})
        label = f"{replicas} replicas on {count} worker{'s' * (count > 1)}"
        prepare = ("prepare", "python", "-m", "stages.preprocess")
        commands = (prepare, ("train", *TIMERS, "steps", str(count)))
        code = (Path("stages"), Path("tools/worker.py"))
        found.append(Trial("workers", label, text, commands, code))
    run_one = "dvc exp run --temp -S model.seed=$seed -S train.seed=$seed"
    one_by_one = f"for seed in $(seq {tables.RUNS}); do {run_one} || exit; done"
    sweeps: dict[str, Command] = {"`dvc exp run --temp`, one by one": ("sh", "-c", one_by_one)}
    for jobs in ("1", "2"):
        options = ("--seeds", str(tables.RUNS), "--jobs", jobs)
        sweeps[f"`tools.sweep --jobs {jobs}`"] = ("python", "-m", "tools.sweep", *options)
    code = (*PIPELINE, Path("tools/sweep.py"), Path("tools/shared"))
    for name, sweep in sweeps.items():
        commands = (*BEFORE_SWEEP, ("sweep", *sweep))
        found.append(Trial("sweep", name, texts[SWEPT], commands, code, stages=False))
    return [trial for trial in found if trial.part in parts]


def measure_trials(
    wanted: list[Trial], seeds: int, machine: Mapping[str, Any], records: Path
) -> pd.DataFrame:
    """Measure each trial with each seed, and append each result to the file `records`.

    If `records` already has a result, it is not measured again. Returns a row for each result, with
    the part, the name, and the commit that was measured, and columns such as `training_seconds`.
    """
    known = {}
    if records.exists():
        lines = map(json.loads, records.read_text(encoding="utf-8").splitlines())
        known = {line["key"]: line for line in lines}
    records.parent.mkdir(parents=True, exist_ok=True)
    commit = run_git("describe", "--always", "--dirty", "--exclude=*").decode().strip()
    turns = [(seed, trial) for seed in range(1, seeds + 1) for trial in wanted]
    turns = [(seed, trial) for seed, trial in turns if seed <= trial.count_seeds(seeds)]
    rows = []
    for count, (seed, trial) in enumerate(turns, 1):
        label = f"{count}/{len(turns)} {trial.part}: {trial.name}, seed {seed}"
        key = trial.compute_key(seed, machine)
        if key in known:
            print(f"{label}: already measured")
        else:
            print(f"{label} ...", flush=True)
            what = {"key": key, "part": trial.part, "name": trial.name, "seed": seed}
            known[key] = what | {"commit": commit, "result": trial.measure(seed)}
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[key]) + "\n")
            timed = {name: each.get("seconds") for name, each in known[key]["result"].items()}
            print("  " + ", ".join(f"{name} {s:.3g} s" for name, s in timed.items() if s))
        row = dict(known[key])
        rows.append(row | row.pop("result"))
    return pd.json_normalize(rows, sep="_")


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    parts = list(tables.TABLES)
    add = parser.add_argument
    add("--seeds", type=int, default=3, metavar="N", help="default: 3; slow trials take fewer")
    names = f"{', '.join(REFERENCES)}, `default` (params.yaml), and all but {' and '.join(SLOW)}"
    add("--recipes", type=split_commas, default=[], metavar="a,b", help=f"default: {names}")
    add("--parts", type=split_commas, default=parts, metavar="a,b", help=", ".join(parts))
    add("--docs", action="store_true", help="also update the tables in docs/")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; it must be 1 or more")
    machine = collect_fingerprint()
    wanted = list_trials(arguments.parts, arguments.recipes)
    download.main()
    results = measure_trials(wanted, arguments.seeds, machine, RECORDS)
    made = tables.make_tables(results, machine, arguments.seeds)
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    report = "\n\n".join([f"# `{command}`", *(table.strip() for table in made.values())]) + "\n"
    write_text(REPORTS / "benchmark.md", report)
    if arguments.docs:
        tables.insert_tables(Path("docs"), made)
    if "growth" in arguments.parts:
        with matplotlib.rc_context(plot.STYLE):
            figure = tables.plot_growth(tables.select_part(results, "growth"))
            for folder in (REPORTS, Path("docs"))[: 1 + arguments.docs]:
                plot.save(figure, folder / "growth.png", 120)
    print(f"\n{report}\nSaved to {REPORTS}/benchmark.md.")


def split_commas(text: str) -> list[str]:
    """Return the names that commas separate."""
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    run(main)
