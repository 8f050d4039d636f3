"""Verification of a small project in a clean room, as it is and with planted faults."""

import json
import shutil
import subprocess

import pytest
from helpers.project import ROOT, STAGES
from PIL import Image

from stages.core.files import read_json, write_json
from tools.verify import fingerprint, judge, lockfile


@pytest.fixture(scope="module")
def original(small_project):
    project = small_project
    project.set({"model.architecture": "convolutional", "model.filters": [[4]], "train.epochs": 1})
    assert project.repro() == ["train", "evaluate", "plot"]
    project.run("python", "-m", "tools.verify.fingerprint")
    project.commit("convolutional")
    return project


@pytest.fixture
def project(original, tmp_path):
    """A copy of the verified project, with its cache, to plant a fault in."""
    return original.copy(tmp_path / "copy")


def verify(project, *arguments):
    """Run the check and return its exit code, what it printed, and its report."""
    report = project.folder / "reports/verify.json"
    report.unlink(missing_ok=True)
    try:
        printed, code = project.run("python", "-m", "tools.verify", *arguments).stdout, 0
    except AssertionError as error:
        printed, code = str(error), 1
    return code, printed, json.loads(report.read_text()) if report.exists() else None


def replace(project, path, old, new):
    text = (project.folder / path).read_text()
    assert text.count(old) == 1
    (project.folder / path).write_text(text.replace(old, new))


def test_untouched_project_is_identical_whatever_the_surroundings(original):
    code, printed, report = verify(original, "--strict", "--perturb")
    assert code == 0
    assert report["verdict"] == "identical"
    assert report["first_divergence"] is None
    assert [(f["stage"], f["verdict"]) for f in report["stages"]] == [
        (stage, "identical") for stage in STAGES
    ]
    assert printed.splitlines()[-1] == "identical"
    assert "not recorded" not in (original.folder / "reports/verify.md").read_text()


# Each edit, the stage that it must be found in, and the output that must be named.
FAULTS = {
    "unseeded shuffle": (
        "stages/preprocess.py",
        "random_state=parameters.seed",
        "random_state=None",
        "preprocess",
        "data/processed/train.npz",
    ),
    "time stamp in an output": (
        "stages/evaluate.py",
        '    metrics["train"] = {',
        '    metrics["written"] = __import__("time").time()\n    metrics["train"] = {',
        "evaluate",
        "data/evaluation/metrics.json",
    ),
    "order that depends on PYTHONHASHSEED": (
        "stages/evaluate.py",
        '    metrics["train"] = {',
        '    metrics["names"] = list(set(classes))\n    metrics["train"] = {',
        "evaluate",
        "data/evaluation/metrics.json",
    ),
    "nondeterministic plot": (
        "stages/plot.py",
        '"Training against validation, epoch by epoch"',
        "f\"Training against validation {__import__('random').random()}\"",
        "plot",
        "data/plots/curves.png",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught_and_named(project, fault):
    path, old, new, stage, output = FAULTS[fault]
    replace(project, path, old, new)
    assert project.repro()[0] == stage
    project.commit(fault)
    code, printed, report = verify(project, "--strict")
    assert code == 1
    assert report["first_divergence"] == stage
    (finding,) = [found for found in report["stages"] if found["stage"] == stage]
    assert output in finding["outputs"]
    assert f"The first stage to diverge is **{stage}**" in printed


def test_thread_count_taken_from_the_machine_is_caught(project):
    old = "return DataParallel(twin, threads)"
    new = 'return DataParallel(twin, len(__import__("os").sched_getaffinity(0)))'
    replace(project, "stages/network.py", old, new)
    project.repro()
    project.commit("threads of the machine")
    code, _, report = verify(project, "--strict", "--perturb")
    assert code == 1
    assert report["first_divergence"] == "train"


def test_edited_lock_is_caught(project):
    lock = (project.folder / "dvc.lock").read_text()
    (md5,) = {
        line.split()[-1]
        for before, line in zip(lock.splitlines()[:-2], lock.splitlines()[2:], strict=True)
        if before.strip() == "- path: data/processed/test.npz"
    }
    (project.folder / "dvc.lock").write_text(lock.replace(md5, md5[::-1]))
    project.commit("edited lock")
    code, _, report = verify(project)
    assert code == 1
    assert (report["verdict"], report["first_divergence"]) == ("different", "preprocess")
    assert report["stages"][1]["outputs"] == ["data/processed/test.npz"]


def test_stale_metrics_are_caught_without_running_anything(project):
    metrics = project.folder / "data/evaluation/metrics.json"
    content = json.loads(metrics.read_text())
    content["test"]["accuracy"] += 0.01
    metrics.write_text(json.dumps(content))
    project.commit("better metrics")
    code, printed, report = verify(project, "--lock")
    assert (code, report) == (1, None)
    assert "data/evaluation/metrics.json has changed since dvc.lock was recorded" in printed


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (
            "params.yaml",
            "dpi: 60",
            "dpi: 61",
            "plot.dpi is 61 in params.yaml and 60 in dvc.lock",
        ),
        (
            "stages/plot.py",
            "mistakes on",
            "errors on",
            "stages/plot.py has changed since dvc.lock",
        ),
        (
            "dvc.yaml",
            "- stages/plot.py",
            "- stages/plot.py\n      - README.md",
            "the dependency README.md of plot is in only one of dvc.yaml and dvc.lock",
        ),
    ],
)
def test_lock_that_is_not_of_the_commit_is_caught(project, path, old, new, message):
    assert verify(project, "--lock")[0] == 0
    replace(project, path, old, new)
    project.commit("changed")
    code, printed, _ = verify(project, "--lock")
    assert code == 1
    assert message in printed


def test_changed_raw_byte_is_caught(project):
    path = project.folder / "data/raw/train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    code, printed, _ = verify(project)
    assert code == 1
    assert "data/raw/train-labels-idx1-ubyte: not the bytes of digits" in printed


# Without its pins the result does depend on the instruction set and on the shares of a batch: were
# this not so, the tests above could not see a difference. On the number of threads it does not.
CONTROL = """
import os, sys
from stages.core import environment
isa, shares, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
environment.PINS["ONEDNN_MAX_CPU_ISA"] = os.environ["ONEDNN_MAX_CPU_ISA"] = isa
from stages.model import architectures
from stages.model import portable
from stages.model import runtime
from tools.verify import cpus
portable, settle = portable.make_portable, runtime.configure_tensorflow
portable.make_portable = lambda model, _: portable(model, shares)
runtime.configure_tensorflow = lambda _: settle(threads)
cpus.CASES = {"control": {}}
cpus.probe()
"""


def test_control_instruction_sets_and_shares_change_the_result_and_threads_do_not(original):
    def digest(*arguments):
        (original.folder / "control.py").write_text(CONTROL)
        printed = original.run("python", "control.py", *map(str, arguments)).stdout
        (original.folder / "control.py").unlink()
        line = next(line for line in printed.splitlines() if line.startswith("{"))
        return json.loads(line)["control"]

    pinned = digest("AVX2", 2, 2)
    assert digest("AVX2", 2, 1) == pinned
    others = [digest("SSE41", 2, 2), digest("AVX2", 1, 2), digest("AVX2", 4, 2)]
    assert len({pinned, *others}) == 4


def test_fingerprint_is_of_the_lock_beside_it():
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "dvc.lock"], cwd=ROOT, check=False)
    if changed.returncode:
        pytest.skip("dvc.lock has changes that are not committed yet")
    assert fingerprint.recorded(ROOT) is not None


def test_the_recorded_run_is_as_accurate_as_the_readme_says():
    accuracy = read_json(ROOT / "data/evaluation/metrics.json")["test"]["accuracy"]
    assert accuracy >= 0.995
    assert f"| accuracy | {accuracy:.2%}".replace("%", " %") in (ROOT / "README.md").read_text()


def test_equivalence_is_bounded(tmp_path):
    def write(name, accuracy, wrong):
        folder = tmp_path / name / "data/evaluation"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"test": {"accuracy": accuracy}}))
        rows = [f"{i},1,{2 if i < wrong else 1},0.9" for i in range(1000)]
        text = "\n".join(["index,actual,predicted,confidence", *rows])
        (folder / "predictions.csv").write_text(text + "\n")
        return tmp_path / name

    committed = write("committed", 0.99, 0)
    for name, accuracy, wrong, verdict in [
        ("close", 0.992, 4, "equivalent"),
        ("less accurate", 0.98, 4, "different"),
        ("other digits", 0.99, 9, "different"),
    ]:
        finding = judge.Finding("evaluate")
        judge.judge_evaluate(finding, committed, write(name, accuracy, wrong), {})
        assert finding.verdict == verdict, name


def test_stage_in_only_one_of_the_two_is_different(tmp_path):
    outs = {"outs": [{"path": "a", "md5": "1"}]}
    before, after = {"gone": outs}, {"new": outs}
    findings = judge.judge_stages(tmp_path, tmp_path, before, after)
    assert [(f.stage, f.verdict, f.outputs) for f in findings] == [
        ("gone", "different", ["a"]),
        ("new", "different", ["a"]),
    ]


def test_training_that_ends_elsewhere_is_different(original, tmp_path, monkeypatch):
    monkeypatch.chdir(original.folder)
    other = tmp_path / "other"
    for results in ("data/model", "data/evaluation"):
        shutil.copytree(original.folder / results, other / results)
    outs = lockfile.list_files(lockfile.read_lock(original.folder), "outs")
    finding = judge.Finding("train", outputs=["data/model/model.keras"])
    judge.judge_train(finding, original.folder, other, outs)
    assert finding.verdict == "equivalent"
    assert "weights differ by at most 0" in finding.notes
    metrics = read_json(other / "data/evaluation/metrics.json")
    metrics["validation"]["loss"] *= 1.25
    write_json(other / "data/evaluation/metrics.json", metrics)
    finding = judge.Finding("train", outputs=["data/model/history.csv"])
    judge.judge_train(finding, original.folder, other, outs)
    assert finding.verdict == "different"


@pytest.mark.parametrize(
    ("shade", "size", "verdict"),
    [(250, (40, 30), "equivalent"), (128, (40, 30), "different"), (255, (41, 30), "different")],
)
def test_pictures_are_compared_by_their_pixels(tmp_path, shade, size, verdict):
    for name, picture in [
        ("committed", Image.new("L", (40, 30), 255)),
        ("room", Image.new("L", size, shade)),
    ]:
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "a.png")
    finding = judge.Finding("plot", outputs=["a.png"])
    judge.judge_plot(finding, tmp_path / "committed", tmp_path / "room", {})
    assert finding.verdict == verdict
