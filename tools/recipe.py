"""Write a recipe's values into params.yaml, or check params.yaml.

A recipe is a file in recipes/ with the keys that differ from params.yaml in the last commit. Each
recipe is applied to that version, so two recipes never add up. The command refuses to overwrite
uncommitted changes. `git checkout params.yaml` undoes it. Without a name, it only checks every
section of params.yaml.

    python -m tools.recipe [name]
"""

import argparse
import io
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.errors import StageError, run
from stages.core.files import write_text
from stages.core.paths import PARAMETERS
from stages.core.settings import read_yaml
from stages.download import DownloadParameters
from stages.evaluate import EvaluateParameters
from stages.model.settings import ModelParameters, TrainParameters, check_together
from stages.plot import PlotParameters
from stages.preprocess import PreprocessParameters

SECTIONS = (
    DownloadParameters,
    PreprocessParameters,
    ModelParameters,
    TrainParameters,
    EvaluateParameters,
    PlotParameters,
)
RECIPES = Path("recipes")


def check(content: Mapping[str, Any]) -> None:
    """Raise StageError unless `content` has every section, all values valid, and nothing else."""
    names = [section.section for section in SECTIONS]
    for name in content:
        if name not in names:
            raise StageError(
                f"{PARAMETERS}: {name} is not a known section; they are {', '.join(names)}"
            )
    for section in SECTIONS:
        section.check(content.get(section.section))
    check_together(ModelParameters.check(content["model"]), TrainParameters.check(content["train"]))


def merge_recipe(parameters: str, recipe: Mapping[str, Any]) -> str:
    """Return the YAML text `parameters` with the values of `recipe`. Comments stay.

    The text has the form in which DVC writes it, so that `dvc exp run -S` changes no other line.
    Raises StageError if `recipe` has a key that `parameters` lacks.
    """
    yaml = YAML()
    yaml.default_flow_style = False  # DVC's only setting
    content = yaml.load(parameters)

    def merge(target: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key not in target:
                raise StageError(
                    f"the recipe has {prefix}{key}, which is not a key of {PARAMETERS}"
                )
            if isinstance(value, Mapping):
                merge(target[key], value, f"{prefix}{key}.")
            else:
                target[key] = value

    merge(content, recipe, "")
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def apply(name: str) -> None:
    """Write the parameters of the recipe `name` to params.yaml.

    Raises StageError, and leaves the file unchanged, if the recipe is unknown or invalid, or if the
    file has changes that would be lost.
    """
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in recipes:
        raise StageError(f"there is no recipe {name!r}; the recipes are {', '.join(recipes)}")
    git = ["git", "show", f"HEAD:./{PARAMETERS}"]
    shown = subprocess.run(git, capture_output=True, text=True, encoding="utf-8", check=False)
    if shown.returncode:
        raise StageError(f"cannot read {PARAMETERS} in the last commit: {shown.stderr.strip()}")
    current, committed = PARAMETERS.read_text(encoding="utf-8"), shown.stdout
    known = [committed, *(merge_recipe(committed, read_yaml(path)) for path in recipes.values())]
    if current not in known:
        raise StageError(
            f"{PARAMETERS} has uncommitted changes that the recipe would overwrite; commit them, "
            f"or undo them with `git checkout {PARAMETERS}`"
        )
    new = merge_recipe(committed, read_yaml(recipes[name]))
    check(YAML(typ="safe", pure=True).load(new))
    write_text(PARAMETERS, new)


def main() -> None:
    """Apply the named recipe, or check params.yaml if none is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="the name of a file in recipes/, without .yaml")
    name = parser.parse_args().name
    if name:
        apply(name)
        print(f"applied the recipe {name}; `git diff {PARAMETERS}` shows the changes")
    else:
        check(read_yaml(PARAMETERS))


if __name__ == "__main__":
    run(main)
