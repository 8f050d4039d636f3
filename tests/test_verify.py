"""`make verify` on a small project: unchanged, and with faults that it must find."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.project import ROOT, STAGES, list_dependents
from PIL import Image

from dvc_verify import lockfile
from dvc_verify.check import find_departure
from dvc_verify.compare import compare_outputs
from dvc_verify.machine import read_fingerprint
from dvc_verify.project import read_settings


@pytest.fixture(scope="module")
def original(small_project):
    project = small_project
    project.set({"model.architecture": "convolutional", "model.filters": [[4]], "train.epochs": 1})
    assert project.repro() == list_dependents("train")
    project.run("python", "-m", "dvc_verify", "record")
    project.commit("convolutional")
    return project


@pytest.fixture
def project(original, tmp_path):
    """A copy of the project and its cache, which a test may change."""
    return original.copy(tmp_path / "copy")


def verify(project, *arguments):
    """Run the command. Return its exit code, what it printed, and its report, if there is one."""
    report = project.folder / "reports/verify.json"
    report.unlink(missing_ok=True)
    try:
        printed, code = project.run("python", "-m", "dvc_verify", *arguments).stdout, 0
    except AssertionError as error:
        printed, code = str(error), 1
    return code, printed, json.loads(report.read_text()) if report.exists() else None


def replace(project, path, old, new):
    text = (project.folder / path).read_text()
    assert text.count(old) == 1
    (project.folder / path).write_text(text.replace(old, new))


@pytest.mark.linux
def test_unchanged_project_is_identical_under_perturb(original):
    code, printed, report = verify(original, "--strict", "--perturb")
    assert code == 0
    assert report["verdict"] == "identical"
    assert report["first_divergence"] is None
    assert [(f["stage"], f["verdict"]) for f in report["stages"]] == [
        (stage, "identical") for stage in STAGES
    ]
    assert printed.splitlines()[-1] == "identical"
    assert "not recorded" not in (original.folder / "reports/verify.md").read_text()


# Faults in outputs that no other stage reads: file, old and new text, and the different output.
FAULTS = {
    "time stamp": (
        "stages/evaluate.py",
        '    metrics["train"] = {',
        '    metrics["written"] = __import__("time").time()\n    metrics["train"] = {',
        "data/evaluation/metrics.json",
    ),
    "order that depends on the hash seed": (
        "stages/evaluate.py",
        "write_csv(PER_CLASS, per_class)",
        "write_csv(PER_CLASS, per_class.assign(support=list(set(classes))))",
        "data/evaluation/per_class.csv",
    ),
    "random number in a plot": (
        "stages/plot.py",
        '"Training against validation, epoch by epoch"',
        "f\"Training against validation {__import__('random').random()}\"",
        "data/plots/curves.png",
    ),
}


def test_every_difference_is_found_and_named(project):
    for path, old, new, _ in FAULTS.values():
        replace(project, path, old, new)
    assert project.repro() == list_dependents("evaluate")
    lock = project.folder / "dvc.lock"
    edited = "data/processed/test.npz"
    md5 = lockfile.list_files(lockfile.read_lock(project.folder), "outs")[edited].md5
    lock.write_text(lock.read_text().replace(md5, md5[::-1]))
    project.commit("faults and an edited lock")
    code, printed, report = verify(project)
    assert code == 1
    assert (report["verdict"], report["first_divergence"]) == ("different", "preprocess")
    named = [output for found in report["stages"] for output in found["outputs"]]
    assert named == [edited, *(output for *_, output in FAULTS.values())]
    assert f"- preprocess: {edited} differs" in printed


def test_lock_check_prints_what_the_docs_show(project):
    assert verify(project, "lock") == (0, "dvc.lock belongs to this commit\n", None)
    project.set({"train.schedule.every": 3})
    replace(project, "data/evaluation/metrics.json", '"chosen_epoch": ', '"chosen_epoch": 1')
    (project.folder / "stages/model/new.py").touch()
    with (project.folder / "stages/model/runtime.py").open("a") as file:
        file.write("# changed\n")
    project.commit("changed")
    ended = project.run("python", "-m", "dvc_verify", "lock", code=1)
    page = (ROOT / "docs/reproducibility.md").read_text()
    *lines, error = page.split("```console\n$ make lock-check\n")[1].split("```")[0].splitlines()
    changed = "data/evaluation/metrics.json has changed since dvc.lock was recorded"
    assert (ended.stdout.splitlines(), ended.stderr) == ([*lines, changed], f"{error}\n")


# What is changed in a training of three epochs, and where the trace must say that it departs.
SABOTAGES = [  # file, pattern, replacement, place
    ("params.yaml", "seed: 1( +# Seed of the init)", r"seed: 2\1", "epoch 0, step 0, layer dense "),
    ("stages/model/batches.py", r"rng\(\[seed,", "rng([seed + 1,", "epoch 1, step 1, layer batch "),
    ("stages/model/architectures.py", "momentum=0.9", "momentum=0.8",
     "epoch 1, step 1, layer batch_normalization "),
    ("params.yaml", "every: 3", "every: 2", "epoch 3, step 16, layer dense "),
    ("stages/core/environment.py", r"update\(PINS\)", 'update(PINS, ONEDNN_MAX_CPU_ISA="SSE41")',
     "epoch 1, step 1, layer dense "),
]  # fmt: skip


def test_trace_names_where_a_training_departs(small_project, tmp_path):
    with small_project.undo_changes() as project:
        changes = {"train.schedule.name": "step", "train.schedule.every": 3, "train.epochs": 3}
        project.set({"model.architecture": "dense"} | changes)
        project.run_stages("train")
        found, recorded = project.folder / "data/model/trace.csv", tmp_path / "trace.csv"
        shutil.copy(found, recorded)
        for path, old, new, place in SABOTAGES:
            before = (project.folder / path).read_text()
            changed = re.sub(old, new, before)
            assert changed != before
            (project.folder / path).write_text(changed)
            project.run_stages("train")
            (project.folder / path).write_text(before)
            assert place in find_departure(recorded, found)


def test_changed_raw_data_is_not_used(project):
    """The clone gets the recorded files from the cache, and checks them."""
    path = project.folder / "data/raw/train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # a link into the cache
    path.write_bytes(content)
    assert verify(project, "--strict")[0] == 0


# Trains with an instruction set and a number of threads, once for each of several numbers of
# replicas.
CONTROL = """
import os, sys
from stages.core import environment
instructions, threads, *replicas = sys.argv[1], *map(int, sys.argv[2:])
environment.PINS["ONEDNN_MAX_CPU_ISA"] = os.environ["ONEDNN_MAX_CPU_ISA"] = instructions
from stages.model import runtime
from benchmarks import cpus
runtime.configure_tensorflow(threads)
runtime.configure_tensorflow = cpus.hash_reports = lambda *_: None
for number in replicas:
    cpus.CASES = {"control": {"train.replicas": number}}
    cpus.probe()
"""


def test_only_instructions_and_replicas_change_the_bytes(original):
    """The number of threads does not. So `cpus.probe` can find a difference."""

    def train(*arguments):
        (original.folder / "control.py").write_text(CONTROL)
        printed = original.run("python", "control.py", *map(str, arguments)).stdout
        (original.folder / "control.py").unlink()
        return re.findall(r'^{"control": "(\w+)"}$', printed, re.M)

    pinned, *others = train("AVX2", 2, 2, 1, 4)
    assert train("AVX2", 1, 2) == [pinned]
    others += train("SSE41", 2, 2)
    assert len({pinned, *others}) == 4


def test_fingerprint_belongs_to_the_lock():
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "dvc.lock"], cwd=ROOT, check=False)
    if changed.returncode:
        pytest.skip("dvc.lock has changes that are not committed yet")
    assert read_fingerprint(ROOT) is not None


def write_metrics(path, key, value):
    part, name = key.split(".")
    path.write_text(json.dumps({part: {name: value, "other": value}}))


def write_predictions(path, wrong):
    rows = [f"{i},1,{2 if i < wrong else 1},0.{i}" for i in range(1000)]
    path.write_text("\n".join(["index,actual,predicted,confidence", *rows]))


def write_image(path, size, shade):
    Image.new("L", size, shade).save(path)


# Output, a function that writes it, and arguments: recorded, within and beyond the limits.
LIMITS = [
    ("evaluation/metrics.json", write_metrics, ("test.accuracy", 0.99), ("test.accuracy", 0.9871),
     ("test.accuracy", 0.9869)),
    ("evaluation/metrics.json", write_metrics, ("validation.loss", 0.02),
     ("validation.loss", 0.0249), ("validation.loss", 0.0251)),
    ("evaluation/predictions.csv", write_predictions, (0,), (5,), (6,)),
    ("plots/*.png", write_image, ((40, 30), 255), ((40, 30), 250), ((40, 30), 249)),
    ("plots/*.png", write_image, ((40, 30), 255), ((40, 30), 255), ((41, 30), 255)),
]  # fmt: skip


@pytest.mark.parametrize(("output", "write", "recorded", "within", "beyond"), LIMITS)
def test_equivalent_means_within_limits(tmp_path, output, write, recorded, within, beyond):
    limits = read_settings(ROOT).tolerances[f"data/{output}"]
    old, new = (tmp_path / f"{side}{Path(output).suffix}" for side in ("old", "new"))
    write(old, *recorded)
    for arguments, equivalent in ((recorded, True), (within, True), (beyond, False)):
        write(new, *arguments)
        assert compare_outputs(old, new, limits).equivalent == equivalent
