"""The documentation: links, commands, parameters, and the output that it quotes."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from helpers.pages import find_missing_lines, find_quoted_commands
from helpers.parameters import have_default_results, read_defaults
from helpers.project import ROOT
from ruamel.yaml import YAML

from stages.sources.catalogue import CATALOGUE
from tools import install, recipe

EXTENDING = "docs/extending.md"  # its parameters are new: tests/test_extending.py
default_results = pytest.mark.skipif(
    not have_default_results(), reason="dvc.lock records other parameters than README describes"
)
LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
README, KOREAN, TECHNIQUES = (
    ROOT / name for name in ("README.md", "README.ko.md", "docs/techniques.md")
)


def read_prose(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def list_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", read_prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def list_experiments(page: Path) -> list[list[tuple[str, str]]]:
    """Return the keys and values that each block of commands sets with -S.

    A list of values, as in `train.epochs=2,4,8`, counts as its first value.
    """
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    blocks += re.findall(r"`(dvc exp run [^`]*)`", read_prose(page))
    found = [re.findall(r"-S '?([\w.]+)=(\[[^\]]*\]|[^\s',]+)", block) for block in blocks]
    return [settings for settings in found if settings]


# Links


@pytest.mark.parametrize("name", LISTED)
def test_relative_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in list_anchors(target), link


# Commands


@pytest.mark.parametrize("name", LISTED)
def test_named_commands_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"^```\w+ \S+\n.*?^```$", "", text, flags=re.M | re.S)  # see test_extending.py
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^\$ )make ([a-z.][\w./-]*)", text, re.M):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), target
    for module in re.findall(r"python -m ((?:stages|tools)\.[\w.]*\w)", text):
        assert module.isupper() or module.endswith("NAME") or importlib.util.find_spec(module)
    for value in re.findall(r"RECIPE=([a-z]\w*)", text):
        assert value == "name" or (ROOT / f"recipes/{value}.yaml").exists(), value


@pytest.mark.parametrize(
    "page", [page for page in LISTED if list_experiments(ROOT / page) and page != EXTENDING]
)
def test_parameters_of_commands_are_valid(page):
    """The commands of a block follow each other: each starts from the values of the one before."""
    yaml = YAML(typ="safe")
    start = read_defaults()
    if ROOT / page == TECHNIQUES:  # its commands start from this recipe
        merged = recipe.merge_recipe(json.dumps(start), yaml.load(ROOT / "recipes/techniques.yaml"))
        start = yaml.load(merged)
    for settings in list_experiments(ROOT / page):
        values = copy.deepcopy(start)
        for key, value in settings:
            *sections, last = key.split(".")
            section = values
            for name in sections:
                section = section[name]
            assert last in section, key
            section[last] = 1 if value.startswith("$") else yaml.load(value)
        recipe.check(values)


def test_version_is_the_same_everywhere():
    yaml = YAML(typ="safe")
    citation = yaml.load(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    newest = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    assert newest[1] == project["version"]


def test_readmes_have_the_same_commands_and_output():
    assert find_quoted_commands(KOREAN) == find_quoted_commands(README)


def test_diagram_shows_the_graph_of_dvc():
    """Each arrow is one of `dvc dag`, and arrows in a row lead where `dvc dag` has one."""
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    dot = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    stages = set(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    actual = set(re.findall(r'"(\w+)" -> "(\w+)"', dot))
    shown = {
        (a, b) for a, b in re.findall(r"^ *(\w+) -- .* --> (\w+)", diagram, re.M) if b in stages
    }
    reached = set(shown)
    for _ in stages:
        reached |= {(a, d) for a, b in reached for c, d in reached if b == c}
    assert shown <= actual <= reached


# Quoted output


def read_output(command: str) -> list[str]:
    """Return the lines that README quotes below a command."""
    (found,) = [
        quoted.output
        for quoted in find_quoted_commands(README)
        if " ".join(quoted.command) == command
    ]
    assert found
    return found


def blank_numbers(line: str) -> str:
    """Return a line with `...`, which stands for any text, instead of each number."""
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "...", line)


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("make repro", ["requirements.txt", "requirements-tools.txt"]),
        ("make test", ["requirements-dev.txt"]),  # .venv exists by then
    ],
)
def test_quoted_installation_is_real(command, files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    Path("requirements-tools.txt").touch()
    if command == "make test":
        install.PYTHON.parent.mkdir(parents=True)
        install.PYTHON.touch()
    for step in ("check_python", "make_venv", "fetch_uv", "install"):
        monkeypatch.setattr(install, step, lambda *_: None)
    monkeypatch.setattr("sys.argv", ["tools/install.py", *files])
    install.main()
    assert capsys.readouterr().out.splitlines() == read_output(command)[:1]


def test_quoted_run_is_real(first_run, small_project):
    """The quoted lines are compared with a small project. Its numbers and dataset are different."""
    printed = (first_run / "printed.txt").read_text() + small_project.run("dvc", "repro").stdout
    quoted = [
        blank_numbers(line.replace(CATALOGUE["mnist"].title, "..."))
        for line in read_output("make repro")[1:]
    ]
    assert len(quoted) > 5
    assert find_missing_lines(quoted, printed) == []


def test_quoted_end_of_tests_is_real(tmp_path):
    """The quoted lines are compared with those of ruff and pytest on one small file."""
    file = tmp_path / "test_one.py"
    file.write_text("def test_one():\n    pass\n")
    printed = ""
    for command in (
        ["ruff", "check", "--isolated", file],
        ["pytest", "--disable-plugin-autoload", "--rootdir", tmp_path, "-c", os.devnull, file],
    ):
        printed += subprocess.run(
            [Path(sys.executable).parent / command[0], *command[1:]],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    quoted = [re.sub(r"=+", "...", line) for line in read_output("make test")[1:]]
    assert len(quoted) > 1
    assert find_missing_lines(quoted, printed) == []


@default_results
def test_quoted_epoch_is_the_recorded_one():
    (line,) = [line for line in read_output("make repro") if line.startswith("epoch ")]
    quoted = dict(re.findall(r"(\w+) ([\d.e-]+)(?:,|$)", line.partition(" s, ")[2]))
    last = pd.read_csv(ROOT / "data/model/history.csv").iloc[-1]
    assert quoted == {name: f"{last[name]:.4g}" for name in quoted}
    assert {"accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"} == quoted.keys()


@default_results
def test_quoted_metrics_are_the_recorded_ones():
    metrics = json.loads((ROOT / "data/evaluation/metrics.json").read_text())
    rows = [line.split() for line in read_output("dvc metrics diff") if line != "..."]
    assert rows.pop(0) == ["Path", "Metric", "HEAD", "workspace", "Change"]
    assert len(rows) > 2
    for path, name, old, new, change in rows:
        assert path == "data/evaluation/metrics.json"
        part, metric = name.split(".")
        assert float(old) == round(metrics[part][metric], 5)
        assert float(new) - float(old) == pytest.approx(float(change), abs=1e-5)
