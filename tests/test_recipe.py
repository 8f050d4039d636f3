"""Recipes, and the check of all sections of params.yaml."""

import difflib
import re
import subprocess
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from helpers.checks import get_refusal
from helpers.parameters import DEFAULTS, change_file
from helpers.project import AUTHOR, ROOT
from ruamel.yaml import YAML

from dvc_verify.lockfile import flatten
from tools import recipe

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
PARAMETERS = Path("params.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A git repository with default parameters and the project's recipes, committed."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    for path in [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")]:
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    change_file(PARAMETERS, DEFAULTS)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *AUTHOR, *command], check=True)
    write_graph()


def write_graph(old="", new=""):
    text = (ROOT / "dvc.yaml").read_text()
    assert old in text
    Path("dvc.yaml").write_text(text.replace(old, new))


def values():
    return YAML(typ="safe").load(PARAMETERS)


def find_comments():
    return re.findall("#.*", PARAMETERS.read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_written_as_dvc_writes_it(name):
    before, comments = PARAMETERS.read_text(), find_comments()
    recipe.apply(name)
    after = PARAMETERS.read_text()
    assert after != before
    assert find_comments() == comments
    apply_overrides("params.yaml", [f"plot.dpi={values()['plot']['dpi']}"])
    assert PARAMETERS.read_text() == after


def test_dvc_keeps_comments_and_changes_one_line():
    """What `dvc exp run -S` does to params.yaml, for each key in turn."""
    comments = find_comments()
    for key, value in flatten(values()).items():
        before = PARAMETERS.read_text().splitlines()
        new = [*value, 9] if isinstance(value, list) else -1
        apply_overrides("params.yaml", [f"{key}={new}"])
        changes = difflib.ndiff(before, PARAMETERS.read_text().splitlines())
        changes = [line for line in changes if line.startswith(("- ", "+ "))]
        assert len(changes) == (1 if isinstance(value, list) else 2), changes
    assert find_comments() == comments


def test_notebook_has_the_values_of_the_course_page():
    recipe.apply("notebook")
    expected = {
        "preprocess.validation_fraction": 0.2,
        "preprocess.seed": 42,
        "preprocess.stratify": False,
        "model.architecture": "dense",
        "model.hidden_units": [128],
        "model.batch_normalization": False,
        "model.dropout": 0,
        "train.optimizer": "adam",
        "train.learning_rate": 0.001,  # Keras's default
        "train.epochs": 5,
        "train.batch_size": 32,
        "train.label_smoothing": 0,
        "train.loss": "categorical_crossentropy",
        "train.metrics": ["accuracy"],
        "train.schedule.name": "constant",
        "train.early_stopping.enabled": False,
    }
    found = flatten(values())
    assert {key: found[key] for key in expected} == expected


def test_recipes_do_not_add_up():
    Path("recipes/a.yaml").write_text("train: {epochs: 1}\n")
    Path("recipes/b.yaml").write_text("train: {batch_size: 7}\n")
    committed = values()
    recipe.apply("a")
    assert values()["train"]["epochs"] == 1
    recipe.apply("b")
    assert values()["train"] == committed["train"] | {"batch_size": 7}


def test_uncommitted_changes_are_not_overwritten():
    own = PARAMETERS.read_text() + "# mine\n"
    PARAMETERS.write_text(own)
    assert "uncommitted changes" in get_refusal(recipe.apply, "notebook")
    assert PARAMETERS.read_text() == own


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {speed: 1}", ["train.speed", "not a key of params.yaml"]),
        ("train: {seed: {x: 1}}", ["train.seed.x", "not a key of params.yaml"]),
        ("train: {epochs: 0}", ["train.epochs is 0"]),
        (
            "model: {architecture: branched, api: sequential}",
            ["model.architecture", "model.api"],
        ),
        (
            "{model: {members: 2}, train: {early_stopping: {enabled: true}}}",
            ["model.members", "train.early_stopping"],
        ),
    ],
)
def test_invalid_recipe_changes_nothing(text, named):
    Path("recipes/bad.yaml").write_text(text)
    before = PARAMETERS.read_text()
    found = get_refusal(recipe.apply, "bad")
    assert [part for part in named if part not in found] == []
    assert PARAMETERS.read_text() == before


def test_unknown_recipe_is_refused_with_all_names():
    found = get_refusal(recipe.apply, "nothing")
    assert [name for name in ("'nothing'", *RECIPES) if name not in found] == []


def test_unknown_section_is_refused():
    with PARAMETERS.open("a") as file:
        file.write("modle: {}\n")
    assert "no stage in dvc.yaml lists the section modle" in get_refusal(recipe.check, values())


@pytest.mark.parametrize(
    ("listed", "instead", "named"),
    [
        ("      - plot\n", "      - evaluate\n", "the stage plot reads plot of params.yaml"),
        ("      - plot\n", "      - plot.dpi\n", "reads plot.samples, plot.mistakes of"),
        ("    params:\n      - preprocess\n", "", "the stage preprocess reads preprocess of"),
        ("      - model\n", "      - model.seed\n", "the stage train reads model.architecture, "),
    ],
)
def test_unlisted_parameters_are_named(listed, instead, named):
    write_graph(listed, instead)
    found = get_refusal(recipe.check, values())
    assert found.startswith("dvc.yaml: the stage ")
    assert named in found
    assert f"add '- {listed.split()[-1]}' to its params" in found


def test_all_keys_may_be_listed_in_place_of_a_section():
    keys = "".join(f"      - preprocess.{key}\n" for key in values()["preprocess"])
    write_graph("      - preprocess\n", keys)
    recipe.check(values())


def test_stage_without_its_script_is_named():
    write_graph("-m stages.plot", "-m stages.report")
    assert "the stage plot runs stages.report" in get_refusal(recipe.check, values())


@pytest.mark.parametrize("listed", ["- report", "- report.pages", "- params.yaml: [report.pages]"])
def test_section_of_another_program_is_accepted(listed):
    """Its values are not checked, because no script declares them."""
    with PARAMETERS.open("a") as file:
        file.write("report: {pages: 3}\n")
    report = f"  report:\n    cmd: ./report.sh\n    params:\n      {listed}\n\n"
    write_graph("  plot:\n", report + "  plot:\n")
    recipe.check(values())
