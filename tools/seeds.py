"""Train the last commit with several seeds, and report how much the results vary.

Each seed is set as `model.seed` and `train.seed` in a DVC experiment of that commit.
It runs in a folder of its own and is not trained again. If two commits have such runs,
tools/compare uses them. Prints mean, standard deviation and range of every metric, and writes the
same to reports/seeds.md.

    python -m tools.seeds 5
"""

import argparse
import subprocess
from contextlib import suppress
from pathlib import Path

import pandas as pd

from stages.core.errors import StageError, run
from stages.core.files import write_text
from tools.compare.revision import Result, changed_since, commit_of, read, seed_name, seed_names

REPORT = Path("reports/seeds.md")


def train(seed: int, name: str) -> None:
    """Run the last commit with a seed, as an experiment of that name."""
    command = ["dvc", "exp", "run", "--temp", "--name", name]
    for key in ("model.seed", "train.seed"):
        command += ["--set-param", f"{key}={seed}"]
    if subprocess.run(command, check=False).returncode:
        raise StageError(
            f"seed {seed} failed; the reason is printed above, and earlier seeds are kept"
        )


def summary(members: list[Result]) -> str:
    """Return mean, standard deviation and range of each metric, as a Markdown table."""
    metrics = pd.DataFrame([member.metrics for member in members])
    width = max(len(str(name)) for name in metrics)
    lines = [
        f"| {'metric':{width}} |       mean | standard deviation |     lowest |    highest |",
        f"|{'-' * (width + 2)}|-----------:|-------------------:|-----------:|-----------:|",
    ]
    for name, values in metrics.items():
        lines.append(
            f"| {name:{width}} | {values.mean():10.6f} | {values.std():18.6f} "
            f"| {values.min():10.6f} | {values.max():10.6f} |"
        )
    return "\n".join(lines) + "\n"


def count(text: str) -> int:
    """Return a number of seeds for argparse. A standard deviation needs at least two."""
    with suppress(ValueError):
        if (number := int(text)) > 1:
            return number
    raise argparse.ArgumentTypeError(f"expected a whole number above 1, found {text!r}")


def main() -> None:
    """Train the seeds that have not run yet, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=count, help="how many seeds, from 1 on; at least 2")
    seeds = range(1, parser.parse_args().count + 1)
    if changed_since("HEAD"):
        raise StageError(
            "the workspace differs from the last commit: commit first, or go back with "
            "`git checkout .`"
        )
    commit = commit_of("HEAD")
    there = seed_names(commit)
    for seed in seeds:
        if (name := seed_name(commit, seed)) not in there:
            train(seed, name)
    members = [read(seed_name(commit, seed)) for seed in seeds]
    text = f"# {len(members)} seeds of {commit[:7]}\n\n{summary(members)}"
    write_text(REPORT, text)
    print(f"\n{text}\nAlso in {REPORT}; `dvc exp show` shows each.")


if __name__ == "__main__":
    run(main)
