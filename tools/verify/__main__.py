"""Reproduce the last commit in a fresh clone and compare the result with its dvc.lock.

Clones the last commit into an empty folder with an empty cache. Copies only raw data files there,
after checking their SHA-256, or a custom dataset that DVC tracks. Then runs every stage and gives
each one a verdict:

    identical    its outputs have the recorded bytes
    equivalent   its outputs differ by no more than another kind of processor may cause
    different    everything else

Writes the report to reports/verify.json and reports/verify.md. Exits with status 1 if a stage is
different. With --strict, `equivalent` fails too.

With --lock, runs no stage and only checks that dvc.lock belongs to the code, the parameters and
the small outputs in the commit. That takes seconds.

    python -m tools.verify [--strict] [--perturb] [--workers N] [--lock]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from stages.cluster.addresses import check_count
from stages.core.environment import PINS
from stages.core.errors import StageError, run
from stages.core.files import write_json, write_text
from stages.core.machine import collect_fingerprint, promises_same_bytes
from stages.core.paths import LOCK, PARAMETERS, RAW, REPORTS
from stages.core.terminal import print_line
from stages.download import DownloadParameters, download
from stages.model.settings import TrainParameters
from stages.sources.catalogue import CATALOGUE
from stages.sources.fetch import has_expected_hash
from tools.verify.dataset import check_dataset, copy_dataset
from tools.verify.fingerprint import read_fingerprint
from tools.verify.judge import DIFFERENT, EQUIVALENT, IDENTICAL, VERDICTS, judge_stages
from tools.verify.lockfile import find_stale, read_lock
from tools.verify.repository import clone_commit, find_last_commit

SMALL = 500_000_000  # bytes; MNIST's raw and prepared data need more, with copies in the cache

SAME_BYTES = (
    "Between these two machines, every output must be identical (level B in "
    "docs/reproducibility.md)."
)
SAME_DATA = (
    "Between these two machines, raw and prepared data must be identical, and trained weights, "
    "metrics and plots must be equivalent (levels A and C in docs/reproducibility.md)."
)


def copy_raw(source: Path, target: Path, parameters: DownloadParameters) -> None:
    """Copy the raw data files from `source` to `target`, and download those that are missing.

    Raises StageError if a file does not have the SHA-256 in the catalogue.
    """
    if parameters.dataset == "custom":
        return  # the download stage reads the user's folder; see check_dataset
    dataset = CATALOGUE[parameters.dataset]
    for file in dataset.files:
        if not (source / file.name).exists():
            continue
        if not has_expected_hash(source / file.name, file):
            raise StageError(
                f"{source / file.name}: expected the SHA-256 {file.sha256} of "
                f"{parameters.dataset}; delete the file and run `dvc repro`"
            )
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.name, target / file.name)
    # Downloads happen here and not in the clone: --perturb changes the clock, and then the
    # certificates of servers seem to have expired.
    download(dataset, parameters.folder, target)


def clean_environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without the variables in PINS and the user's DVC settings.

    The stages must set the variables in PINS themselves. DVC keeps its files in `folder`.
    """
    # TF_CONFIG would make the training wait for other workers.
    left_out = {*PINS, "TF_CONFIG"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR"):
        environment[f"DVC_{name}"] = str(folder / name)
    return environment


def perturb_environment(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Return an environment that differs in everything that must not affect the result."""
    import libfaketime  # in requirements-dev.txt, for Linux only

    home = folder / "home"
    write_json(home / ".keras/keras.json", {"floatx": "float64", "epsilon": 0.001})
    _, preload = libfaketime.get_reload_information()
    return environment | {
        "TZ": "XYZ-14",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONHASHSEED": "20011",
        "USER": "somebody",
        "LOGNAME": "somebody",
        "HOME": str(home),
        "FAKETIME": "+365d",
        **preload,
    }


@contextmanager
def limit_to_one_core() -> Iterator[None]:
    """Run child processes on a single core, if the system supports that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def reproduce(clone: Path, perturb: bool, workers: int = 1) -> None:
    """Run every stage in the clone. Raises StageError if one fails."""
    environment = clean_environment(clone.parent)
    command = ["dvc", "repro", "--force", "--no-run-cache"]
    if workers > 1:
        launcher = ["python", "-m", "tools.worker", "--local", str(workers)]
        command = [*launcher, "--force", "--no-run-cache"]
    if perturb:
        with limit_to_one_core():
            environment = perturb_environment(environment, clone.parent)
            result = subprocess.run(command, cwd=clone, env=environment, umask=0o077, check=False)
    else:
        result = subprocess.run(command, cwd=clone, env=environment, check=False)
    if result.returncode:
        free = shutil.disk_usage(clone).free
        full = (
            f"{tempfile.gettempdir()} has {free / 1e6:.0f} MB free: set TMPDIR to a larger folder"
        )
        raise StageError(
            "the pipeline failed in the fresh clone; the reason is printed above"
            + (f"; {full}" if free < SMALL else "")
        )


def compare_environments(
    here: dict[str, Any], recorded: dict[str, Any] | None
) -> list[tuple[str, str, str]]:
    """Return a row (name, recorded value, value here) for each entry of two fingerprints."""

    def list_entries(fingerprint: dict[str, Any] | None) -> dict[str, str]:
        entries = fingerprint or {}
        rows = {**entries, **entries.get("libraries", {})}
        return {
            key.replace("_", " "): str(value)
            for key, value in rows.items()
            if key not in ("libraries", "dvc_lock")
        }

    old, new = list_entries(recorded), list_entries(here)
    return [(key, old.get(key, "not recorded"), new.get(key, "none")) for key in new | old]


def format_report(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    stages = pd.DataFrame(report["stages"], columns=["stage", "verdict"])
    notes = [
        f"- {finding['stage']}: {note}"
        for finding in report["stages"]
        for note in (*(f"{path} differs" for path in finding["outputs"]), *finding["notes"])
    ]
    if report["first_divergence"]:
        notes += ["", f"The first stage to diverge is **{report['first_divergence']}**."]
    rows = [
        (key if old == new else f"{key} ≠", old, new) for key, old, new in report["environment"]
    ]
    environment = pd.DataFrame(rows, columns=["environment", "recorded", "here"])
    parts = [
        f"# {report['verdict']}: {report['commit'][:12]} compared with its {LOCK}",
        stages.to_markdown(index=False),
        "\n".join(notes),
        report["promise"],
        environment.to_markdown(index=False, disable_numparse=True),  # 2.20 stays 2.20
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def make_report(clone: Path, committed: Path, perturb: bool, workers: int) -> dict[str, Any]:
    """Reproduce the commit in `clone`, and compare it with the same commit in `committed`."""
    check_count(workers, TrainParameters.read(clone / PARAMETERS).replicas)
    parameters = DownloadParameters.read(clone / PARAMETERS)
    if dvc_file := check_dataset(parameters):
        copy_dataset(dvc_file, clone)
    before = read_lock(clone)
    stale = find_stale(clone, before)
    copy_raw(RAW, clone / RAW, parameters)
    reproduce(clone, perturb, workers)
    findings = judge_stages(committed, clone, before, read_lock(clone))
    for finding in findings:
        for note in stale[finding.stage]:
            finding.worsen(DIFFERENT, note)
    here, recorded = collect_fingerprint(), read_fingerprint(committed)
    promised = all(promises_same_bytes(machine) for machine in (here, recorded or here))
    return {
        "verdict": max((finding.verdict for finding in findings), key=VERDICTS.index),
        "perturbed": perturb,
        "first_divergence": next((f.stage for f in findings if f.verdict != IDENTICAL), None),
        "stages": [vars(finding) for finding in findings],
        "promise": SAME_BYTES if promised else SAME_DATA,
        "environment": compare_environments(here, recorded),
    }


def check_lock(clone: Path) -> None:
    """Print what in the clone differs from its dvc.lock. Raises StageError if anything does."""
    notes = dict.fromkeys(
        note for found in find_stale(clone, read_lock(clone)).values() for note in found
    )
    for note in notes:
        print_line(note)
    if notes:
        raise StageError(f"{LOCK} is out of date; run `make repro` and commit the result")
    print(f"{LOCK} belongs to this commit")


def main() -> None:
    """Clone the last commit, then check its dvc.lock or reproduce it and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="fail unless all bytes are identical")
    parser.add_argument(
        "--perturb",
        action="store_true",
        help="change the time zone, locale, umask, hash seed, user and home folder, set the clock "
        "a year ahead, and use a single core",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="train on N workers on this machine"
    )
    parser.add_argument(
        "--lock", action="store_true", help="only check that dvc.lock belongs to the last commit"
    )
    arguments = parser.parse_args()
    commit = find_last_commit()
    with tempfile.TemporaryDirectory() as folder:
        clone = clone_commit(commit, Path(folder) / "fresh clone")
        if arguments.lock:
            check_lock(clone)
            return
        committed = clone_commit(commit, Path(folder) / "committed")
        report = {
            "commit": commit,
            **make_report(clone, committed, arguments.perturb, arguments.workers),
        }
    write_json(REPORTS / "verify.json", report)
    write_text(REPORTS / "verify.md", format_report(report))
    print(f"\n{format_report(report)}\nThe report is also in {REPORTS}/verify.md and verify.json.")
    print(report["verdict"])
    if report["verdict"] not in ((IDENTICAL,) if arguments.strict else (IDENTICAL, EQUIVALENT)):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
