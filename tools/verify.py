"""Reproduce the last commit in a clean room and compare the result with its dvc.lock.

Clones HEAD into an empty folder with an empty cache, copies nothing there but the raw files whose
SHA-256 is the catalogue's, runs every stage, and says of each whether its outputs are

    identical    the same bytes
    equivalent   other bytes, within the bounds that another kind of processor may bring
    different    anything else

Writes the finding to reports/verify.json and reports/verify.md. Exits with 1 on `different`, with
--strict also on `equivalent`.

    python -m tools.verify [--strict] [--perturb]
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

import stages
from stages.artifacts import read_csv, read_json, write_json, write_text
from stages.catalogue import CATALOGUE
from stages.download import RAW, DownloadParameters, is_right
from stages.parameters import StageError, read_yaml, run
from tools import fingerprint

REPORTS = Path("reports")
IDENTICAL, EQUIVALENT, DIFFERENT = VERDICTS = ("identical", "equivalent", "different")

# What another processor or thread count may bring (the README says how this was measured).
ACCURACY = 0.003  # largest difference of an accuracy
AGREEMENT = 0.995  # smallest share of test digits read alike
PICTURE = 0.02  # largest mean difference of a picture's pixels, of 1

Outputs = dict[str, str]  # path to MD5, as dvc.lock has them


@dataclass
class Finding:
    """What became of one stage."""

    stage: str
    verdict: str = IDENTICAL
    outputs: list[str] = field(default_factory=list)  # those that differ
    notes: list[str] = field(default_factory=list)

    def worsen(self, verdict: str, note: str) -> None:
        """Lower the verdict to `verdict`, unless it is that low already, and say why."""
        self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        self.notes.append(note)


def listed(lock: dict[str, Any], stage: str, kind: str) -> Outputs:
    """Return the MD5 of each of a stage's `deps` or `outs` in a dvc.lock."""
    entries = lock.get("stages", {}).get(stage, {}).get(kind, [])
    return {entry["path"]: entry["md5"] for entry in entries}


def stale(room: Path, lock: dict[str, Any]) -> dict[str, list[str]]:
    """Return, for each stage, what the commit itself contradicts in its dvc.lock."""
    parameters = read_yaml(room / "params.yaml")
    found: dict[str, list[str]] = {}
    graph = read_yaml(room / "dvc.yaml")["stages"]
    for stage in graph:
        notes = found.setdefault(stage, [])
        if stage not in lock.get("stages", {}):
            notes.append("dvc.lock does not have the stage")
            continue
        for path, md5 in {**listed(lock, stage, "deps"), **listed(lock, stage, "outs")}.items():
            file = room / path
            if file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() != md5:  # noqa: S324  # DVC's
                notes.append(f"{path} in the commit is not the file that dvc.lock records")
        for key, value in lock["stages"][stage].get("params", {}).get("params.yaml", {}).items():
            if value != (now := lookup(parameters, key)):
                notes.append(f"{key} is {now!r} in params.yaml and {value!r} in dvc.lock")
    return found


def lookup(parameters: Any, key: str) -> Any:
    """Return the value of a dotted key, or None where there is none."""
    for part in key.split("."):
        parameters = parameters.get(part) if isinstance(parameters, dict) else None
    return parameters


def copy_raw(source: Path, target: Path, parameters: DownloadParameters) -> None:
    """Copy the raw files, each held to the catalogue; what is not there is downloaded later."""
    for file in CATALOGUE[parameters.dataset].files:
        if not (source / file.name).exists():
            continue
        if not is_right(source / file.name, file):
            raise StageError(
                f"{source / file.name}: not the bytes of {parameters.dataset}, whose SHA-256 is "
                f"{file.sha256}; delete it and run `dvc repro`"
            )
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.name, target / file.name)


def clean_environment(folder: Path) -> dict[str, str]:
    """Return the environment without the project's own pins: it has to set them itself."""
    environment = {name: value for name, value in os.environ.items() if name not in stages.PINS}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["DVC_SITE_CACHE_DIR"] = str(folder / "site cache")
    return environment


def perturbed(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Return an environment in which all is different that must not matter."""
    import libfaketime  # of the development dependencies, and for Linux alone

    home = folder / "home"
    home.mkdir()
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


def compare(
    committed: Path, room: Path, before: dict[str, Any], after: dict[str, Any]
) -> list[Finding]:
    """Return a finding for each stage, in the order in which they ran.

    `committed` is a checkout of the commit and the cache that may hold its model; `room` is the
    reproduction; `before` and `after` are their dvc.lock.
    """
    findings: list[Finding] = []
    for stage in after["stages"]:
        finding = Finding(stage)
        old, new = listed(before, stage, "outs"), listed(after, stage, "outs")
        finding.outputs = sorted(path for path in old | new if old.get(path) != new.get(path))
        if finding.outputs:
            judge = JUDGES.get(stage)
            if judge is None or set(old) != set(new):
                finding.worsen(DIFFERENT, "its bytes are promised on every machine")
            else:
                judge(finding, committed, room, old)
        findings.append(finding)
    return findings


def judge_train(finding: Finding, committed: Path, room: Path, outputs: Outputs) -> None:
    """Compare the accuracy of the chosen epoch, and the weights where the cache has them."""
    histories = [read_csv(folder / "data/model/history.csv") for folder in (committed, room)]
    old, new = (table.loc[table["chosen"] == 1, "val_loss"].item() for table in histories)
    finding.worsen(EQUIVALENT, f"validation loss of the chosen epoch {old:.6f}, here {new:.6f}")
    path = "data/model/model.keras"
    cached = Path(".dvc/cache/files/md5") / outputs[path][:2] / outputs[path][2:]
    if path in finding.outputs and cached.is_file():
        largest = max(
            float(np.abs(a - b).max())
            for a, b in zip(weights(cached), weights(room / path), strict=True)
        )
        finding.notes.append(f"weights differ by at most {largest:.3g}")
    elif path in finding.outputs:
        finding.notes.append(
            "the recorded model is not in the cache, so its weights can't be compared"
        )


def weights(path: Path) -> list[np.ndarray[Any, Any]]:
    """Return the arrays in a `.keras` file, in the order of their names."""
    found: list[tuple[str, np.ndarray[Any, Any]]] = []
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as stream,
        h5py.File(stream, "r") as file,
    ):
        file.visititems(
            lambda name, item: found.append((name, item[()])) if hasattr(item, "shape") else None
        )
    return [array for _, array in sorted(found, key=lambda entry: entry[0])]


def judge_evaluate(finding: Finding, committed: Path, room: Path, _: Outputs) -> None:
    """Compare the accuracy on the test digits, and how many of them are read alike."""
    folders = (committed, room)
    metrics = [read_json(folder / "data/evaluation/metrics.json") for folder in folders]
    old, new = (content["test"]["accuracy"] for content in metrics)
    tables = [read_csv(f / "data/evaluation/predictions.csv", ("predicted",)) for f in folders]
    same_length = len(tables[0]) == len(tables[1])
    alike = (tables[0]["predicted"] == tables[1]["predicted"]).mean() if same_length else 0.0
    close = abs(old - new) <= ACCURACY and alike >= AGREEMENT
    finding.worsen(
        EQUIVALENT if close else DIFFERENT,
        f"test accuracy {old:.4f}, here {new:.4f} (bound {ACCURACY}); "
        f"{alike:.2%} of the test digits read alike (bound {AGREEMENT:.2%})",
    )


def judge_plot(finding: Finding, committed: Path, room: Path, _: Outputs) -> None:
    """Compare the pictures pixel by pixel."""
    for path in finding.outputs:
        pictures = []
        for folder in (committed, room):
            with Image.open(folder / path) as picture:
                pictures.append(np.asarray(picture.convert("L"), np.float64) / 255)
        if pictures[0].shape != pictures[1].shape:
            finding.worsen(DIFFERENT, f"{path} is of another size")
        else:
            mean = np.abs(pictures[0] - pictures[1]).mean()
            verdict = EQUIVALENT if mean <= PICTURE else DIFFERENT
            finding.worsen(verdict, f"{path} differs by {mean:.2%} a pixel (bound {PICTURE:.0%})")


JUDGES = {"train": judge_train, "evaluate": judge_evaluate, "plot": judge_plot}


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
    arguments = parser.parse_args()
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        room, committed = Path(folder) / "clean room", Path(folder) / "committed"
        for clone in (room, committed):
            subprocess.run(
                ["git", "clone", "--quiet", "--no-hardlinks", ".", str(clone)], check=True
            )
            subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
        before = read_yaml(room / "dvc.lock")
        contradictions = stale(room, before)
        copy_raw(RAW, room / RAW, DownloadParameters.read(room / "params.yaml"))
        reproduce(room, arguments.perturb)
        findings = compare(committed, room, before, read_yaml(room / "dvc.lock"))
    for finding in findings:
        for note in contradictions.get(finding.stage, []):
            finding.worsen(DIFFERENT, note)
    here, there = fingerprint.fingerprint(), fingerprint.recorded()
    verdict = max((finding.verdict for finding in findings), key=VERDICTS.index)
    promised = fingerprint.hardware_promises_same_bytes(here) and (
        there is None or fingerprint.hardware_promises_same_bytes(there)
    )
    report = {
        "commit": commit,
        "verdict": verdict,
        "perturbed": arguments.perturb,
        "first_divergence": next((f.stage for f in findings if f.verdict != IDENTICAL), None),
        "stages": [vars(finding) for finding in findings],
        "promise": "On both machines every byte is promised to be the same."
        if promised
        else "Between these machines raw and prepared data are promised to be the same bytes; "
        "trained weights, metrics and pictures to be equivalent.",
        "environment": environment_table(here, there),
    }
    write_json(REPORTS / "verify.json", report)
    write_text(REPORTS / "verify.md", markdown(report))
    print(f"\n{markdown(report)}\nAlso in {REPORTS}/verify.md and {REPORTS}/verify.json.")
    print(verdict)
    if verdict == DIFFERENT or (arguments.strict and verdict == EQUIVALENT):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
