"""Recipes, and the check of all sections of params.yaml."""

import difflib
import re
import subprocess
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from helpers.checks import get_refusal
from helpers.parameters import DEFAULTS, change_file
from ruamel.yaml import YAML

from stages.core.errors import StageError
from tools import recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A git repository with default parameters and the project's recipes, committed."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    for path in [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")]:
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    change_file(Path("params.yaml"), DEFAULTS)
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], check=True)
    write_graph()
    return tmp_path


def write_graph(old="", new=""):
    text = (ROOT / "dvc.yaml").read_text()
    assert old in text
    Path("dvc.yaml").write_text(text.replace(old, new))


def values():
    return YAML(typ="safe").load(Path("params.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_keeps_comments(folder, name):
    before = Path("params.yaml").read_text()
    recipe.apply(name)
    assert Path("params.yaml").read_text() != before
    comments = [line for line in before.splitlines() if line.strip().startswith("#")]
    assert [c for c in comments if c not in Path("params.yaml").read_text().splitlines()] == []


def list_keys(values, prefix=""):
    """Return the dotted names of all keys with their values, without those of sections."""
    found = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= list_keys(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def changed_lines(before, after):
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("- ", "+ "))]


def test_dvc_keeps_comments_and_changes_one_line(folder):
    """What `dvc exp run -S` does to params.yaml, for each key in turn, and then a recipe."""
    comments = re.findall("#.*", Path("params.yaml").read_text())
    for key, value in list_keys(values()).items():
        before = Path("params.yaml").read_text()
        new = [*value, 9] if isinstance(value, list) else -1
        apply_overrides("params.yaml", [f"{key}={new}"])
        changes = changed_lines(before, Path("params.yaml").read_text())
        assert len(changes) == (1 if isinstance(value, list) else 2), changes
    assert re.findall("#.*", Path("params.yaml").read_text()) == comments


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_written_as_dvc_writes_it(folder, name):
    recipe.apply(name)
    before = Path("params.yaml").read_text()
    apply_overrides("params.yaml", [f"plot.dpi={values()['plot']['dpi']}"])
    assert Path("params.yaml").read_text() == before


def test_notebook_has_the_values_of_the_course_page(folder):
    recipe.apply("notebook")
    found = values()
    assert found["preprocess"] == {"validation_fraction": 0.2, "seed": 42, "stratify": False}
    assert found["model"]["architecture"] == "dense"
    assert found["model"]["hidden_units"] == [128]
    assert (found["model"]["batch_normalization"], found["model"]["dropout"]) == (False, 0)
    train = found["train"]
    assert (train["optimizer"], train["learning_rate"]) == ("adam", 0.001)  # Keras's default
    assert (train["epochs"], train["batch_size"]) == (5, 32)
    assert train["label_smoothing"] == 0
    assert (train["loss"], train["metrics"]) == ("categorical_crossentropy", ["accuracy"])
    assert (train["schedule"]["name"], train["early_stopping"]["enabled"]) == ("constant", False)


def test_recipes_do_not_add_up(folder):
    Path("recipes/a.yaml").write_text("train: {epochs: 1}\n")
    Path("recipes/b.yaml").write_text("train: {batch_size: 7}\n")
    committed = values()
    recipe.apply("a")
    assert values()["train"]["epochs"] == 1
    recipe.apply("b")
    assert values()["train"] == committed["train"] | {"batch_size": 7}


def test_uncommitted_changes_are_not_overwritten(folder):
    own = Path("params.yaml").read_text() + "# mine\n"
    Path("params.yaml").write_text(own)
    with pytest.raises(StageError, match="uncommitted changes"):
        recipe.apply("notebook")
    assert Path("params.yaml").read_text() == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {speed: 1}", r"the recipe has train\.speed, which is not a key of params\.yaml"),
        ("train: {epochs: 0}", r"train\.epochs is 0"),
        ("model: {architecture: branched, api: sequential}", r"model\.architecture .* model\.api"),
        (
            "{model: {members: 2}, train: {early_stopping: {enabled: true}}}",
            r"model\.members .* train\.early_stopping",
        ),
    ],
)
def test_invalid_recipe_changes_nothing(folder, text, message):
    Path("recipes/bad.yaml").write_text(text)
    before = Path("params.yaml").read_text()
    with pytest.raises(StageError, match=message):
        recipe.apply("bad")
    assert Path("params.yaml").read_text() == before


def test_unknown_recipe_is_refused_with_all_names(folder):
    with pytest.raises(StageError, match=r"no recipe 'nothing'; the recipes are .*notebook"):
        recipe.apply("nothing")


def test_unknown_section_is_refused(folder):
    with Path("params.yaml").open("a") as file:
        file.write("modle: {}\n")
    assert get_refusal(recipe.check, values()).startswith(
        "params.yaml: no stage in dvc.yaml lists the section modle; delete it, or "
    )


@pytest.mark.parametrize(
    ("listed", "instead", "named"),
    [
        ("      - plot\n", "      - evaluate\n", "the stage plot reads plot of params.yaml"),
        (
            "      - plot\n",
            "      - plot.dpi\n",
            "reads plot.samples, plot.mistakes of params.yaml",
        ),
        ("    params:\n      - preprocess\n", "", "the stage preprocess reads preprocess of"),
        ("      - model\n", "      - model.seed\n", "the stage train reads model.architecture, "),
    ],
)
def test_unlisted_parameters_are_named(folder, listed, instead, named):
    write_graph(listed, instead)
    found = get_refusal(recipe.check, values())
    assert found.startswith("dvc.yaml: the stage ")
    assert named in found
    section = listed.split()[-1]
    assert f"add '- {section}' to its params" in found


def test_all_keys_may_be_listed_in_place_of_a_section(folder):
    write_graph(
        "      - preprocess\n",
        "".join(f"      - preprocess.{key}\n" for key in values()["preprocess"]),
    )
    recipe.check(values())


def test_stage_without_its_script_is_named(folder):
    write_graph("-m stages.plot", "-m stages.report")
    assert get_refusal(recipe.check, values()) == (
        "dvc.yaml: the stage plot runs stages.report, which does not exist"
    )


@pytest.mark.parametrize("listed", ["- report", "- report.pages", "- params.yaml: [report.pages]"])
def test_section_of_another_program_is_accepted(folder, listed):
    """Its values are not checked, because no script declares them."""
    with Path("params.yaml").open("a") as file:
        file.write("report: {pages: 3}\n")
    report = f"  report:\n    cmd: ./report.sh\n    params:\n      {listed}\n\n"
    write_graph("  plot:\n", report + "  plot:\n")
    recipe.check(values())
