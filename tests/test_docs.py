"""The documentation: links, commands, parameters, numbers, and the output that it quotes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
from helpers.pages import find_missing_lines, find_quoted_commands
from helpers.parameters import have_default_results, read_defaults
from helpers.project import ROOT

from stages.core.settings import read_yaml
from stages.sources.catalogue import CATALOGUE
from tools import install, recipe
from tools.shared.runs import change_parameters, expand_grid

README, KOREAN, TECHNIQUES = "README.md", "README.ko.md", "docs/techniques.md"
LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
default_results = pytest.mark.skipif(
    not have_default_results(), reason="dvc.lock records other parameters than README describes"
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def read_prose(page: str) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)


def list_anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", read_prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def list_experiments(page: str) -> list[list[str]]:
    """Return the settings that each block of commands makes with -S, such as `train.epochs=2,4`."""
    blocks = re.findall(r"^```console\n(.*?)^```$", read(page), re.M | re.S)
    blocks += re.findall(r"`(dvc exp run [^`]*)`", read_prose(page))
    return list(filter(None, (re.findall(r"-S '?([\w.]+=[^\s']+)", block) for block in blocks)))


@pytest.mark.parametrize("page", LISTED)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(Path(page).parent / path) if path else page
        assert (ROOT / target).exists(), link
        assert not anchor or anchor in list_anchors(target), link


@pytest.mark.parametrize("page", LISTED)
def test_named_commands_exist(page):
    text = re.sub(r"^```\w+ \S+\n.*?^```$", "", read(page), flags=re.M | re.S)  # test_extending.py
    for target in re.findall(r"(?:`|^\$ )make ([a-z.][\w./-]*)", text, re.M):
        assert re.search(rf"^{re.escape(target)}:", read("Makefile"), re.M), target
    for module in re.findall(r"python -m ((?:stages|tools)\.[\w.]*\w)", text):
        assert module.isupper() or module.endswith("NAME") or importlib.util.find_spec(module)
    for value in re.findall(r"RECIPE=([a-z]\w*)", text):
        assert value == "name" or (ROOT / f"recipes/{value}.yaml").exists(), value


# The parameters of docs/extending.md are new: see test_extending.py.
@pytest.mark.parametrize(
    "page", [p for p in LISTED if list_experiments(p) and "extending" not in p]
)
def test_parameters_of_commands_are_valid(page, tmp_path, monkeypatch):
    """The commands of a block follow each other: each starts from the values of the one before."""
    text = json.dumps(read_defaults())
    if page == TECHNIQUES:  # its commands start from this recipe
        text = recipe.merge_recipe(text, read_yaml(ROOT / "recipes/techniques.yaml"))
    sections = recipe.find_sections()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    for settings in list_experiments(page):
        for overrides in expand_grid(settings):
            change_parameters(overrides, sections)


def test_readmes_have_the_same_commands_and_output():
    assert find_quoted_commands(ROOT / KOREAN) == find_quoted_commands(ROOT / README)


def test_diagram_shows_the_graph_of_dvc():
    """Each arrow is one of `dvc dag`, and arrows in a row lead where `dvc dag` has one."""
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    dot = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", read(README), re.M | re.S)
    actual = set(re.findall(r'"(\w+)" -> "(\w+)"', dot))
    shown = set(re.findall(r"^ *(\w+) -- .* --> (\w+)$", diagram, re.M))
    assert shown <= actual <= set(nx.transitive_closure(nx.DiGraph(shown)).edges)


def test_version_is_the_same_everywhere():
    citation = read_yaml(ROOT / "CITATION.cff")
    newest = re.search(r"^## (\S+) \((.+)\)$", read("CHANGELOG.md"), re.M)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    assert newest[1] == tomllib.loads(read("pyproject.toml"))["project"]["version"]


def test_readme_has_the_means_of_the_benchmark():
    """And the Korean README has all of its figures."""
    measured = dict(
        re.findall(r"^\| (?:recipe )?`(\S+)` +\| (\d+\.\d+) ±", read("docs/benchmark.md"), re.M)
    )
    shown = dict(re.findall(r"^\| `?(\S+?)`? \| .* \| (\d+\.\d+)% \|$", read(README), re.M))
    default = measured.pop("params.yaml")
    assert (measured | {"(default)": default}).items() <= shown.items()
    assert f"mean of 5 seeds: {default}%" in read(README)
    korean, english = (re.findall(r"\d\.\d{4}|\d+\.\d+%", read(page)) for page in (KOREAN, README))
    assert sorted(korean) == sorted(english)


def test_limit_of_losses_is_that_of_verify():
    tool = tomllib.loads(read("pyproject.toml"))["tool"]["dvc-verify"]["tolerances"]
    limit = tool["data/evaluation/metrics.json"]["validation.loss"]["relative"]
    assert f"limit for losses is therefore {limit:.0%}." in read("docs/evidence/same-bytes.md")


# Quoted output: the lines that README quotes below each command.
QUOTED = {" ".join(each.command): each.output for each in find_quoted_commands(ROOT / README)}


def test_quoted_installation_is_real(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    Path("requirements-tools.txt").touch()
    for step in ("check_python", "make_venv", "fetch_uv", "install"):
        monkeypatch.setattr(install, step, lambda *_: None)
    for command, file in (
        ("make repro", "requirements.txt"),
        ("make test", "requirements-dev.txt"),
    ):
        monkeypatch.setattr("sys.argv", ["tools/install.py", file])
        install.main()
        assert capfd.readouterr().out.splitlines() == QUOTED[command][:1]
        install.PYTHON.parent.mkdir(parents=True, exist_ok=True)  # .venv exists before `make test`
        install.PYTHON.touch()


def test_quoted_run_is_real(first_run, small_project):
    """The quoted lines are compared with a small project. Its numbers and dataset are different."""
    printed = (first_run / "printed.txt").read_text() + small_project.run("dvc", "repro").stdout
    quoted = "\n".join(QUOTED["make repro"][1:]).replace(CATALOGUE["mnist"].title, "...")
    lines = re.sub(r"\d+(\.\d+)?(e-\d+)?", "...", quoted).splitlines()
    assert len(lines) > 5
    assert find_missing_lines(lines, printed) == []


def test_quoted_end_of_tests_is_real(tmp_path):
    """The quoted lines are compared with those of ruff and pytest on one small file."""
    file = tmp_path / "test_one.py"
    file.write_text("def test_one():\n    pass\n")
    plain = ["--disable-plugin-autoload", "--rootdir", tmp_path, "-c", os.devnull]
    printed = ""
    for command in (["ruff", "check", "--isolated"], ["pytest", *plain]):
        ended = subprocess.run([sys.executable, "-m", *command, file], stdout=subprocess.PIPE)
        printed += ended.stdout.decode()
    quoted = [re.sub(r"=+", "...", line) for line in QUOTED["make test"][1:]]
    assert find_missing_lines(quoted, printed) == []


@default_results
def test_quoted_epoch_is_the_recorded_one():
    (line,) = [line for line in QUOTED["make repro"] if line.startswith("epoch ")]
    quoted = dict(re.findall(r"(\w+) ([\d.e-]+)(?:,|$)", line.partition(" s, ")[2]))
    last = pd.read_csv(ROOT / "data/model/history.csv").iloc[-1]
    assert quoted == {name: f"{last[name]:.4g}" for name in quoted}
    assert {"accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"} == quoted.keys()


@default_results
def test_quoted_metrics_are_the_recorded_ones():
    """Those of `dvc metrics diff`, and those of the first table."""
    metrics = json.loads(read("data/evaluation/metrics.json"))
    rows = [line.split() for line in QUOTED["dvc metrics diff"] if line != "..."]
    assert rows.pop(0) == ["Path", "Metric", "HEAD", "workspace", "Change"]
    assert len(rows) > 2
    for path, name, old, new, change in rows:
        assert path == "data/evaluation/metrics.json"
        part, metric = name.split(".")
        assert float(old) == round(metrics[part][metric], 5)
        assert float(new) - float(old) == pytest.approx(float(change), abs=1e-5)
    test = metrics["test"]
    low, high = (f"{test[f'accuracy_{side}']:.2%}" for side in ("low", "high"))
    assert f"| {test['accuracy']:.2%} (95% interval: {low} to {high})" in read(README)
    assert f"| {test['loss']:.4f} |" in read(README)
