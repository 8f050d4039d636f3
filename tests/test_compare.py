"""Comparisons of real runs on branches of a small project, by DVC's commands and by the tools."""

import argparse
import base64
import io
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.pages import find_missing_lines, find_quoted_commands
from helpers.project import ROOT
from PIL import Image

from stages.core.machine import collect_fingerprint, promises_same_bytes
from stages.core.settings import read_yaml
from tools import compare
from tools.shared import revision
from tools.shared.significance import (
    SIGNIFICANCE_LEVEL,
    Verdict,
    adjust_p_values,
    compare_runs,
    compare_seeds,
)

# Ten values that each stand for ten of the value before: 10 ** 9 in all.
BOMB = "a0: &a0 [q]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)

PREDICTIONS = "data/evaluation/predictions.csv"

# The command make, which does not install anything with these options.
MAKE = ("make", "--silent", "--old-file", ".venv/runtime")


@pytest.fixture(scope="module")
def project(small_project):
    """Branches: main; longer, with more epochs; redrawn, with other plots of the same model."""
    project = small_project
    project.run("git", "tag", "nothing-yet", "HEAD~")
    for branch, changes in [("longer", {"train.epochs": 6}), ("redrawn", {"plot.dpi": 50})]:
        project.run("git", "switch", "-q", "-c", branch, "main")
        project.set(changes)
        project.repro()
        project.commit(branch)
    project.run("git", "switch", "-q", "main")
    # make and the workflow use .venv. git must not see it.
    (project.folder / ".git/info/exclude").write_text(".venv\n")
    (project.folder / ".venv").symlink_to(sys.prefix)
    return project


@pytest.fixture
def here(project, monkeypatch):
    """The project on main, as the current folder. Any change is undone afterwards."""
    monkeypatch.chdir(project.folder)
    yield project
    project.run("git", "checkout", "-q", "--force", "main")
    project.run("git", "clean", "-q", "-d", "--force")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a tool in this process and returns its exit code and its output."""

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


def count_changes(project, before, after):
    """Return how many test images the second branch fixed, and how many it broke."""
    old, new = (read_committed(project, f"{side}:{PREDICTIONS}") for side in (before, after))
    was, now = old["actual"] == old["predicted"], new["actual"] == new["predicted"]
    return (~was & now).sum(), (was & ~now).sum()


def read_committed(project, name):
    """Return the table in a committed file, as text."""
    return pd.read_csv(io.StringIO(project.run("git", "show", name).stdout), dtype=str)


def read_table(text, heading):
    """Return the rows of the Markdown table below a heading, as lists of cells."""
    section = re.search(rf"^### {heading}\n(.*?)(?=^### |\Z)", text, re.M | re.S)[1]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


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
def test_p_value_of_two_runs(fixed, broken, p_value, direction):
    verdict = compare_runs(fixed, broken, 10_000, max_drop=1.0)
    assert verdict.p_value == pytest.approx(p_value, rel=1e-6)
    assert verdict.direction == direction


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
        # One side without any spread: t = 0.01 / sqrt(0.0002 / 2) = 1 on 1 degree of freedom.
        ([0.9, 0.9], [0.9, 0.92], 0.5, "same"),
    ],
)
def test_p_value_of_two_sets_of_seeds(before, after, p_value, direction):
    verdict = compare_seeds(before, after, max_drop=1.0)
    assert verdict.p_value == pytest.approx(p_value, abs=1e-5)
    assert verdict.direction == direction


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [  # by hand: 0.01 * 4, then 0.02 * 3, then 0.03 * 2 but at least the one before, then 0.5
        ([0.5, 0.02, 0.01, 0.03], [0.5, 0.06, 0.04, 0.06]),
        ([0.7, 0.6], [1.0, 1.0]),
        ([], []),
    ],
)
def test_p_values_are_adjusted_as_holm_does(p_values, adjusted):
    found = adjust_p_values(pd.Series(p_values, dtype=float))
    assert found.to_list() == pytest.approx(adjusted)


@pytest.mark.parametrize(
    ("fixed", "broken", "max_drop", "direction"),
    [
        (5, 15, 1.0, "worse"),  # p = 0.041
        (0, 5, 0.0005, "same"),
        (0, 5, 0.0004, "worse"),
        (5, 0, 0.0, "same"),
    ],
)
def test_larger_drop_than_allowed_is_worse(fixed, broken, max_drop, direction):
    """The p-value does not matter."""
    assert compare_runs(fixed, broken, 10_000, max_drop).direction == direction


def test_verdict_says_what_it_found():
    assert compare_runs(0, 5, 10_000, 0.0004).summary.startswith(
        "Worse by 0.000500, but only 0.0004"
    )
    assert compare_runs(0, 5, 10_000, 0.0005).summary == "No evidence of a difference"
    assert Verdict(0.1, SIGNIFICANCE_LEVEL, "", max_drop=1.0).direction == "same"
    assert compare_runs(1, 2, 10_000, 1.0).evidence.startswith("1 image fixed, 2 broken")
    assert compare_runs(2, 1, 10_000, 1.0).evidence.startswith("2 images fixed, 1 broken")
    seeds = compare_seeds([0.9, 0.9], [0.9, 0.92], max_drop=1.0)
    assert re.findall("± (.*?%)", seeds.evidence) == ["0.000%", "1.414%"]
    # The means differ by a rounding error, which does not count as a drop.
    assert compare_seeds([0.937, 0.915], [0.938, 0.914], max_drop=0.0).drop == 0


def test_long_value_is_cut():
    """GitHub refuses comments above 65,536 characters."""
    (change,) = compare.compare_parameters({"a": "x" * 1000, "b": 1}, {"a": 2, "b": 1})
    assert (len(change["before"]), change["after"]) == (compare.LONGEST, "2")


def test_differences_are_exact_and_have_a_direction():
    before = {"test.accuracy": 0.9913, "test.loss": 0.3, "train.epochs": 4, "a.old": 1.0}
    after = {"test.accuracy": 0.9919, "test.loss": 0.4, "train.epochs": 6, "a.new": 2.0}
    for name, value in [("test.top2_accuracy", 0.5), ("test.log_loss", 2.0), ("test.f1", 0.5)]:
        before[name], after[name] = value, value / 2 if name != "test.f1" else value
    changes = [tuple(change.values()) for change in compare.compare_metrics(before, after)]
    assert 0.9919 - 0.9913 != 0.0006  # the difference of two floats
    assert changes == [
        ("test.accuracy", "0.9913", "0.9919", "+0.0006", "better"),
        ("test.loss", "0.3", "0.4", "+0.1", "worse"),
        ("train.epochs", "4", "6", "+2", ""),
        ("a.old", "1.0", "none", "", ""),
        ("test.top2_accuracy", "0.5", "0.25", "-0.25", "worse"),
        ("test.log_loss", "2.0", "1.0", "-1.0", "better"),
        ("test.f1", "0.5", "0.5", "0", "same"),
        ("a.new", "none", "2.0", "", ""),
    ]


@pytest.mark.parametrize(
    ("number", "sign", "short"),
    [
        ("0.013261653051791689", "", "0.013262"),
        ("+0.0009000000000000119", "+", "+0.000900"),
        ("-1E-9", "+", "-1e-09"),
        ("1.5e-06", "", "0.000002"),
        ("+2", "+", "+2"),
        ("5", "", "5"),
        ("0.0", "", "0.000000"),
        ("none", "", "none"),
        ("", "+", ""),
    ],
)
def test_numbers_are_shortened(number, sign, short):
    assert compare.shorten(number.lower(), sign) == short


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", 1), ("1e-3", 0.001)])
def test_largest_drop_is_a_fraction(text, value):
    assert compare.parse_fraction(text) == value
    for other in ("-0.1", "1.1", "nan", "a"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 1"):
            compare.parse_fraction(other)


def test_most_confident_mistakes_come_first():
    """Of equal ones, the first in the test set. An image of ink is shown black on white."""
    images = np.zeros((3, 1, 2), np.float32)
    images[1] = [[0, 0.4]]
    table = pd.DataFrame(
        {"index": [0, 1, 2], "confidence_before": [0.5, 0.9, 0.9], "confidence_after": [1, 2, 3]}
    )
    for ink, levels in [(True, [255, 153]), (False, [0, 102])]:
        rows = compare.list_images(table, "before", images, ink)
        assert [row["index"] for row in rows] == [1, 2, 0]
        stream = io.BytesIO(base64.b64decode(rows[0]["image"].partition(",")[2]))
        assert np.array(Image.open(stream)).tolist() == [levels]
    (first, *_) = compare.list_images(table, "after", None, ink=True)
    assert (first["index"], first["image"]) == (2, None)


def test_only_significant_classes_are_marked():
    """Class a: 10 fixed, p = 2 / 2**10, times 3. Class b: 5 fixed, p = 2 / 2**5, times 2."""
    table = pd.DataFrame({"actual": ["a"] * 10 + ["b"] * 10, "after": True, "broken": False})
    table["before"] = [False] * 15 + [True] * 5
    table["fixed"] = ~table["before"]
    first, second, none = compare.count_by_class(table, ["a", "b", "c"]).to_dict("records")
    numbers = {"count": 10, "before": 0, "after": 10, "fixed": 10, "broken": 0}
    assert first == {"name": "a", **numbers, "p_value": 3 * 2 / 1024, "significant": True}
    assert (second["fixed"], second["before"]) == (5, 5)
    assert (second["p_value"], second["significant"]) == (2 * 2 / 32, False)
    assert (none["count"], none["p_value"]) == (0, 1)


def test_better_result_is_reported(project):
    """The verdict, then parameters, metrics, images and the classes that changed."""
    fixed, broken = count_changes(project, "main", "longer")
    n, few = fixed + broken, min(fixed, broken)
    p_value = 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    assert few > 1
    assert p_value < 0.001  # otherwise the runs would show nothing
    printed = project.run(*MAKE, "compare", "BASE=main", "HEAD=longer", "MAX_DROP=0.1").stdout
    assert printed.splitlines()[:3] == [
        "## Significantly better: main → longer",
        "",
        f"{fixed} images fixed, {broken} broken (McNemar's exact test, p = {p_value:.2g}).",
    ]
    headings = ["Parameters and code", "Metrics", "Images", "Classes"]
    assert re.findall("^### (.*)$", printed, re.M) == headings
    assert read_table(printed, "Parameters and code") == [["train.epochs", "2", "6"]]
    metrics = read_table(printed, "Metrics")
    assert len(metrics) == 14
    assert metrics[0][0] == "test.accuracy"
    assert metrics[0][-1] == "better"
    kinds = [row[0] for row in read_table(printed, "Images")]
    assert kinds == ["fixed"] * min(fixed, 10) + ["broken"] * min(broken, 10)
    changed = [row[0] for row in read_table(printed, "Classes")]
    assert 0 < len(changed) < 10
    lines = [line for line in printed.splitlines() if line.startswith(("|", "#"))]
    assert max(map(len, lines)) <= 80

    printed = project.run(*MAKE, "compare", "HEAD=longer", "PER_CLASS=1").stdout
    classes = read_table(printed, "Classes")
    assert [row[0] for row in classes] == list("0123456789")
    assert [row[0] for row in classes if float(row[-1]) < 0.05] == changed
    assert sum(int(row[4]) for row in classes) == fixed
    assert sum(int(row[5]) for row in classes) == broken


def test_workflow_fails_on_worse_and_writes_the_summary(project, tmp_path, monkeypatch):
    workflow = read_yaml(project.folder / ".github/workflows/compare.yml")
    steps = [step.get("run", "") for step in workflow["jobs"]["compare"]["steps"]]
    (summarise,) = [step for step in steps if "SUMMARY" in step]
    (command,) = [
        line.split("||")[0].replace(".venv/bin/python", "python").replace("$1", "longer")
        for line in (project.folder / ".ci/compare").read_text().splitlines()
        if "tools.compare" in line
    ]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert "Significantly worse" in project.run("bash", "-ec", command, code=1).stdout
    project.run("bash", "-ec", summarise)
    markdown = (tmp_path / "summary.md").read_text()
    assert markdown.startswith("## Significantly worse: longer → HEAD\n")
    assert read_table(markdown, "Parameters and code") == [["train.epochs", "6", "2"]]


def test_same_results_are_no_difference(here, run):
    code, printed = run(compare, "main", "redrawn")
    assert code == 0
    assert printed.startswith("## No evidence of a difference: main → redrawn\n")
    assert "\n0 images fixed, 0 broken (McNemar's exact test, p = 1).\n" in printed
    assert read_table(printed, "Parameters and code") == [["plot.dpi", "60", "50"]]
    assert "All 14 metrics are the same." in printed
    assert "None of the 297 test images was fixed or broken." in printed
    assert "No class changed significantly." in printed


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_aliases_without_end_in_another_branch_are_refused(here, run, file):
    """Before DVC or this project expands them to gigabytes."""
    here.run("git", "switch", "-q", "--detach")
    Path(file).write_text(BOMB)
    here.commit("aliases")
    commit = here.run("git", "rev-parse", "HEAD").stdout[:12]
    here.run("git", "switch", "-q", "main")
    code, printed = run(compare, commit)
    assert (code, printed.count("\n")) == (2, 1)
    assert printed.startswith(f"error: {commit}/{file}: ")
    assert "aliases expand" in printed


def test_workspace_is_compared_as_it_is(here, run):
    here.run("git", "checkout", "-q", "redrawn", "--", "params.yaml", "dvc.lock", "data")
    code, printed = run(compare, "longer")
    assert code == 1
    assert printed.startswith("## Significantly worse: longer → workspace\n")
    assert ["plot.dpi", "60", "50"] in read_table(printed, "Parameters and code")


def test_changed_code_is_named_file_by_file(here, run):
    """dvc.lock records only one hash for a folder."""
    here.run("git", "switch", "-q", "-C", "refactored", "main")
    for path in ("stages/plot.py", "stages/sources/idx.py"):
        Path(path).write_text(Path(path).read_text() + "# A comment.\n")
    here.repro()
    here.commit("refactored")
    here.run("git", "switch", "-q", "main")
    code, printed = run(compare, "main", "refactored")
    assert code == 0
    assert "Changed files: stages/plot.py, stages/sources/idx.py.\n" in printed


def test_older_revision_with_per_class_metrics(here, run):
    """In older revisions, metrics.json holds the scores that are now in per_class.csv."""
    here.run("git", "switch", "-q", "-C", "older", "main")
    file = Path("data/evaluation/metrics.json")
    metrics = json.loads(file.read_text())
    metrics["test"]["per_class"] = {"0": {"f1": 0.5, "support": 27}}
    file.write_text(json.dumps(metrics))
    here.commit("older")
    here.run("git", "switch", "-q", "main")
    code, printed = run(compare, "older", "longer")
    assert code == 2  # its dvc.lock no longer matches, which is reported
    heading, _, fix = printed.splitlines()[:3]
    assert heading == "## Stale results: older → longer"
    assert "make repro" in fix
    assert "For the results as they are: Significantly better." in printed
    assert "> **STALE RESULTS.** older: data/evaluation/metrics.json has changed" in printed
    assert len(read_table(printed, "Metrics")) == 14


@pytest.mark.parametrize(
    ("revisions", "named"),
    [
        (["main", "same"], "main and same are the same commit"),
        (["main"], "main and workspace have the same files"),
        (["mian"], "mian: .*; similar: main"),
        (["main:README.md"], "main:README.md names a file or a folder"),
    ],
)
def test_what_cannot_be_compared_is_named(here, run, revisions, named):
    here.run("git", "tag", "--force", "same", "main")
    code, printed = run(compare, *revisions)
    assert (code, printed.count("\n")) == (2, 1)
    assert re.match(f"error: {named}", printed)


def test_revision_without_results_is_named(here, run):
    run(compare, "main", "redrawn")
    code, printed = run(compare, "nothing-yet", "main")
    assert code == 2
    assert printed.startswith("error: nothing-yet has no results to compare: ")
    assert [name for name in ("metrics.json", PREDICTIONS, "dvc.lock") if name not in printed] == []
    assert "nothing-yet has no results" in Path("reports/compare.md").read_text()
    assert not Path("reports/compare.html").exists()  # it would show the other comparison


def test_shallow_clone_gets_a_command_to_fetch_the_rest(project, tmp_path, monkeypatch, run):
    address = project.folder.as_uri()
    project.run("git", "clone", "-q", "--depth", "1", address, str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    code, printed = run(compare, "longer", "origin/main")
    assert code == 2
    command = "git remote set-branches origin '*' && git fetch --unshallow"
    assert printed.endswith(f"the clone is shallow, and this command fetches the rest: {command}\n")
    project.run("sh", "-c", command, cwd=tmp_path / "clone")
    assert run(compare, "longer", "origin/main")[0] == 1


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("metrics.json", r'"loss": [0-9.]+', '"loss": NaN', "expected a finite number for .*loss"),
        ("metrics.json", r'"loss": [0-9.]+', '"loss": "low"', "expected a finite number .*'low'"),
        ("metrics.json", r'"loss": [0-9.]+', '"loss": true', "expected a finite number .*True"),
        ("metrics.json", r'"loss": [0-9.]+', f'"loss": {10**400}', "expected a finite number"),
        ("../raw/dataset.json", r'"sha256": \{', '"sha256": [], "x": {', "sha256"),
        ("metrics.json", r'"accuracy":', '"acuracy":', "test.accuracy is missing"),
        ("metrics.json", r'"accuracy": [0-9.]+', '"accuracy": 0.5', "come from different runs"),
        ("metrics.json", "{", "", "metrics.json: not readable as JSON"),
        ("predictions.csv", "confidence", "sureness", "expected a row for each test image"),
        ("predictions.csv", r"0\.\d+\n", "\n", "expected a row for each test image"),
        ("predictions.csv", r"\n7,", "\n8,", "expected a row for each test image, numbered"),
        (
            "predictions.csv",
            r"\n296,.*",
            "",
            "come from different runs|have different test sets",
        ),
        (
            "../raw/dataset.json",
            r'"t10k-labels.*: "',
            r"\g<0>0",
            "have different test sets",
        ),
        ("../../params.yaml", r"\A", BOMB, "params.yaml: not readable as YAML: its aliases"),
        ("../../dvc.lock", r"\A", BOMB, "dvc.lock: not readable as YAML: its aliases"),
        ("../../dvc.lock", "schema", "<<<<<<< HEAD\nschema", "merge conflict in dvc.lock"),
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


VALIDATION_MD5 = re.compile(r"(validation.npz\n +hash: md5\n +md5: \w{8})(\w{8})")


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (
            "params.yaml",
            "  epochs: 2\n",
            "  epochs: 5\n",
            ["workspace: train.epochs is 5 in params.yaml and 2 in dvc.lock"],
        ),
        ("dvc.lock", "md5: ", "md6: ", ["workspace: ", "dvc.lock"]),
        (
            "dvc.lock",
            VALIDATION_MD5,
            r"\g<1>00000000",
            ["The validation sets differ", "validation.npz has changed since dvc.lock"],
        ),
    ],
)
def test_results_of_something_else_are_stale(here, run, file, old, new, named):
    text = re.sub(old, new, Path(file).read_text())
    assert text != Path(file).read_text()
    Path(file).write_text(text)
    code, printed = run(compare, "longer")
    assert (code, printed.splitlines()[0]) == (2, "## Stale results: longer → workspace")
    assert [part for part in named if part not in printed] == []


def test_images_of_another_test_set_are_not_shown(here):
    result = revision.read_revision("workspace")
    assert len(revision.read_test_images(result)) == len(result.predictions)
    fewer = replace(result, classes=result.classes[:-1])
    moved = result.predictions.assign(actual=result.predictions["actual"].to_numpy()[::-1])
    for other in (fewer, replace(result, predictions=moved)):
        assert revision.read_test_images(other) is None


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
def test_page_is_one_file_and_fits(here, run, browser, width, media):
    run(compare, "main", "longer")
    address = Path("reports/compare.html").absolute().as_uri()
    page = browser.new_page(viewport={"width": width, "height": 844})
    logged, requested = [], []
    page.emulate_media(media=media)
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    assert page.inner_text("h1") == "Significantly better"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert sizes == [28] * sum(count_changes(here, "main", "longer"))
    assert logged == []
    assert [url for url in requested if not url.startswith("data:")] == [address]
    page.close()


def test_clone_without_a_cache_is_compared_without_images(project, tmp_path, monkeypatch, run):
    project.run("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    code, printed = run(compare, "origin/main", "origin/longer")
    assert code == 0
    assert "compare.html shows no images, because DVC's cache does not have them." in printed
    assert "<img" not in Path("reports/compare.html").read_text()


def test_seeds_are_kept_and_compared(project, monkeypatch, run):
    monkeypatch.chdir(project.folder)
    before = project.run("git", "status", "--short").stdout
    printed = project.run("python", "-m", "tools.seeds", "2").stdout
    assert "2 of 2 done, 0 running, 0 failed" in printed
    assert project.run("git", "status", "--short").stdout == before == ""
    commit = project.run("git", "rev-parse", "main").stdout
    names = [f"seed1-{commit[:4]}", f"seed2-{commit[:4]}"]
    difference = json.loads(project.run("dvc", "exp", "diff", *names, "--json").stdout)
    values = {"old": 1, "new": 2, "diff": 1}
    assert difference["params"]["params.yaml"] == {"model.seed": values, "train.seed": values}
    losses = list(difference["metrics"]["data/evaluation/metrics.json"]["test.loss"].values())[:2]
    mean, half = sum(losses) / 2, abs(losses[0] - losses[1]) / 2
    figures = (mean, half * math.sqrt(2), min(losses), max(losses))
    row = " +\\| +".join(f"{figure:.6f}" for figure in figures)
    assert half > 0
    assert re.search(rf"\| test.loss +\| +{row} \|", printed)
    assert re.search(r"^Test accuracy \d\d\.\d{3}% ± \d+\.\d{3}%", printed, re.M)

    # Another commit with the same training: the seeds are equal.
    project.run("git", "switch", "-q", "redrawn")
    printed = project.run("python", "-m", "tools.seeds", "2", "--per-class").stdout
    assert re.search(rf"\| test.loss +\| +{row} \|", printed)
    assert len(re.findall(r"^\| recall of \d +\|", printed, re.M)) == 10
    project.run("git", "switch", "-q", "main")
    code, printed = run(compare, "main", "redrawn")
    assert code == 0
    assert "over 2 seeds before" in printed
    assert "Comparison of only these two runs: No evidence of a difference. 0 images" in printed

    # A single experiment is a revision like any other.
    code, printed = run(compare, names[0], names[1])
    assert ["model.seed", "1", "2"] in read_table(printed, "Parameters and code")
    assert "2 of 2 runs were done before" in project.run("python", "-m", "tools.seeds", "2").stdout


def test_documentation_shows_real_output(here):
    """Names and hashes of commits are different in each clone."""
    if not promises_same_bytes(collect_fingerprint()):
        pytest.skip("this processor trains an equivalent model, with other numbers")
    shown = [q for q in find_quoted_commands(ROOT / "docs/comparing.md") if q.output]
    assert [" ".join(quoted.command) for quoted in shown] == [
        "make compare BASE=main HEAD=longer",
        "make seeds N=2",
        "dvc metrics diff main longer",
    ]
    for (program, *arguments), output in shown:
        command = [*MAKE, *arguments] if program == "make" else [program, *arguments]
        assert find_missing_lines(output, here.run(*command).stdout) == []


def test_dvc_shows_accuracy_and_loss_in_120_columns(here):
    """The pager cuts longer lines and marks them in the last column."""
    name = "loyal-puma"  # as long as the names that DVC chooses
    here.run("dvc", "exp", "run", "--name", name, "--set-param", "plot.dpi=80")
    here.run("git", "checkout", "-q", "--force", "main")
    table = here.run("dvc", "exp", "show").stdout
    (header,) = [line for line in table.splitlines() if line.startswith("  Experiment")]
    names = re.findall(r"── \w{7} \[(.+?)\]", table)
    assert name in names
    assert max(map(len, names)) == len(name)  # those of tools.seeds, too
    assert 0 < header.index("test.accuracy ") < header.index("test.loss")
    assert header.index("test.loss") + len("test.loss") < 120


def test_dvc_compares_two_branches(here):
    def dvc(*arguments):
        return here.run("dvc", *arguments).stdout

    file = "data/evaluation/metrics.json"
    metrics = json.loads(dvc("metrics", "diff", "main", "longer", "--json"))[file]
    epochs = {"old": 2, "new": 6, "diff": 4}
    assert metrics["train.epochs"] == epochs
    lines = dvc("metrics", "diff", "main", "longer").splitlines()
    assert len(lines) == 1 + len(metrics)  # with the table's head
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"][file]["data"]
    assert shown == json.loads(Path(file).read_text())
    parameters = json.loads(dvc("params", "diff", "main", "longer", "--json"))
    assert parameters == {"params.yaml": {"train.epochs": epochs}}

    drawn = ["Loss", "Accuracy", "Learning rate", "Confusion matrix", "Recall of each class"]
    pictures = ["confusion_matrix", "curves", "mistakes", "samples"]
    for command in (["show"], ["diff", "main", "longer"]):
        dvc("plots", *command)
        page = Path("dvc_plots/index.html").read_text()
        assert [name for name in drawn + pictures if name not in page] == []

    target = "data/evaluation/per_class.csv"
    shown = json.loads(dvc("plots", "diff", "main", "longer", "--targets", target, "--show-vega"))
    rows = pd.DataFrame(shown["data"]["values"]).set_index("class")
    for branch in ("main", "longer"):
        recall = read_committed(here, f"{branch}:{target}").set_index("class")["recall"]
        assert rows[rows["rev"] == branch]["recall"].to_dict() == recall.to_dict()
    matrix = json.loads(dvc("plots", "diff", "main", "--targets", PREDICTIONS, "--show-vega"))
    assert matrix["spec"]["encoding"]["y"]["field"] == "actual"
    assert '"as": "percent_of_y"' in json.dumps(matrix)  # each row adds up to 1
