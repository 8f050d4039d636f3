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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
from ruamel.yaml import YAML

from benchmarks import tables
from benchmarks.references import REFERENCES
from benchmarks.tables import Result, Results
from dvc_verify.git import run_git
from dvc_verify.run import make_environment
from dvc_verify.settings import Settings
from stages import download, plot
from stages.core.errors import StageError, run
from stages.core.files import read_json, write_text
from stages.core.machine import collect_fingerprint
from stages.core.paths import GRAPH, METRICS, PARAMETERS, RAW, REPORTS
from stages.core.settings import read_yaml
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES
from tools.recipe import RECIPES, check, merge_recipe
from tools.worker import find_free_addresses, make_tf_config

RECORDS = REPORTS / "benchmark.jsonl"
DOCS = Path("docs")
HERE = Path("benchmarks")
# What can be measured, and the tables made from the results.
PARTS: dict[str, dict[str, Callable[[Results], str]]] = {
    "recipes": {
        "costs": tables.tabulate_costs,
        "recipes": tables.tabulate_recipes,
        "stages": tables.tabulate_stages,
    },
    "growth": {"growth": tables.tabulate_growth},
    "workers": {"workers": tables.tabulate_workers, "networks": tables.tabulate_networks},
    "sweep": {"sweep": tables.tabulate_sweep},
}
RECORD = "../record.jsonl"  # beside each copy of the project
TIME = ("python", f"{HERE}/time_command.py", RECORD)
TIME_TRAINING = ("python", "-m", "benchmarks.time_training", RECORD)
TIME_WORKERS = ("python", "-m", "benchmarks.time_workers", RECORD)
PREPROCESS = ("python", "-m", "stages.preprocess")
SLOW = ("best", "small")  # measured only on request; small would take hours on MNIST
TWO_SEEDS = (*SLOW, "mnist_convnet")  # trainings of several minutes: two seeds at most
FACTORS = (1, 2, 4, 8)
GROWN = "datasets/grown"
WORKERS = ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))  # numbers of replicas and of workers
STEPS = (Path("stages"), HERE / "time_workers.py", Path("tools/worker.py"))
SWEPT = "fast"  # the recipe that is run with several seeds
RUNS = 6
JOBS = (1, 2)
PIPELINE = (GRAPH, Path("stages"), HERE / "time_training.py", HERE / "grow.py")


@dataclass(frozen=True)
class Trial:
    """One measurement, made once for each of its seeds."""

    part: str
    name: str
    parameters: str  # the text of params.yaml
    sources: tuple[Path, ...]  # the files and folders whose code is measured
    measure: Callable[[Path, int], Result]  # called with a copy of the project and the seed
    sections: tuple[str, ...] = ()  # that it reads; empty for all

    def count_seeds(self, asked: int) -> int:
        """Return the number of seeds to measure: one for larger training sets and sweeps."""
        most = 1 if self.part in ("growth", "sweep") else 2 if self.name in TWO_SEEDS else asked
        return min(asked, most)

    def compute_key(self, seed: int, machine: Mapping[str, Any]) -> str:
        """Return a hash of everything that the result may depend on."""
        digest = hashlib.sha256()
        for source in (*self.sources, Path("requirements.txt"), HERE / "time_command.py"):
            for path in sorted(source.rglob("*.py")) if source.is_dir() else (source,):
                digest.update(path.read_bytes())
        content = YAML(typ="safe", pure=True).load(self.parameters)
        values = {section: content[section] for section in self.sections or content}
        what = [self.part, self.name, seed, values, machine, digest.hexdigest()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@contextmanager
def copy_project(parameters: str) -> Iterator[Path]:
    """Yield a copy of the working tree, with uncommitted changes and with these parameters.

    The copy has no data except the raw data, and DVC's cache is empty. Its dvc.yaml measures each
    stage.
    """
    listed = run_git("ls-files", "-z").decode()
    graph = GRAPH.read_text(encoding="utf-8")
    command = rf"\1{' '.join(TIME)} \2 python -m stages.\2"
    graph = re.sub(r"(?m)^( *cmd: (?:exec )?)python -m stages\.(\w+)$", command, graph)
    graph = graph.replace("python -m stages.train", " ".join(TIME_TRAINING))
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for name in filter(None, listed.split("\0")):
            if Path(name).is_file() and not name.startswith("data/") and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, project / name)
        write_text(project / GRAPH, graph)
        write_text(project / PARAMETERS, parameters)
        run_git("init", "--quiet", cwd=project)
        # copyfile leaves out permissions: DVC's files are read-only.
        shutil.copytree(RAW, project / RAW, copy_function=shutil.copyfile)
        yield project


def run_timed(project: Path, name: str, *command: str, **variables: str) -> dict[str, Result]:
    """Run a command in the copy of the project, and return all its measurements by name.

    The measurement of the command itself has the name `name`. The environment is the user's,
    without the variables that the project sets, and with `variables`.
    """
    record = project / RECORD
    record.unlink(missing_ok=True)
    done = subprocess.run(
        [*TIME, name, *command],
        cwd=project,
        env=make_environment(project, set(), Settings.read(Path()).hidden) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n  ".join(done.stdout.splitlines()[-20:])
        raise StageError(f"{' '.join(command)}: failed in a copy of the project:\n  {last}")
    lines = map(json.loads, record.read_text(encoding="utf-8").splitlines())
    return {line.pop("name"): line for line in lines}


def measure_pipeline(project: Path, _: int) -> Result:
    """Measure a first `dvc repro`, and DVC's commands after it."""
    found = run_timed(project, "first", "dvc", "repro")
    again: dict[str, list[float]] = {"status": [], "repro": []}
    for _ in range(3):
        for name, seconds in again.items():
            seconds.append(run_timed(project, name, "dvc", name)[name]["seconds"])
    plot_alone = ("dvc", "repro", "--force", "--no-run-cache", "--single-item", "plot")
    return {
        "accuracy": read_json(project / METRICS)["test"]["accuracy"],
        "training": found["training"]["seconds"],
        "images": found["training"]["images"],
        "total": found["first"]["seconds"],
        "mebibytes": found["train"]["mebibytes"],
        "stages": {stage: found[stage] for stage in read_yaml(project / GRAPH)["stages"]},
        "status": min(again["status"]),
        "nothing": min(again["repro"]),
        "plot": run_timed(project, "alone", *plot_alone)["alone"]["seconds"],
    }


def measure_reference(name: str, project: Path, seed: int) -> Result:
    """Measure one of the published scripts."""
    script = ("python", f"{HERE}/references.py", name, str(RAW), str(seed), RECORD)
    found = run_timed(project, "script", *script)
    return {
        "accuracy": found["training"]["accuracy"],
        "training": found["training"]["seconds"],
        "images": found["training"]["images"],
        "total": found["script"]["seconds"],
        "mebibytes": found["script"]["mebibytes"],
    }


def measure_growth(factor: int, project: Path, _: int) -> Result:
    """Measure `dvc repro` with `factor` times the training set, trained for one epoch."""
    run_timed(project, "grow", "python", "-m", "benchmarks.grow", GROWN, str(factor))
    changes = {"download": {"dataset": "custom", "folder": GROWN}, "train": {"epochs": 1}}
    parameters = project / PARAMETERS
    write_text(parameters, merge_recipe(parameters.read_text(encoding="utf-8"), changes))
    found = run_timed(project, "first", "dvc", "repro")
    return {
        "images": len(idx.read(project / RAW / TRAIN_IMAGES, 3)),
        "stages": {stage: found[stage] for stage in read_yaml(project / GRAPH)["stages"]},
        "training": found["training"]["seconds"],
        "seen": found["training"]["images"],
    }


def measure_workers(count: int, project: Path, _: int) -> Result:
    """Measure a training step on `count` workers on this machine."""
    run_timed(project, "preprocess", *PREPROCESS)
    addresses = find_free_addresses(count)
    environment = make_environment(project, set(), Settings.read(Path()).hidden)
    with ExitStack() as stack:
        for index in range(1, count):
            other = subprocess.Popen(
                TIME_WORKERS,
                cwd=project,
                env=environment | make_tf_config(addresses, index),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.enter_context(other)
            stack.callback(other.kill)
        variables = make_tf_config(addresses, 0)
        return run_timed(project, "train", *TIME_WORKERS, **variables)["steps"]


def measure_sweep(jobs: int, project: Path, _: int) -> Result:
    """Measure runs that differ in their seeds: with tools.sweep, or one by one if `jobs` is 0.

    The raw and the prepared data are in DVC's cache.
    """
    shutil.copyfile(GRAPH, project / GRAPH)  # a sweep runs in other folders and checks dvc.yaml
    run_timed(project, "prepare", "dvc", "repro", "preprocess")
    run_timed(project, "add", "git", "add", "--all")
    author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    run_timed(project, "commit", "git", *author, "commit", "--quiet", "--message", "start")
    if jobs:
        options = ("--seeds", str(RUNS), "--jobs", str(jobs))
        found = run_timed(project, "sweep", "python", "-m", "tools.sweep", *options)
        return {"runs": RUNS, "seconds": found["sweep"]["seconds"]}
    seconds = 0.0
    for seed in range(1, RUNS + 1):
        values = ("-S", f"model.seed={seed}", "-S", f"train.seed={seed}")
        found = run_timed(project, "run", "dvc", "exp", "run", "--temp", *values)
        seconds += found["run"]["seconds"]
    return {"runs": RUNS, "seconds": seconds}


def list_trials(parts: list[str], names: list[str]) -> list[Trial]:
    """Return what to measure; raise StageError for an unknown part or recipe."""
    default = PARAMETERS.read_text(encoding="utf-8")
    paths = sorted(RECIPES.glob("*.yaml"))
    texts = {
        "default": default,
        **{path.stem: merge_recipe(default, read_yaml(path)) for path in paths},
    }
    known = [*REFERENCES, *texts]
    for kind, asked, choices in (("part", parts, list(PARTS)), ("recipe", names, known)):
        for name in asked:
            if name not in choices:
                raise StageError(f"unknown {kind} {name!r}; choose from {', '.join(choices)}")
    names = names or [name for name in known if name not in SLOW]
    found = []
    for name in names:
        if name in REFERENCES:
            script, measure = (HERE / "references.py",), partial(measure_reference, name)
            found.append(Trial("recipes", name, default, script, measure, ("download",)))
        else:
            check(YAML(typ="safe", pure=True).load(texts[name]))
            found.append(Trial("recipes", name, texts[name], PIPELINE, measure_pipeline))
    for factor in FACTORS:
        label = f"{factor} times the training set"
        found.append(Trial("growth", label, default, PIPELINE, partial(measure_growth, factor)))
    for replicas, count in WORKERS:
        parameters = merge_recipe(default, {"train": {"epochs": 1, "replicas": replicas}})
        label = f"{replicas} replicas on {count} worker{'s' * (count > 1)}"
        found.append(Trial("workers", label, parameters, STEPS, partial(measure_workers, count)))
    sources = (*PIPELINE, Path("tools/shared"))
    for jobs in (0, *JOBS):
        label = f"`tools.sweep --jobs {jobs}`" if jobs else "`dvc exp run --temp`, one by one"
        measure = partial(measure_sweep, jobs)
        found.append(Trial("sweep", label, texts[SWEPT], sources, measure))
    return [trial for trial in found if trial.part in parts]


def measure_trials(
    wanted: list[Trial], seeds: int, machine: Mapping[str, Any], records: Path
) -> Results:
    """Measure each trial with each seed, and append each result to the file `records`.

    If `records` already has a result, it is not measured again. Returns the results by part and
    name, one for each seed, with the commit that was measured.
    """
    known = {}
    if records.exists():
        lines = map(json.loads, records.read_text(encoding="utf-8").splitlines())
        known = {line["key"]: line["result"] for line in lines}
    records.parent.mkdir(parents=True, exist_ok=True)
    commit = run_git("describe", "--always", "--dirty", "--exclude=*").decode().strip()
    results: Results = {}
    count, runs = 0, sum(trial.count_seeds(seeds) for trial in wanted)
    for seed in range(1, seeds + 1):
        for trial in wanted:
            if seed > trial.count_seeds(seeds):
                continue
            count += 1
            label = f"{count}/{runs} {trial.part}: {trial.name}, seed {seed}"
            changes = {"model": {"seed": seed}, "train": {"seed": seed}}
            parameters = merge_recipe(trial.parameters, changes)
            key = trial.compute_key(seed, machine)
            if key in known:
                print(f"{label}: already measured")
            else:
                print(f"{label} ...", flush=True)
                with copy_project(parameters) as project:
                    known[key] = {"commit": commit, **trial.measure(project, seed)}
                line = {"key": key, "part": trial.part, "name": trial.name, "seed": seed}
                with records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "result": known[key]}) + "\n")
                print(f"  {summarise(known[key])}", flush=True)
            results.setdefault(trial.part, {}).setdefault(trial.name, []).append(known[key])
    return results


def summarise(result: Result) -> str:
    """Return the numbers of a result in one line."""
    numbers = {
        f"{name} {inner}": value
        for name, values in result.items()
        for inner, value in (values if isinstance(values, dict) else {"": values}).items()
    }
    return ", ".join(
        f"{name.strip()} {value:.4g}" for name, value in numbers.items() if isinstance(value, float)
    )


def make_tables(results: Results, machine: Mapping[str, Any], seeds: int) -> dict[str, str]:
    """Return the Markdown of each table by name, and for each part where it was measured."""
    library = machine["libraries"]
    tensorflow = library.get("tensorflow-cpu") or library.get("tensorflow")

    runs = {
        "recipes": f"Seconds and memory are the medians of {seeds} runs (2 for slow trainings), "
        "accuracies the mean and standard deviation.",
        "workers": f"Values are the medians of {seeds} turns, with the lowest and the highest.",
    }
    made = {}
    for part, makers in PARTS.items():
        if part in results:
            commits = {result["commit"] for by_seed in results[part].values() for result in by_seed}
            once = seeds == 1 or part not in runs
            made[f"{part} machine"] = (
                f"Measured on commit {', '.join(sorted(commits))}, on {machine['cores']} cores of "
                f"{machine['processor']}, with TensorFlow {tensorflow}, Keras {library['keras']}, "
                f"DVC {version('dvc')} and Python {machine['python']}. "
                f"{'Every value is from one run.' if once else runs[part]}\n"
            )
            made |= {name: make(results) for name, make in makers.items()}
    return {name: text for name, text in made.items() if text}


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="number of seeds for each recipe, at most two for slow ones; default 3",
    )
    parser.add_argument(
        "--recipes",
        type=split_commas,
        metavar="a,b",
        help=f"default: `default` (params.yaml as it is), {', '.join(REFERENCES)}, and every "
        f"recipe except {' and '.join(SLOW)}",
    )
    parser.add_argument(
        "--parts", type=split_commas, metavar="a,b", help=f"default: {','.join(PARTS)}"
    )
    parser.add_argument("--docs", action="store_true", help="also update the tables in docs/")
    arguments = parser.parse_args()
    seeds, parts = arguments.seeds, arguments.parts or list(PARTS)
    if seeds < 1:
        parser.error(f"--seeds is {seeds}; it must be 1 or more")
    machine = collect_fingerprint()
    wanted = list_trials(parts, arguments.recipes or [])
    download.main()
    results = measure_trials(wanted, seeds, machine, RECORDS)
    made = make_tables(results, machine, seeds)
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    report = "\n\n".join([f"# `{command}`", *(table.strip() for table in made.values())]) + "\n"
    write_text(REPORTS / "benchmark.md", report)
    folders = [REPORTS]
    if arguments.docs:
        folders.append(DOCS)
        tables.insert_tables(DOCS, made)
    if "growth" in results:
        with matplotlib.rc_context(plot.STYLE):
            figure = tables.plot_growth(results)
            for folder in folders:
                plot.save(figure, folder / "growth.png", 120)
    print(f"\n{report}\nSaved to {REPORTS}/benchmark.md.")


def split_commas(text: str) -> list[str]:
    """Return the names that commas separate."""
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    run(main)
