"""Reproduce the last commit in a clean room and compare the result with its dvc.lock.

Clones HEAD into an empty folder with an empty cache, copies nothing there but the raw files whose
SHA-256 is the catalogue's, runs every stage, and says of each whether its outputs are

    identical    the same bytes
    equivalent   other bytes, within the bounds that another kind of processor may bring
    different    anything else

Writes the finding to reports/verify.json and reports/verify.md. Exits with 1 on `different`, with
--strict also on `equivalent`.

With --lock, only the check that dvc.lock belongs to the commit's code, parameters and small
outputs, which takes a second and runs nothing.

    python -m tools.verify [--strict] [--perturb] [--lock]
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

from stages.core.environment import PINS
from stages.core.errors import StageError, run
from stages.core.files import write_json, write_text
from stages.core.paths import RAW, REPORTS
from stages.download import DownloadParameters, download
from stages.sources.catalogue import CATALOGUE
from stages.sources.fetch import has_expected_hash
from tools.verify import fingerprint
from tools.verify.judge import DIFFERENT, EQUIVALENT, IDENTICAL, VERDICTS, judge_stages
from tools.verify.lockfile import find_stale, read_lock


def copy_raw(source: Path, target: Path, parameters: DownloadParameters) -> None:
    """Copy the raw files, each held to the catalogue; what is missing is downloaded first."""
    if parameters.dataset == "custom":
        return  # the stage reads the folder anew
    dataset = CATALOGUE[parameters.dataset]
    for file in dataset.files:
        if not (source / file.name).exists():
            continue
        if not has_expected_hash(source / file.name, file):
            raise StageError(
                f"{source / file.name}: not the bytes of {parameters.dataset}, whose SHA-256 is "
                f"{file.sha256}; delete it and run `dvc repro`"
            )
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.name, target / file.name)
    download(dataset, parameters.folder, target)  # with the right date: certificates expire


def clean_environment(folder: Path) -> dict[str, str]:
    """Return the environment without the project's own pins: it has to set them itself."""
    environment = {name: value for name, value in os.environ.items() if name not in PINS}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    # Nothing of what DVC keeps or is told elsewhere on this machine.
    for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR"):
        environment[f"DVC_{name}"] = str(folder / name)
    return environment


def perturbed(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Return an environment in which all is different that must not matter."""
    import libfaketime  # of the development dependencies, and for Linux alone

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
def one_core() -> Iterator[None]:
    """Let child processes have a single core, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def reproduce(room: Path, perturb: bool) -> None:
    """Run every stage in the clean room, with nothing restored from a cache."""
    environment = clean_environment(room.parent)
    command = ["dvc", "repro", "--force", "--no-run-cache"]
    if perturb:
        with one_core():
            environment = perturbed(environment, room.parent)
            result = subprocess.run(command, cwd=room, env=environment, umask=0o077, check=False)
    else:
        result = subprocess.run(command, cwd=room, env=environment, check=False)
    if result.returncode:
        raise StageError("the pipeline failed in the clean room, for the reason it gives above")


def environment_table(
    here: dict[str, Any], there: dict[str, Any] | None
) -> list[tuple[str, str, str]]:
    """Return rows of what the two machines are, libraries one by one; what differs is marked."""

    def flat(record: dict[str, Any] | None) -> dict[str, str]:
        if record is None:
            return {}
        rows = {**record, **record["libraries"]}
        return {
            key.replace("_", " "): str(value)
            for key, value in rows.items()
            if key not in ("libraries", "dvc_lock")
        }

    ours, theirs = flat(here), flat(there)
    return [(key, theirs.get(key, "not recorded"), ours.get(key, "none")) for key in ours | theirs]


def markdown(report: dict[str, Any]) -> str:
    """Return the report for a person, as Markdown."""
    lines = [f"# {report['verdict']}: {report['commit'][:12]} against its dvc.lock", ""]
    lines += ["| stage | verdict | what differs |", "|---|---|---|"]
    for finding in report["stages"]:
        what = "; ".join([*finding["outputs"], *finding["notes"]]) or "nothing"
        lines.append(f"| {finding['stage']} | {finding['verdict']} | {what} |")
    if report["first_divergence"]:
        lines += ["", f"The first stage to diverge is **{report['first_divergence']}**."]
    lines += ["", report["promise"], "", "| environment | recorded | here |", "|---|---|---|"]
    for key, there, here in report["environment"]:
        mark = "" if there == here else " ≠"
        lines.append(f"| {key}{mark} | {there} | {here} |")
    return "\n".join(lines) + "\n"


def report_of(room: Path, committed: Path, perturb: bool) -> dict[str, Any]:
    """Reproduce the checkout in `room` and return how it compares with that in `committed`."""
    before = read_lock(room)
    contradictions = find_stale(room, before)
    copy_raw(RAW, room / RAW, DownloadParameters.read(room / "params.yaml"))
    reproduce(room, perturb)
    findings = judge_stages(committed, room, before, read_lock(room))
    for finding in findings:
        for note in contradictions[finding.stage]:
            finding.worsen(DIFFERENT, note)
    here, there = fingerprint.fingerprint(committed), fingerprint.recorded(committed)
    machines = [here] if there is None else [here, there]
    promised = all(fingerprint.hardware_promises_same_bytes(machine) for machine in machines)
    return {
        "verdict": max((finding.verdict for finding in findings), key=VERDICTS.index),
        "perturbed": perturb,
        "first_divergence": next((f.stage for f in findings if f.verdict != IDENTICAL), None),
        "stages": [vars(finding) for finding in findings],
        "promise": "Every byte is promised to be the same here."
        if promised
        else "Raw and prepared data are promised to be the same bytes here; trained weights, "
        "metrics and pictures to be equivalent.",
        "environment": environment_table(here, there),
    }


def main() -> None:
    """Reproduce, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="also fail on `equivalent`")
    parser.add_argument(
        "--perturb",
        action="store_true",
        help="with another time zone, locale, umask, hash seed, user, home, a clock a year ahead "
        "and a single core",
    )
    parser.add_argument("--lock", action="store_true", help="only check that dvc.lock is current")
    arguments = parser.parse_args()
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        committed, room = Path(folder) / "committed", Path(folder) / "clean room"
        for clone in (committed, room):
            subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
            subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
        if arguments.lock:
            contradictions = find_stale(room, read_lock(room))
            if notes := [note for found in contradictions.values() for note in found]:
                raise StageError(f"dvc.lock is not of this commit: {'; '.join(notes)}")
            print("dvc.lock is of this commit")
            return
        report = {"commit": commit, **report_of(room, committed, arguments.perturb)}
    write_json(REPORTS / "verify.json", report)
    write_text(REPORTS / "verify.md", markdown(report))
    print(f"\n{markdown(report)}\nAlso in {REPORTS}/verify.md and {REPORTS}/verify.json.")
    print(report["verdict"])
    if report["verdict"] not in ((IDENTICAL,) if arguments.strict else (IDENTICAL, EQUIVALENT)):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
