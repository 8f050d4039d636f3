"""Train briefly on other processors, emulated by QEMU, and check that the bytes are the same.

QEMU's user-mode emulation (Debian's package qemu-user) runs a program with the instructions, the
model number and the caches of another processor, x86-64 or arm64. The program here is `probe`. It
trains networks with every architecture, optimizer, schedule and loss, each for two short epochs of
random images, predicts, and hashes the weights, the history and the probabilities. Its last case
hashes metrics and plots.

Writes the hashes to reports/cpus.md. Exits with status 1 if one differs from tests/hashes.json,
which --record replaces by this machine's hashes first.

    python -m benchmarks.cpus [--record] [CPU ...]
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from stages import evaluate, plot
from stages.core.errors import StageError, run
from stages.core.files import read_json, write_json, write_text
from stages.core.paths import REPORTS
from tests.helpers.cases import EVERY_OPTION, KINDS, Values, make_sections
from tests.helpers.parameters import DEFAULTS

X86, ARM64 = ("Haswell", "EPYC-Milan"), ("neoverse-n1", "cortex-a72")
CPUS = (*X86, ARM64[0])
RECORDED = Path("tests/hashes.json")
REPORT = REPORTS / "cpus.md"
PACKAGES = Path(".venv/arm64")  # of the emulated Python
BATCHES = 1.5  # in an epoch: a full batch and a smaller one
# What each case changes. One replica makes a graph half as large, and an emulator is slow.
DEFAULT, COLOUR = "default", "colour"
CASES: dict[str, Values] = {
    DEFAULT: DEFAULTS | {"train.epochs": 2},
    COLOUR: {"train.augmentation.rotation": 5.0},
    **KINDS,
    **{
        f"{values['train.optimizer']} {values.get('train.momentum', '')}".rstrip(): values
        | {"train.replicas": 1, "train.epochs": 2}
        for values in EVERY_OPTION
    },
}
REPORTING = "metrics and plots"
NAMES = [*CASES, REPORTING]


def probe() -> None:
    """Print the name and the hash of each case as a line of JSON. This runs under emulation."""
    from stages.model.checkpoint import State
    from stages.model.runtime import configure_tensorflow
    from stages.model.training import make_history
    from stages.model.worker import Worker
    from stages.train import train_members

    configure_tensorflow(2)
    for name, values in CASES.items():
        rng = np.random.default_rng(0)
        model_parameters, parameters = make_sections(values)
        count = int(BATCHES * parameters.batch_size)
        shape = (count, 28, 28, 3) if name == COLOUR else (count, 28, 28)
        images = rng.random(shape, np.float32)
        labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, count)]
        split = images, labels
        replicate, state = Worker(parameters.replicas).replicate, State()
        model = train_members(model_parameters, parameters, split, split, replicate, state)
        probabilities = replicate(model).predict_probabilities(images, parameters.batch_size)
        digest = hashlib.sha256(make_history(state).to_csv().encode())
        for array in (*model.get_weights(), probabilities):
            digest.update(array.tobytes())
        print(json.dumps({name: digest.hexdigest()}), flush=True)
    print(json.dumps({REPORTING: hash_reports()}), flush=True)


def hash_reports() -> str:
    """Return the hash of metrics and four plots of random predictions and a random history."""
    rng = np.random.default_rng(1)
    actual, predicted = rng.integers(0, 10, 500), rng.integers(0, 10, 500)
    classes = list(map(str, range(10)))
    probabilities = rng.random((500, 10), np.float32)
    predictions = evaluate.tabulate_predictions(actual, probabilities, classes)
    columns = ("accuracy", "loss", "val_accuracy", "val_loss", "learning_rate")
    history = pd.DataFrame({"epoch": range(1, 6), **{name: rng.random(5) for name in columns}})
    history["chosen"] = [0, 0, 0, 1, 0]
    figures = {
        "samples": plot.draw_samples(rng.random((10, 28, 28)), actual[:10], classes, True),
        "curves": plot.draw_curves(history),
        "confusion": plot.draw_confusion(predictions["actual"], predictions["predicted"], classes),
        "mistakes": plot.draw_mistakes(rng.random((500, 28, 28)), predictions, 20, True),
    }
    per_class = evaluate.score_classes(actual, predicted, classes)
    metrics = [
        per_class.to_csv(),
        per_class.mean(numeric_only=True).to_dict(),
        evaluate.compute_accuracy_interval(497, 500),
    ]
    digest = hashlib.sha256((json.dumps(metrics) + predictions.to_csv()).encode())
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(plot.STYLE):
        for name, figure in figures.items():
            plot.save(figure, Path(folder) / name, 120)
            digest.update((Path(folder) / name).read_bytes())
    return digest.hexdigest()


def run_probe(cpu: str | None) -> dict[str, str]:
    """Return the hash of each case on this machine, or on the emulated processor `cpu`."""
    name = cpu or "this machine"
    command = ["-c", "from benchmarks.cpus import probe; probe()"]
    if cpu in ARM64:
        command = ["benchmarks/arm64.sh", str(PACKAGES), cpu, *command]
    else:
        python = str(Path(sys.executable).resolve())
        command = [*(["qemu-x86_64", "-cpu", cpu] if cpu else []), python, *command]
    # QEMU needs the real path of Python, but Python started from there does not find the packages
    # of .venv. PYTHONPATH names them. arm64.sh replaces it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found: dict[str, str] = {}
    last_lines: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last_lines.append(line)
            if line.startswith("{"):
                found |= json.loads(line)
                print(f"  {name}: {len(found)} of {len(NAMES)}", flush=True)
    if len(found) < len(NAMES):
        raise StageError(f"the probe failed on {name}:\n{''.join(last_lines)}")
    return found


def check_emulators(cpus: list[str]) -> None:
    """End the program if an emulator for one of `cpus` is missing."""
    for cpu in cpus:
        name = "qemu-aarch64" if cpu in ARM64 else "qemu-x86_64"
        if not shutil.which(name):
            print(f"skipped: {name} is not on the PATH (Debian: apt-get install qemu-user)")
            sys.exit(0)


def tabulate_hashes(results: dict[str, dict[str, str]]) -> str:
    """Return the first eight characters of each hash as a Markdown table, one row for each case.

    The first column is recorded. A hash that differs from it is marked with ≠.
    """
    from tools.shared.report import format_table  # needs packages that the probe does not have

    recorded = next(iter(results.values()))
    return format_table(
        [
            {"case": case}
            | {
                name: f"`{found[case][:8]}`{'' if found[case] == recorded[case] else ' ≠'}"
                for name, found in results.items()
            }
            for case in NAMES
        ]
    )


def main() -> None:
    """Compare this machine with each emulated processor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "cpus",
        nargs="*",
        default=CPUS,
        metavar="CPU",
        help=f"one of {', '.join(ARM64)}, or a name that `qemu-x86_64 -cpu help` lists; default: "
        f"{' '.join(CPUS)}",
    )
    parser.add_argument("--record", action="store_true", help=f"replace the hashes in {RECORDED}")
    arguments = parser.parse_args()
    cpus = arguments.cpus
    check_emulators(cpus)
    if arguments.record:
        write_json(RECORDED, run_probe(None))
    results = {"recorded": read_json(RECORDED)}
    for cpu in (None, *cpus):
        start = time.monotonic()
        results[cpu or "this machine"] = run_probe(cpu)
        print(f"{cpu or 'this machine'}: {time.monotonic() - start:.0f} s", flush=True)
        write_text(REPORT, tabulate_hashes(results) + "\n")
    print(f"\n{tabulate_hashes(results)}\n")
    recorded = results["recorded"]
    if different := [cpu for cpu, found in results.items() if found != recorded]:
        raise StageError(f"the bytes differ on {', '.join(different)}")
    print("identical on all")


if __name__ == "__main__":
    run(main)
