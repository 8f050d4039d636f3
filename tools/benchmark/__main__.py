"""Measure accuracy over seeds, speed and memory: what the README and docs/benchmark.md say of them.

Every training is a process of its own in a fresh copy of the project, one at a time and in turns:
seed 1 of all, then seed 2 of all. Each result is appended to reports/benchmark.jsonl at once, so an
interrupted run goes on where it stopped, and what has changed since, code, parameters, libraries or
machine, is measured anew; delete that file to measure all anew. Writes the tables to
reports/benchmark.md and the plot to reports/growth.png; with --docs, also into docs/ and README.md.

    python -m tools.benchmark [--seeds N] [--recipes a,b] [--parts a,b] [--torch PYTHON] [--docs]
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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
from ruamel.yaml import YAML

from stages import download, plot
from stages.core.errors import StageError, run
from stages.core.files import read_json, write_text
from stages.core.paths import PARAMETERS, RAW, REPORTS
from stages.core.settings import read_yaml
from tools.benchmark import tables
from tools.benchmark.references import REFERENCES
from tools.benchmark.tables import Result, Results
from tools.recipe import RECIPES, SECTIONS, check, merged
from tools.verify import fingerprint
from tools.verify.__main__ import clean_environment

RECORDS = REPORTS / "benchmark.jsonl"
DOCS = Path("docs")
HERE = Path("tools/benchmark")
# What can be measured, and the tables that come of it.
PARTS = {
    "recipes": (tables.recipes, tables.stages),
    "fit": (),
    "step": (tables.step,),
    "growth": (tables.growth,),
}
RECORD = "../record.jsonl"  # beside each copy of the project
PIECES = ("python", "-m", "tools.benchmark.pieces", RECORD)
PREPROCESS = ("python", "-m", "stages.preprocess")
SLOW = ("best",)  # recipes that are measured only when asked for
TWICE = (*SLOW, "mnist_convnet")  # what takes minutes is measured with two seeds at most
FACTORS = (1, 2, 4, 8)
TURNS = 3  # of steps and of fitting with fewer pins, which other work may disturb
PIPELINE = (Path("dvc.yaml"), Path("stages"), HERE / "pieces.py")
# To hold PyTorch to the instructions that the project is held to.
TORCH_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


@dataclass(frozen=True)
class Trial:
    """One measurement, made once for each of its seeds."""

    part: str
    name: str
    parameters: str  # the text of params.yaml
    sources: tuple[Path, ...]  # the files and folders whose code is measured
    measure: Callable[[Path, int], Result]  # of a copy of the project and the seed
    sections: tuple[str, ...] = tuple(section.section for section in SECTIONS)  # that it reads

    def seeds(self, asked: int) -> int:
        """Return with how many seeds to measure it: one where accuracy is not what it tells."""
        most = 1 if self.part != "recipes" else 2 if self.name in TWICE else asked
        return min(asked, most)

    def key(self, seed: int, machine: Mapping[str, Any]) -> str:
        """Return a hash of everything that the result may depend on."""
        digest = hashlib.sha256()
        for source in (*self.sources, Path("requirements.txt"), HERE / "timed.py"):
            for path in sorted(source.rglob("*.py")) if source.is_dir() else (source,):
                digest.update(path.read_bytes())
        content = YAML(typ="safe", pure=True).load(self.parameters)
        values = {section: content[section] for section in self.sections}
        what = [self.part, self.name, seed, values, machine, digest.hexdigest()]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@contextmanager
def copy_of_project(parameters: str) -> Iterator[Path]:
    """Yield a copy of the project as it is here, uncommitted changes too, with these parameters.

    Of data, it holds the raw digits alone; its DVC has an empty cache, and times each stage.
    """
    listing = ["git", "ls-files", "-z"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    graph = Path("dvc.yaml").read_text(encoding="utf-8")
    command = rf"\1python {HERE}/timed.py {RECORD} \2 python -m stages.\2"
    graph = re.sub(r"(?m)^( *cmd: (?:exec )?)python -m stages\.(\w+)$", command, graph)
    graph = graph.replace("python -m stages.train", " ".join([*PIECES, "train"]))
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for name in filter(None, listed.split("\0")):
            if Path(name).is_file() and not name.startswith("data/") and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, project / name)
        write_text(project / "dvc.yaml", graph)
        write_text(project / PARAMETERS, parameters)
        subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
        shutil.copytree(RAW, project / RAW, copy_function=shutil.copyfile)  # DVC's are read-only
        yield project


def timed(project: Path, name: str, *command: str, **environment: str) -> dict[str, Result]:
    """Run a command in the copy; return what was recorded meanwhile by name: its own seconds too.

    The environment is the user's, without what the project pins for itself.
    """
    record = project / RECORD
    record.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, HERE / "timed.py", RECORD, name, *command],
        cwd=project,
        env=clean_environment(project.parent) | environment,
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


def pipeline(project: Path, _: int) -> Result:
    """Return what a cold `dvc repro` takes, and what those after it do."""
    found = timed(project, "cold", "dvc", "repro")
    again: dict[str, list[float]] = {"status": [], "repro": []}
    for _ in range(3):
        for name, seconds in again.items():
            seconds.append(timed(project, name, "dvc", name)[name]["seconds"])
    plot_alone = ("dvc", "repro", "--force", "--no-run-cache", "--single-item", "plot")
    return {
        "accuracy": read_json(project / "data/evaluation/metrics.json")["test"]["accuracy"],
        "fit": found["fit"]["seconds"],
        "images": found["fit"]["images"],
        "all": found["cold"]["seconds"],
        "mebibytes": found["train"]["mebibytes"],
        "stages": {stage: found[stage] for stage in read_yaml(project / "dvc.yaml")["stages"]},
        "status": min(again["status"]),
        "nothing": min(again["repro"]),
        "plot": timed(project, "alone", *plot_alone)["alone"]["seconds"],
    }


def reference(name: str, project: Path, seed: int) -> Result:
    """Return what one of the two published scripts takes."""
    script = ("python", f"{HERE}/references.py", name, str(RAW), str(seed), RECORD)
    found = timed(project, "script", *script)
    return {
        "accuracy": found["fit"]["accuracy"],
        "fit": found["fit"]["seconds"],
        "images": found["fit"]["images"],
        "all": found["script"]["seconds"],
        "mebibytes": found["script"]["mebibytes"],
    }


def fit(project: Path, _: int) -> Result:
    """Return the seconds that `fit` takes, and a bare loop."""
    timed(project, "preprocess", *PREPROCESS)
    loops = timed(project, "process", *PIECES, "fit")
    return {"fit": loops["fit"]["seconds"], "bare": loops["bare"]["seconds"]}


def pins(project: Path, _: int) -> Result:
    """Return the seconds of fitting with all, some and nothing pinned: the fastest of the turns."""
    timed(project, "preprocess", *PREPROCESS)
    found: dict[str, list[float]] = {"pinned": [], "like": [], "free": []}
    for _ in range(TURNS):
        for name, seconds in found.items():
            seconds.append(timed(project, "process", *PIECES, "train", name)["fit"]["seconds"])
    return {name: min(seconds) for name, seconds in found.items()}


def step(torch: str | None, project: Path, _: int) -> Result:
    """Return what a training step takes here, and in PyTorch if `torch` is a Python that has it.

    Of each, the fastest of the turns.
    """
    turns: dict[str, list[Result]] = {}
    for _ in range(TURNS):
        ours = timed(project, "process", *PIECES, "step")["step"]
        turns.setdefault("project", []).append(ours)
        if not torch:
            continue
        write_text(project / "network.json", json.dumps(ours))
        script = (torch, f"{HERE}/torch_step.py", "network.json", RECORD)
        for suffix, environment in (("", {}), (", held to AVX2 too", TORCH_AVX2)):
            theirs = timed(project, "process", *script, **environment)
            del theirs["process"]
            for name, result in theirs.items():
                assert result["trainable"] == ours["trainable"], "not the same network"
                turns.setdefault(f"PyTorch, {name}{suffix}", []).append(result)
    return {
        name: max(results, key=lambda result: result["images_a_second"])
        for name, results in turns.items()
    }


def growth(factor: int, project: Path, _: int) -> Result:
    """Return what preprocessing and an epoch of training take with so many times the digits."""
    images = timed(project, "process", *PIECES, "grow", str(factor))["grow"]["images"]
    preprocess = timed(project, "preprocess", *PREPROCESS)["preprocess"]
    trained = timed(project, "train", *PIECES, "train")
    return {
        "images": images,
        "preprocess": preprocess,
        "train": trained["train"],
        "fit": trained["fit"]["seconds"],
        "seen": trained["fit"]["images"],
    }


def trials(parts: list[str], names: list[str], torch: str | None) -> list[Trial]:
    """Return what to measure; raise StageError for a part, recipe or Python that does not exist."""
    default = PARAMETERS.read_text(encoding="utf-8")
    paths = sorted(RECIPES.glob("*.yaml"))
    texts = {"default": default, **{path.stem: merged(default, read_yaml(path)) for path in paths}}
    known = [*REFERENCES, *texts]
    for kind, asked, there in (("part", parts, list(PARTS)), ("recipe", names, known)):
        for name in asked:
            if name not in there:
                raise StageError(f"no {kind} {name!r} to measure; there are {', '.join(there)}")
    names = names or [name for name in known if name not in SLOW]
    found = []
    for name in names:
        if name in REFERENCES:
            script, measure = (HERE / "references.py",), partial(reference, name)
            found.append(Trial("recipes", name, default, script, measure, ("download",)))
        else:
            check(YAML(typ="safe", pure=True).load(texts[name]))
            found.append(Trial("recipes", name, texts[name], PIPELINE, pipeline))
    found.append(Trial("fit", "fit", default, PIPELINE, fit))
    two_epochs, epoch = (merged(default, {"train": {"epochs": count}}) for count in (2, 1))
    found.append(Trial("fit", "pins", two_epochs, PIPELINE, pins))
    scripts = (*PIPELINE, HERE / "torch_step.py")
    if torch:
        if not (path := shutil.which(torch)):
            raise StageError(f"--torch is {torch}, which is no program here")
        torch = str(Path(path).absolute())  # a virtual environment's link must stay one
    label = f"against {torch}" if torch else "without PyTorch"
    found.append(Trial("step", label, default, scripts, partial(step, torch)))
    for factor in FACTORS:
        label = f"{factor} times the digits"
        found.append(Trial("growth", label, epoch, PIPELINE, partial(growth, factor)))
    return [trial for trial in found if trial.part in parts]


def measured(wanted: list[Trial], seeds: int, machine: Mapping[str, Any], records: Path) -> Results:
    """Measure each trial with each seed, but what `records` holds already; append to that.

    Returns the results by part and name, one for each seed.
    """
    known = {}
    if records.exists():
        lines = map(json.loads, records.read_text(encoding="utf-8").splitlines())
        known = {line["key"]: line["result"] for line in lines}
    records.parent.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    count, runs = 0, sum(trial.seeds(seeds) for trial in wanted)
    for seed in range(1, seeds + 1):
        for trial in wanted:
            if seed > trial.seeds(seeds):
                continue
            count += 1
            label = f"{count}/{runs} {trial.part}: {trial.name}, seed {seed}"
            changes = {"model": {"seed": seed}, "train": {"seed": seed}}
            parameters = merged(trial.parameters, changes)
            key = trial.key(seed, machine)
            if key in known:
                print(f"{label}: measured before")
            else:
                print(f"{label} ...", flush=True)
                with copy_of_project(parameters) as project:
                    known[key] = trial.measure(project, seed)
                line = {"key": key, "part": trial.part, "name": trial.name, "seed": seed}
                with records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "result": known[key]}) + "\n")
                print(f"  {summary(known[key])}", flush=True)
            results.setdefault(trial.part, {}).setdefault(trial.name, []).append(known[key])
    return results


def summary(result: Result) -> str:
    """Return the numbers of a result in a line."""
    flat = {
        f"{name} {inner}": value
        for name, values in result.items()
        for inner, value in (values if isinstance(values, dict) else {"": values}).items()
    }
    return ", ".join(
        f"{name.strip()} {value:.4g}" for name, value in flat.items() if isinstance(value, float)
    )


def documents(results: Results, machine: Mapping[str, Any], seeds: int) -> dict[str, str]:
    """Return the Markdown of each table by name, and first of what and where was measured."""
    library = machine["libraries"]
    tensorflow = library.get("tensorflow-cpu") or library.get("tensorflow")
    runs = (
        "one run"
        if seeds == 1
        else f"medians of {seeds} runs in turns (2 of what takes minutes, 1 of what is no "
        "recipe), accuracies their mean and deviation"
    )
    about = (
        f"Seconds and memory are {runs}; on {machine['cores']} cores of {machine['processor']}, "
        f"with TensorFlow {tensorflow}, Keras {library['keras']}, DVC {version('dvc')} and Python "
        f"{machine['python']}.\n"
    )
    made = {"machine": about, "costs": tables.costs(results)}
    for part, makers in PARTS.items():
        if part in results:
            made |= {maker.__name__: maker(results) for maker in makers}
    return {name: text for name, text in made.items() if text}


def put_into(path: Path, made: Mapping[str, str]) -> None:
    """Put each table between its two marks in a document, where there are such."""
    text = path.read_text(encoding="utf-8")
    for name, table in made.items():
        marks = rf"(<!-- benchmark: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda found: f"{found[1]}{table}{found[2]}", text, flags=re.S)  # noqa: B023
    write_text(path, text)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="of recipes, two at most of slow ones; default 3",
    )
    parser.add_argument(
        "--recipes",
        type=names,
        metavar="a,b",
        help=f"default: all in recipes/ but {', '.join(SLOW)}, params.yaml as it is (`default`), "
        f"{' and '.join(REFERENCES)}",
    )
    parser.add_argument(
        "--parts", type=names, metavar="a,b", help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with torch to compare with")
    parser.add_argument(
        "--docs", action="store_true", help="also update README.md and docs/benchmark.md"
    )
    arguments = parser.parse_args()
    seeds, parts = arguments.seeds, arguments.parts or list(PARTS)
    if seeds < 1:
        parser.error(f"--seeds is {seeds}: 1 or more")
    machine = fingerprint.fingerprint(Path())
    del machine["threads"]  # of the parameters
    wanted = trials(parts, arguments.recipes or [], arguments.torch)
    if "step" in parts and not arguments.torch:
        print("skipped: a step in PyTorch; name a Python that has torch with --torch")
    download.main()
    results = measured(wanted, seeds, machine, RECORDS)
    made = documents(results, machine, seeds)
    command = " ".join(["python -m tools.benchmark", *sys.argv[1:]])
    report = "\n".join([f"# `{command}`\n", *made.values()])
    write_text(REPORTS / "benchmark.md", report)
    folders = [REPORTS]
    if arguments.docs:
        folders.append(DOCS)
        for path in (Path("README.md"), DOCS / "benchmark.md"):
            put_into(path, made)
    if "growth" in results:
        with matplotlib.rc_context(plot.STYLE):
            figure = tables.draw_growth(results)
            for folder in folders:
                plot.save(figure, folder / "growth.png", 120)
    print(f"\n{report}\nAlso in {REPORTS}/benchmark.md.")


def names(text: str) -> list[str]:
    """Return what commas separate."""
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    run(main)
