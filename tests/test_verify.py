"""`make verify` on a small project: unchanged, and with faults that it must find."""

import json
import re
import shutil
import subprocess

import pytest
from helpers.parameters import have_default_results
from helpers.project import ROOT, STAGES, list_dependents
from PIL import Image

from stages.core.files import read_json, write_json
from tools.verify import fingerprint, judge, lockfile


@pytest.fixture(scope="module")
def original(small_project):
    project = small_project
    project.set({"model.architecture": "convolutional", "model.filters": [[4]], "train.epochs": 1})
    assert project.repro() == list_dependents("train")
    project.run("python", "-m", "tools.verify.fingerprint")
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
        printed, code = project.run("python", "-m", "tools.verify", *arguments).stdout, 0
    except AssertionError as error:
        printed, code = str(error), 1
    return code, printed, json.loads(report.read_text()) if report.exists() else None


def replace(project, path, old, new):
    text = (project.folder / path).read_text()
    assert text.count(old) == 1
    (project.folder / path).write_text(text.replace(old, new))


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


def test_unseeded_shuffle_is_found(project):
    replace(project, "stages/preprocess.py", "random_state=parameters.seed", "random_state=None")
    project.run("dvc", "repro", "preprocess")
    project.run("dvc", "commit", "--force")  # as if the later stages had run
    project.commit("unseeded shuffle")
    code, printed, report = verify(project, "--strict")
    assert code == 1
    assert report["first_divergence"] == "preprocess"
    (finding,) = [found for found in report["stages"] if found["stage"] == "preprocess"]
    assert "data/processed/train.npz" in finding["outputs"]
    assert "The first stage to diverge is **preprocess**" in printed


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


def test_replicas_that_depend_on_the_cores_are_found(project):
    old = "return DataParallel(network, replicas, workers)"
    new = 'return DataParallel(network, len(__import__("os").sched_getaffinity(0)), workers)'
    replace(project, "stages/model/portable.py", old, new)
    project.run("dvc", "commit", "--force")  # as if two cores had trained
    project.commit("one replica for each core")
    code, _, report = verify(project, "--strict", "--perturb")
    assert code == 1
    assert report["first_divergence"] == "train"


def test_lock_check_names_everything_that_differs(project):
    assert verify(project, "--lock") == (0, "dvc.lock belongs to this commit\n", None)
    project.set({"train.schedule.every": 3, "plot.dpi": 61})
    replace(project, "dvc.yaml", "- stages/plot.py", "- stages/plot.py\n      - README.md")
    replace(project, "stages/plot.py", "mistakes on", "errors on")
    replace(project, "data/evaluation/metrics.json", '"chosen_epoch": ', '"chosen_epoch": 1')
    folder = project.folder / "stages/model"
    (folder / "new.py").touch()
    (folder / "augmentation.py").unlink()
    (folder / ".settings.py.swp").touch()
    with (folder / "runtime.py").open("a") as file:
        file.write("# changed\n")
    project.commit("changed")
    ended = project.run("python", "-m", "tools.verify", "--lock", code=1)
    since = "since dvc.lock was recorded"
    assert ended.stdout.splitlines() == [
        f"stages/model/runtime.py has changed {since}",
        f"stages/model/new.py was added {since}",
        f"stages/model/augmentation.py was deleted {since}",
        "train.schedule.every is 3 in params.yaml and 1 in dvc.lock",
        f"data/evaluation/metrics.json has changed {since}",
        "only dvc.yaml lists README.md in deps of plot",
        f"stages/plot.py has changed {since}",
        "plot.dpi is 61 in params.yaml and 60 in dvc.lock",
    ]
    assert (
        ended.stderr == "error: dvc.lock is out of date; run `make repro` and commit the result\n"
    )
    page = (ROOT / "docs/reproducibility.md").read_text()
    example = page.split("```console\n$ make lock-check\n")[1].split("```")[0]
    assert set(example.splitlines()) < set((ended.stdout + ended.stderr).splitlines())


def test_lock_check_in_a_git_hook_changes_nothing(project):
    """git sets GIT_DIR and GIT_INDEX_FILE for its hooks."""
    (project.folder / "README.md").write_text("staged")
    project.run("git", "add", "README.md")
    git = project.folder / ".git"
    variables = (f"GIT_DIR={git}", f"GIT_INDEX_FILE={git / 'index'}")
    project.run("env", *variables, "python", "-m", "tools.verify", "--lock")
    assert (
        project.run("git", "status", "--porcelain", "--branch").stdout == "## main\nM  README.md\n"
    )


def test_changed_raw_data_is_refused(project):
    path = project.folder / "data/raw/train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # a link into the cache
    path.write_bytes(content)
    code, printed, _ = verify(project)
    assert code == 1
    assert "error: data/raw/train-labels-idx1-ubyte: expected the SHA-256" in printed


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
    cpus.CASES = {"control": {"train": {"replicas": number}}}
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
    assert fingerprint.read_fingerprint(ROOT) is not None


@pytest.mark.skipif(not have_default_results(), reason="README describes the default parameters")
def test_readme_has_the_recorded_accuracy():
    accuracy = read_json(ROOT / "data/evaluation/metrics.json")["test"]["accuracy"]
    assert accuracy >= 0.995
    assert f"| accuracy | {accuracy:.2%}".replace("%", " %") in (ROOT / "README.md").read_text()


def test_evaluate_is_equivalent_within_bounds(tmp_path):
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
        ("other predictions", 0.99, 9, "different"),
    ]:
        finding = judge.Finding("evaluate")
        judge.judge_evaluate(finding, committed, write(name, accuracy, wrong), {})
        assert finding.verdict == verdict, name


def test_stage_in_only_one_lock_is_different(tmp_path):
    outs = {"outs": [{"path": "a", "md5": "1"}]}
    before, after = {"gone": outs}, {"new": outs}
    findings = judge.judge_stages(tmp_path, tmp_path, before, after)
    assert [(f.stage, f.verdict, f.outputs) for f in findings] == [
        ("gone", "different", ["a"]),
        ("new", "different", ["a"]),
    ]


def test_train_is_equivalent_within_bounds(original, tmp_path, monkeypatch):
    monkeypatch.chdir(original.folder)
    other = tmp_path / "other"
    for results in ("data/model", "data/evaluation"):
        shutil.copytree(original.folder / results, other / results)
    outs = lockfile.list_files(lockfile.read_lock(original.folder), "outs")
    finding = judge.Finding("train", outputs=["data/model/model.keras"])
    judge.judge_train(finding, original.folder, other, outs)
    assert finding.verdict == "equivalent"
    assert "the weights differ by at most 0" in finding.notes
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
def test_plots_are_compared_by_their_pixels(tmp_path, shade, size, verdict):
    for name, plot in [
        ("committed", Image.new("L", (40, 30), 255)),
        ("clone", Image.new("L", size, shade)),
    ]:
        (tmp_path / name).mkdir()
        plot.save(tmp_path / name / "a.png")
    finding = judge.Finding("plot", outputs=["a.png"])
    judge.judge_plot(finding, tmp_path / "committed", tmp_path / "clone", {})
    assert finding.verdict == verdict
