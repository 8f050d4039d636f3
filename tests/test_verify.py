"""`make verify` on a small project: unchanged, and with faults that it must find."""

import json
import re
import subprocess

import pytest
from helpers.project import ROOT, STAGES, list_dependents
from PIL import Image

from dvc_verify import lockfile
from dvc_verify.compare import compare_outputs
from dvc_verify.machine import read_fingerprint
from dvc_verify.settings import Settings


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


@pytest.mark.linux
def test_replicas_that_depend_on_the_cores_are_found(project):
    old = "return DataParallel(model, self.replicas)"
    new = 'return DataParallel(model, len(__import__("os").sched_getaffinity(0)))'
    replace(project, "stages/model/worker.py", old, new)
    project.run("dvc", "commit", "--force")  # as if two cores had trained
    project.commit("one replica for each core")
    code, _, report = verify(project, "--strict", "--perturb")
    assert code == 1
    assert report["first_divergence"] == "train"


def test_lock_check_names_everything_that_differs(project):
    assert verify(project, "lock") == (0, "dvc.lock belongs to this commit\n", None)
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
    ended = project.run("python", "-m", "dvc_verify", "lock", code=1)
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
    project.run("env", *variables, "python", "-m", "dvc_verify", "lock")
    assert (
        project.run("git", "status", "--porcelain", "--branch").stdout == "## main\nM  README.md\n"
    )


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


# Output, key, recorded value, and a value within and beyond the limits in pyproject.toml.
LIMITS = [
    ("data/evaluation/metrics.json", "test.accuracy", 0.99, 0.9871, 0.9869),
    ("data/evaluation/metrics.json", "validation.loss", 0.02, 0.0249, 0.0251),
]


@pytest.mark.parametrize(("path", "key", "recorded", "within", "beyond"), LIMITS)
def test_metrics_are_equivalent_within_limits(tmp_path, path, key, recorded, within, beyond):
    part, name = key.split(".")
    for file, value in {"old": recorded, "within": within, "beyond": beyond}.items():
        (tmp_path / f"{file}.json").write_text(json.dumps({part: {name: value, "other": value}}))
    limits = Settings.read(ROOT).tolerances[path]
    found = [
        compare_outputs(tmp_path / "old.json", tmp_path / f"{name}.json", limits).equivalent
        for name in ("old", "within", "beyond")
    ]
    assert found == [True, True, False]


@pytest.mark.parametrize(("wrong", "equivalent"), [(5, True), (6, False)])
def test_predictions_are_equivalent_within_limits(tmp_path, wrong, equivalent):
    for name, count in (("old", 0), ("new", wrong)):
        rows = [f"{i},1,{2 if i < count else 1},0.{i}" for i in range(1000)]
        (tmp_path / f"{name}.csv").write_text(
            "index,actual,predicted,confidence\n" + "\n".join(rows)
        )
    limits = Settings.read(ROOT).tolerances["data/evaluation/predictions.csv"]
    found = compare_outputs(tmp_path / "old.csv", tmp_path / "new.csv", limits)
    assert found.equivalent == equivalent


@pytest.mark.parametrize(
    ("shade", "size", "equivalent"),
    [(250, (40, 30), True), (249, (40, 30), False), (255, (41, 30), False)],
)
def test_plots_are_compared_by_their_pixels(tmp_path, shade, size, equivalent):
    for name, plot in (
        ("old", Image.new("L", (40, 30), 255)),
        ("new", Image.new("L", size, shade)),
    ):
        plot.save(tmp_path / f"{name}.png")
    limits = Settings.read(ROOT).tolerances["data/plots/*.png"]
    found = compare_outputs(tmp_path / "old.png", tmp_path / "new.png", limits)
    assert found.equivalent == equivalent
