"""Train and predict with every kind of network under other processors, and compare the bytes.

QEMU's user-mode emulation (Debian's package qemu-user) runs the same program with another
processor's instructions, model number and caches. Each case is a short training on made-up
pictures and a prediction; its hash is of the weights, the history and the probabilities. The table
goes to reports/cpus.md; exits with 1 where a hash differs from this machine's own.

    python -m tools.verify_cpus [CPU ...]
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import write_text
from stages.hyperparameters import ModelParameters, TrainParameters
from stages.parameters import PARAMETERS, StageError, read_yaml, run

CPUS = ("Haswell", "Skylake-Client", "EPYC-Milan")
REPORT = Path("reports/cpus.md")
STEPS = 3  # of training; a difference in one kernel shows after the first

# Each value of each enumerated key at least once, on top of params.yaml.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "params.yaml": {},
    "dense, adam, batch 32": {
        "model": {"architecture": "dense", "batch_normalization": False},
        "train": {"optimizer": "adam", "batch_size": 32, "schedule": {"name": "constant"}},
    },
    "dense, sgd, squared error": {
        "model": {"architecture": "dense", "dropout": 0.3},
        "train": {"optimizer": "sgd", "loss": "mean_squared_error", "schedule": {"name": "step"}},
    },
    "dense, lion": {"model": {"architecture": "dense"}, "train": {"optimizer": "lion"}},
    "convolutional, nesterov": {
        "train": {
            "optimizer": "sgd",
            "momentum": 0.9,
            "nesterov": True,
            "schedule": {"name": "exponential"},
        }
    },
    "convolutional, rmsprop, dropout": {
        "model": {"dropout": 0.3},
        "train": {"optimizer": "rmsprop", "schedule": {"name": "plateau"}},
    },
    "convolutional, adamw, squared error": {
        "train": {"optimizer": "adamw", "loss": "mean_squared_error"}
    },
    "convolutional, adagrad, no batch normalization": {
        "model": {"batch_normalization": False},
        "train": {"optimizer": "adagrad"},
    },
    "branched, nadam": {"model": {"architecture": "branched"}, "train": {"optimizer": "nadam"}},
    "branched, adamax, squared error": {
        "model": {"architecture": "branched"},
        "train": {"optimizer": "adamax", "loss": "mean_squared_error"},
    },
    "branched, adadelta, dropout": {
        "model": {"architecture": "branched", "dropout": 0.3},
        "train": {"optimizer": "adadelta"},
    },
}


def probe() -> None:
    """Print each case's name and hash as a line of JSON; this is what runs under emulation."""
    from stages import network, runtime
    from stages.fit import fit

    content = read_yaml(PARAMETERS)
    runtime.settle(content["train"]["threads"])
    rng = np.random.default_rng(0)
    for name, changes in CASES.items():
        model_values = content["model"] | changes.get("model", {})
        train_values = content["train"] | {"epochs": 2} | changes.get("train", {})
        schedule = changes.get("train", {}).get("schedule", {})
        train_values["schedule"] = content["train"]["schedule"] | schedule
        parameters = TrainParameters.check(train_values)
        count = STEPS * parameters.batch_size // 2  # in each of two epochs
        images = rng.random((count, 28, 28), np.float32)
        labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, count)]
        model = network.build(ModelParameters.check(model_values), images.shape[1:], 10)
        twin = network.portable(model)
        history = fit(twin, (images, labels), (images, labels), parameters)
        model.set_weights(twin.get_weights())
        model.compile("sgd", loss=twin.loss)
        batch_size = content["evaluate"]["batch_size"]
        repeats = (2 * batch_size // count, 1)  # more than one batch, and a part of one
        probabilities, loss = network.predict(
            model, np.tile(images, (*repeats, 1)), np.tile(labels, repeats), batch_size
        )
        digest = hashlib.sha256(history.to_csv().encode())
        for array in (*twin.get_weights(), probabilities, np.float64(loss)):
            digest.update(array.tobytes())
        print(json.dumps({name: digest.hexdigest()}), flush=True)


def hashes(cpu: str | None) -> dict[str, str]:
    """Return the probe's hashes on this machine, or under emulation of `cpu`."""
    interpreter = str(Path(sys.executable).resolve())
    # The real interpreter does not know the virtual environment that its link lies in.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [interpreter, "-c", "from tools.verify_cpus import probe; probe()"]
    if cpu:
        command = [emulator(), "-cpu", cpu, *command]
    found: dict[str, str] = {}
    said: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("{"):
                found |= json.loads(line)
                print(f"  {cpu or 'this machine'}: {len(found)} of {len(CASES)}", flush=True)
    if len(found) < len(CASES):
        raise StageError(f"the probe failed on {cpu or 'this machine'}:\n{''.join(said)}")
    return found


def emulator() -> str:
    """Return the path of QEMU's user-mode emulator for x86-64."""
    for name in ("qemu-x86_64", "qemu-x86_64-static"):
        if path := shutil.which(name):
            return path
    print("skipped: qemu-x86_64 is not on the PATH (Debian: apt-get install qemu-user)")
    sys.exit(0)


def table(results: dict[str, dict[str, str]]) -> str:
    """Return the hashes as Markdown, the first eight digits of each, one row a case."""
    lines = ["| case | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    native = next(iter(results.values()))
    for case in CASES:
        cells = [
            f"`{found[case][:8]}`" + ("" if found[case] == native[case] else " ≠")
            for found in results.values()
        ]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare this machine with each emulated processor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cpus", nargs="*", default=CPUS, metavar="CPU", help=f"default: {CPUS}")
    cpus = parser.parse_args().cpus
    emulator()
    results = {}
    for cpu in (None, *cpus):
        start = time.monotonic()
        results[cpu or "this machine"] = hashes(cpu)
        print(f"{cpu or 'this machine'}: {time.monotonic() - start:.0f} s")
    report = table(results)
    write_text(REPORT, report)
    print(f"\n{report}")
    native = results["this machine"]
    if different := [cpu for cpu, found in results.items() if found != native]:
        raise StageError(f"other bytes on {', '.join(different)}")
    print("identical on all")


if __name__ == "__main__":
    run(main)
