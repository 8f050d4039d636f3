"""Comparisons of real runs on branches of a small clone: by DVC's own commands, and by ours."""

import io
import json
import math
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages.core.errors import StageError
from stages.core.settings import read_yaml
from tools import seeds
from tools.compare import __main__ as compare
from tools.compare.significance import judge_recipes, judge_runs

# make, with the installed dependencies as they are.
MAKE = ("make", "--silent", "--old-file", ".venv/runtime")


@pytest.fixture(scope="module")
def project(small_project):
    """Branches: main; longer, trained for longer; redrawn, with other pictures of the same run."""
    project = small_project
    project.run("git", "tag", "nothing-yet", "HEAD~")
    for branch, changes in [("longer", {"train.epochs": 6}), ("redrawn", {"plot.dpi": 50})]:
        project.run("git", "switch", "-q", "-c", branch, "main")
        project.set(changes)
        project.repro()
        project.commit(branch)
    project.run("git", "switch", "-q", "main")
    # What make and the workflow call, unseen by git.
    (project.folder / ".git/info/exclude").write_text(".venv\n")
    (project.folder / ".venv").symlink_to(sys.prefix)
    return project


@pytest.fixture
def here(project, monkeypatch):
    """The project on main, as the current folder; any change is undone afterwards."""
    monkeypatch.chdir(project.folder)
    yield project
    project.run("git", "checkout", "-q", "--force", "main")
    project.run("git", "clean", "-q", "-d", "--force")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a tool in this process and returns its exit code and what it printed."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool.__name__, *arguments])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def changed(project, before, after):
    """Return how many test images the second branch fixed, and how many it broke."""
    right = []
    for branch in (before, after):
        text = project.run("git", "show", f"{branch}:data/evaluation/predictions.csv").stdout
        rows = [line.split(",") for line in text.splitlines()[1:]]
        right.append([actual == predicted for _, actual, predicted, _ in rows])
    pairs = list(zip(*right, strict=True))
    return pairs.count((False, True)), pairs.count((True, False))


# Two-sided binomial probabilities, by hand: 2 * (sum of n over k up to the smaller count) / 2**n.
@pytest.mark.parametrize(
    ("fixed", "broken", "p_value", "direction"),
    [
        (0, 0, 1, "same"),
        (1, 1, 1, "same"),
        (5, 0, 2 / 32, "same"),
        (6, 0, 2 / 64, "better"),
        (0, 6, 2 / 64, "worse"),
        (10, 2, 2 * (1 + 12 + 66) / 4096, "better"),
        (12, 9, 0.6636238, "same"),  # 2 * 695860 / 2**21
    ],
)
def test_p_value_of_a_pair_of_networks(fixed, broken, p_value, direction):
    judgement = judge_runs(fixed, broken, 10_000, allowed=1.0)
    assert judgement.p_value == pytest.approx(p_value, rel=1e-6)
    assert judgement.direction == direction


# Means 0.92 and 0.95, both variances 0.0001: t = 0.03 / sqrt(0.0001 / 3 + 0.0001 / 3) = 3.674 on
# 4 degrees of freedom, which tables give 0.0213.
@pytest.mark.parametrize(
    ("before", "after", "p_value", "direction"),
    [
        ([0.91, 0.92, 0.93], [0.94, 0.95, 0.96], 0.02131, "better"),
        ([0.94, 0.95, 0.96], [0.91, 0.92, 0.93], 0.02131, "worse"),
        ([0.91, 0.92, 0.93], [0.91, 0.92, 0.93], 1, "same"),
        ([0.9, 0.9], [0.9, 0.9], 1, "same"),
        ([0.9, 0.9], [0.8, 0.8], 0, "worse"),
    ],
)
def test_p_value_of_a_pair_of_recipes(before, after, p_value, direction):
    judgement = judge_recipes(before, after, allowed=1.0)
    assert judgement.p_value == pytest.approx(p_value, abs=1e-5)
    assert judgement.direction == direction


def test_larger_drop_than_allowed_is_worse_whatever_the_chance():
    assert judge_runs(5, 15, 10_000, allowed=1.0).direction == "worse"
    assert judge_runs(0, 5, 10_000, allowed=0.0005).direction == "same"
    judgement = judge_runs(0, 5, 10_000, allowed=0.0004)
    assert judgement.direction == "worse"
    assert judgement.verdict == "Worse by 0.000500, and 0.0004 is allowed"
    assert judge_runs(5, 0, 10_000, allowed=0.0).direction == "same"


def test_differences_are_exact_and_know_their_direction():
    before = {"test.accuracy": 0.9913, "test.loss": 0.3, "train.epochs": 4, "a.old": 1.0}
    after = {"test.accuracy": 0.9919, "test.loss": 0.4, "train.epochs": 6, "a.new": 2.0}
    rows = [tuple(vars(row).values()) for row in compare.metric_rows(before, after)]
    assert 0.9919 - 0.9913 != 0.0006  # what floats would say
    assert rows == [
        ("test.accuracy", "0.9913", "0.9919", "+0.0006", "better"),
        ("test.loss", "0.3", "0.4", "+0.1", "worse"),
        ("train.epochs", "4", "6", "+2", ""),
        ("a.old", "1.0", "none", "", ""),
        ("a.new", "none", "2.0", "", ""),
    ]


def test_better_is_told_in_words(project):
    fixed, broken = changed(project, "main", "longer")
    n, few = fixed + broken, min(fixed, broken)
    p_value = 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    assert few > 1
    assert p_value < 0.001  # else these runs show nothing
    printed = project.run(*MAKE, "compare", "BASE=main", "HEAD=longer", "MAX_DROP=0.1").stdout
    evidence = f"{fixed} images fixed, {broken} broken (McNemar's exact test, p = {p_value:.2g})"
    assert f"Significantly better: {evidence}.\n" in printed
    assert re.search(r"^train.epochs +2 +6$", printed, re.M)


def test_workflow_fails_on_worse_and_puts_it_into_the_job_summary(project, tmp_path, monkeypatch):
    steps = read_yaml(project.folder / ".github/workflows/ci.yml")["jobs"]["compare"]["steps"]
    judge, summarise = [step["run"] for step in steps if "compare" in step.get("run", "")]
    monkeypatch.setenv("BASE", "longer")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert "Significantly worse" in project.run("bash", "-ec", judge, code=1).stdout
    project.run("bash", "-ec", summarise)
    markdown = (tmp_path / "summary.md").read_text()
    assert markdown.startswith("## Significantly worse: longer → HEAD\n")
    assert "| train.epochs | `6` | `2` |" in markdown
    table = re.findall(r"^\| \d \| \d+ of \d+ \| \d+ \| (\d+) \| (\d+) \|$", markdown, re.M)
    counts = [sum(map(int, column)) for column in zip(*table, strict=True)]
    assert tuple(counts) == changed(project, "longer", "main")


def test_same_result_is_no_difference(here, run):
    code, printed = run(compare, "main", "redrawn")
    assert code == 0
    assert re.search(r"^plot.dpi +60 +50$", printed, re.M)
    assert "All 14 metrics are the same." in printed
    verdict = "No evidence of a difference: 0 images fixed, 0 broken (McNemar's exact test, p = 1)."
    assert verdict in printed


def test_workspace_is_compared_as_it_is(here, run):
    here.run("git", "checkout", "-q", "redrawn", "--", "params.yaml", "dvc.lock", "data")
    code, printed = run(compare, "longer")
    assert code == 1
    assert "longer → workspace, on the same 297 test images" in printed
    assert printed.startswith("Significantly worse: ")  # the verdict comes first
    assert re.search(r"^plot.dpi +60 +50$", printed, re.M)
    assert "Significantly worse" in printed


def test_equal_revisions_are_refused(here, run):
    here.run("git", "tag", "--force", "same", "main")
    assert run(compare, "main", "same") == (
        2,
        "error: main and same are the same commit: nothing to compare\n",
    )
    code, printed = run(compare, "main")
    assert (code, printed.count("main and workspace hold the same files")) == (2, 1)


def test_revision_without_results_is_named(here, run):
    run(compare, "main", "redrawn")
    code, printed = run(compare, "nothing-yet", "main")
    assert code == 2
    assert printed.startswith("error: nothing-yet has no results to compare: neither git nor DVC's")
    assert "nothing-yet has no results" in Path("reports/compare.md").read_text()
    assert not Path("reports/compare.html").exists()  # that of the other comparison


def test_revision_of_before_there_were_predictions_is_named(here, run):
    here.run("git", "switch", "-q", "--detach", "main")
    here.run("git", "rm", "-q", "data/evaluation/predictions.csv")
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(re.sub("data/evaluation/predictions.csv", "other.csv", text))
    here.commit("metrics alone")
    here.run("git", "tag", "--force", "metrics-alone")
    code, printed = run(compare, "main", "metrics-alone")
    assert code == 2
    assert "metrics-alone has no results to compare" in printed
    assert "has its data/evaluation/predictions.csv; where" in printed


def test_unknown_revision_is_named_and_a_likely_one_proposed(here, run):
    assert run(compare, "mian") == (
        2,
        "error: mian: no branch, tag, experiment or commit of this clone has that name; there is "
        "main\n",
    )
    assert run(compare, "main:README.md") == (
        2,
        "error: main:README.md names a file or a folder, not a commit\n",
    )


def test_shallow_clone_tells_how_to_get_the_rest(project, tmp_path, monkeypatch, run):
    address = project.folder.as_uri()
    project.run("git", "clone", "-q", "--depth", "1", address, str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    code, printed = run(compare, "longer", "origin/main")
    assert code == 2
    command = "git remote set-branches origin '*' && git fetch --unshallow"
    assert printed.endswith(f"the clone is shallow, and this brings the rest of it: {command}\n")
    project.run("sh", "-c", command, cwd=tmp_path / "clone")
    assert run(compare, "longer", "origin/main")[0] == 1


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("metrics.json", r'"loss": [0-9.]+', '"loss": NaN', "expected a finite number for .*loss"),
        ("metrics.json", r'"loss": [0-9.]+', '"loss": "low"', "expected a finite number .*'low'"),
        ("metrics.json", r'"accuracy":', '"acuracy":', "expected test.accuracy"),
        ("metrics.json", r'"accuracy": [0-9.]+', '"accuracy": 0.5', "come from different runs"),
        ("metrics.json", "{", "", "metrics.json: not readable as JSON"),
        ("predictions.csv", "confidence", "sureness", "expected a row for each test digit"),
        ("predictions.csv", r"0\.\d+\n", "\n", "expected a row for each test digit"),
        ("predictions.csv", r"\n7,", "\n8,", "expected a row for each test digit, numbered"),
        (
            "predictions.csv",
            r"\n296,.*",
            "",
            "come from different runs|evaluated on different test images",
        ),
        (
            "../raw/dataset.json",
            r'"t10k-labels.*: "',
            r"\g<0>0",
            "evaluated on different test images",
        ),
        ("../../dvc.lock", "schema", "<<<<<<< HEAD\nschema", "dvc.lock: not readable as YAML"),
    ],
)
def test_broken_results_are_named(here, run, path, old, new, message):
    file = Path("data/evaluation", path)
    text = re.sub(old, new, file.read_text(), count=1)
    assert text != file.read_text()
    file.write_text(text)
    code, printed = run(compare, "longer")
    assert code == 2
    assert re.search(rf"^error: .*workspace.*{message}", printed)


def test_results_of_other_parameters_are_told_apart(here, run):
    here.set({"train.epochs": 5})
    code, printed = run(compare, "longer")
    assert code == 2
    assert "workspace: train.epochs is 5 in params.yaml and 2 in dvc.lock" in printed


def test_lock_without_hashes_vouches_for_no_result(here, run):
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text().replace("md5: ", "md6: "))
    code, printed = run(compare, "longer")
    assert code == 2
    assert "STALE RESULTS: workspace: dvc.yaml or dvc.lock is damaged" in printed


def test_other_validation_digits_are_told(here, run):
    lock = Path("dvc.lock")
    md5 = re.search(r"validation.npz\n +hash: md5\n +md5: (\w+)", lock.read_text())[1]
    lock.write_text(lock.read_text().replace(md5, md5[::-1]))
    code, printed = run(compare, "longer")
    assert code == 2
    assert "The validation sets differ" in printed
    assert "validation.npz has changed since dvc.lock was recorded" in printed


def test_results_in_the_cache_are_found(here, run):
    metrics = "data/evaluation/metrics.json"
    here.run("git", "switch", "-q", "-C", "cached")
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace(f"{metrics}: {{cache: false}}", f"{metrics}: {{}}"))
    here.run("git", "rm", "-q", "--cached", metrics)
    here.run("dvc", "commit", "--force", "evaluate")
    here.commit("metrics in the cache")
    assert metrics not in here.run("git", "ls-files").stdout
    here.run("git", "checkout", "-q", "--force", "main")
    code, printed = run(compare, "cached", "longer")
    assert code == 0
    assert "Significantly better" in printed


@pytest.mark.parametrize(("width", "media"), [(390, "screen"), (1280, "screen"), (700, "print")])
def test_page_is_one_file_that_fits_phone_desktop_and_paper(here, run, browser, width, media):
    run(compare, "main", "longer")
    address = Path("reports/compare.html").absolute().as_uri()
    page = browser.new_page(viewport={"width": width, "height": 844})
    said, asked = [], []
    page.emulate_media(media=media)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert page.inner_text("h1") == "Significantly better"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert sizes == [28] * sum(changed(here, "main", "longer"))
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    page.close()


def test_clone_without_a_cache_is_compared_without_pictures(project, tmp_path, monkeypatch, run):
    project.run("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    code, printed = run(compare, "origin/main", "origin/longer")
    assert code == 0
    assert "The test images are not in DVC's cache" in printed
    assert "<img" not in Path("reports/compare.html").read_text()


def test_seeds_are_kept_trained_once_and_judged_as_recipes(project, monkeypatch, run):
    monkeypatch.chdir(project.folder)
    before = project.run("git", "status", "--short").stdout
    printed = project.run(*MAKE, "seeds", "N=2").stdout
    assert printed.count("Running stage 'train'") == 1  # main has the other one
    assert project.run("git", "status", "--short").stdout == before == ""
    commit = project.run("git", "rev-parse", "main").stdout[:7]
    names = [f"seed-1-{commit}", f"seed-2-{commit}"]
    difference = json.loads(project.run("dvc", "exp", "diff", *names, "--json").stdout)
    seeds = {"old": 1, "new": 2, "diff": 1}
    assert difference["params"]["params.yaml"] == {"model.seed": seeds, "train.seed": seeds}
    losses = list(difference["metrics"]["data/evaluation/metrics.json"]["test.loss"].values())[:2]
    mean, half = sum(losses) / 2, abs(losses[0] - losses[1]) / 2
    figures = (mean, half * math.sqrt(2), min(losses), max(losses))
    row = " +\\| +".join(f"{figure:.6f}" for figure in figures)
    assert half > 0
    assert re.search(rf"\| test.loss +\| +{row} \|", printed)

    # Another commit with the same training: nothing is trained, and the recipes are equal.
    project.run("git", "switch", "-q", "redrawn")
    printed = project.run("python", "-m", "tools.seeds", "2").stdout
    assert "Running stage 'train'" not in printed
    assert re.search(rf"\| test.loss +\| +{row} \|", printed)
    project.run("git", "switch", "-q", "main")
    code, printed = run(compare, "main", "redrawn")
    assert code == 0
    assert "over 2 seeds before" in printed
    assert "For these two runs alone: No evidence of a difference: 0 images fixed" in printed

    # A single experiment is a revision like any other.
    code, printed = run(compare, names[0], names[1])
    assert re.search(r"^model.seed +1 +2$", printed, re.M)
    assert "reproducing" not in project.run("python", "-m", "tools.seeds", "2").stdout.lower()


def test_seeds_belong_to_a_commit(here, run):
    here.set({"train.epochs": 3})
    with pytest.raises(StageError, match="the workspace differs from the last commit"):
        run(seeds, "2")
    assert here.run("git", "diff", "--stat").stdout.count("params.yaml") == 1


def test_dvc_compares_two_branches(here):
    def dvc(*arguments):
        return here.run("dvc", *arguments).stdout

    metrics = json.loads(dvc("metrics", "diff", "main", "longer", "--json"))
    epochs = {"old": 2, "new": 6, "diff": 4}
    assert metrics["data/evaluation/metrics.json"]["train.epochs"] == epochs
    lines = dvc("metrics", "diff", "main", "longer").splitlines()
    assert len(lines) == 1 + 14  # the head of the table and the headline metrics
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"]
    committed = Path("data/evaluation/metrics.json").read_text()
    assert shown["data/evaluation/metrics.json"]["data"] == json.loads(committed)
    parameters = json.loads(dvc("params", "diff", "main", "longer", "--json"))
    assert parameters == {"params.yaml": {"train.epochs": epochs}}

    drawn = ["Loss", "Accuracy", "Learning rate", "Confusion matrix", "Recall of each class"]
    pictures = ["confusion_matrix", "curves", "mistakes", "samples"]
    for command in (["show"], ["diff", "main", "longer"]):
        dvc("plots", *command)
        page = Path("dvc_plots/index.html").read_text()
        assert [name for name in drawn + pictures if name not in page] == []

    target = "data/evaluation/per_class.csv"
    shown = dvc("plots", "diff", "main", "longer", "--targets", target, "--show-vega")
    specification = json.loads(shown)
    rows = specification["data"]["values"]
    for branch in ("main", "longer"):
        committed = pd.read_csv(
            io.StringIO(here.run("git", "show", f"{branch}:{target}").stdout), dtype=str
        )
        drawn = {row["class"]: row["recall"] for row in rows if row["rev"] == branch}
        assert drawn == dict(zip(committed["class"], committed["recall"], strict=True))
    matrix = dvc(
        "plots", "diff", "main", "--targets", "data/evaluation/predictions.csv", "--show-vega"
    )
    assert '"as": "percent_of_y"' in matrix  # DVC's shares are those of the row
    assert json.loads(matrix)["spec"]["encoding"]["y"]["field"] == "actual"


def test_dvc_runs_one_experiment_and_a_grid(here):
    here.run("dvc", "exp", "run", "--name", "fine", "--set-param", "plot.dpi=70")
    difference = json.loads(here.run("dvc", "exp", "diff", "main", "fine", "--json").stdout)
    assert difference["params"]["params.yaml"]["plot.dpi"] == {"old": 60, "new": 70, "diff": 10}
    here.run("git", "checkout", "-q", "--force", "main")
    here.run("dvc", "exp", "run", "--queue", "--set-param", "plot.dpi=55,65")
    here.run("dvc", "exp", "run", "--run-all")
    shown = json.loads(here.run("dvc", "exp", "show", "--json").stdout)
    (main,) = [entry for entry in shown if entry["rev"] != "workspace"]
    found = {}
    for experiment in main["experiments"]:
        (revision,) = experiment["revs"]
        found[revision["data"]["params"]["params.yaml"]["data"]["plot"]["dpi"]] = revision["name"]
    assert found.keys() >= {55, 65}
    difference = here.run("dvc", "exp", "diff", found[55], found[65], "--json").stdout
    assert json.loads(difference)["params"]["params.yaml"]["plot.dpi"]["diff"] == 10
