"""Write a recipe's values into params.yaml, and check every section before anything runs.

A recipe in recipes/ holds only the keys that differ from the params.yaml of the last commit. That
is where each one starts from, so recipes don't pile up; uncommitted changes of your own are kept
safe by refusing. `git checkout params.yaml` goes back. Without a name, only the check is made.

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
    """Raise StageError unless `content` has every section, each with valid values, and no other."""
    names = [section.section for section in SECTIONS]
    for name in content:
        if name not in names:
            raise StageError(
                f"{PARAMETERS}: {name} is not a known section; they are {', '.join(names)}"
            )
    for section in SECTIONS:
        section.check(content.get(section.section))
    check_together(ModelParameters.check(content["model"]), TrainParameters.check(content["train"]))


def merged(parameters: str, recipe: Mapping[str, Any]) -> str:
    """Return the YAML text `parameters` with the values of `recipe`, comments kept.

    Raises StageError for a key that `parameters` does not have.
    """
    yaml = YAML()
    yaml.width = 100
    content = yaml.load(parameters)

    def merge(target: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key not in target:
                raise StageError(f"the recipe's {prefix}{key} is not a key of {PARAMETERS}")
            if isinstance(value, Mapping):
                merge(target[key], value, f"{prefix}{key}.")
            else:
                target[key] = value

    merge(content, recipe, "")
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def apply(name: str) -> None:
    """Write the recipe's parameters to params.yaml, or raise StageError and leave it as it is."""
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in recipes:
        raise StageError(f"no recipe {name!r}; there are {', '.join(recipes)}")
    git = ["git", "show", f"HEAD:./{PARAMETERS}"]
    shown = subprocess.run(git, capture_output=True, text=True, encoding="utf-8", check=False)
    if shown.returncode:
        raise StageError(f"{PARAMETERS} of the last commit: {shown.stderr.strip()}")
    current, committed = PARAMETERS.read_text(encoding="utf-8"), shown.stdout
    known = [committed, *(merged(committed, read_yaml(path)) for path in recipes.values())]
    if current not in known:
        raise StageError(
            f"{PARAMETERS} has changes of your own, which a recipe would overwrite: commit them, "
            f"or go back with `git checkout {PARAMETERS}`"
        )
    new = merged(committed, read_yaml(recipes[name]))
    check(YAML(typ="safe", pure=True).load(new))
    write_text(PARAMETERS, new)


def main() -> None:
    """Apply the named recipe, if any, and check params.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="a file in recipes/, without .yaml")
    name = parser.parse_args().name
    if name:
        apply(name)
        print(f"{PARAMETERS} now holds the recipe {name}; `git diff {PARAMETERS}` shows it")
    else:
        check(read_yaml(PARAMETERS))


if __name__ == "__main__":
    run(main)
