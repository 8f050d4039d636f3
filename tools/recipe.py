"""Write a recipe's values into params.yaml, or check params.yaml.

A recipe is a file in recipes/ that lists only the parameters to change. A recipe always changes the
params.yaml of the last commit, so the values of an earlier recipe do not remain. The command
refuses to overwrite uncommitted changes. `git checkout params.yaml` undoes the command. Without a
name, the command only checks every section of params.yaml, and that dvc.yaml lists the sections
that each stage reads.

    python -m tools.recipe [name]
"""

import argparse
import importlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dvc_verify.git import check_repository, run_git
from dvc_verify.lockfile import flatten
from stages.core.errors import StageError, run
from stages.core.files import write_text
from stages.core.paths import GRAPH, PARAMETERS
from stages.core.settings import Section, read_yaml
from stages.model.settings import ModelParameters, TrainParameters, check_together

RECIPES = Path("recipes")


def find_sections() -> dict[str, type[Section] | None]:
    """Return the sections that the stages in dvc.yaml list, by name.

    A section that no script declares, because the stage is another program, has the value None.
    Raises StageError if a script uses a section or a key that dvc.yaml does not list for it.
    """
    found: dict[str, type[Section] | None] = {}
    for stage, content in (read_yaml(GRAPH).get("stages") or {}).items():
        content = content.get("do", content)  # below `foreach`
        listed = set()
        for entry in content.get("params") or []:
            keys = entry.get(str(PARAMETERS)) if isinstance(entry, dict) else [entry]
            listed |= set(map(str, keys or []))
        for name in sorted(listed):
            found.setdefault(name.partition(".")[0], None)
        script = re.search(r"python -m (stages\.\w+)", str(content.get("cmd")))
        for section in import_sections(stage, script[1]) if script else []:
            found[section.section] = section
            keys = [f"{section.section}.{key}" for key in section.model_fields]
            missing = [key for key in keys if not listed & {key, section.section}]
            if missing:
                what = section.section if missing == keys else ", ".join(missing)
                raise StageError(
                    f"{GRAPH}: the stage {stage} reads {what} of {PARAMETERS}, but does not list "
                    f"it; add '- {section.section}' to its params, or DVC will not notice a change"
                )
    return found


def import_sections(stage: str, name: str) -> list[type[Section]]:
    """Return the sections that a stage's script, the module `name`, declares or imports."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise StageError(f"{GRAPH}: the stage {stage} runs {name}, which does not exist") from None
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [each for each in classes if issubclass(each, Section) and hasattr(each, "section")]


def check(
    content: Mapping[str, Any], sections: Mapping[str, type[Section] | None] | None = None
) -> None:
    """Raise StageError unless `content` has exactly these sections, with valid values.

    Without `sections`, they are those that the stages in dvc.yaml list.
    """
    sections = sections or find_sections()
    for name in content:
        if name not in sections:
            raise StageError(
                f"{PARAMETERS}: no stage in {GRAPH} lists the section {name}; delete it, or add it "
                f"to the params of a stage. The other sections are {', '.join(sections)}"
            )
    for section in filter(None, sections.values()):
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
    for key, value in flatten(recipe).items():
        *groups, name = key.split(".")
        target = content
        for group in groups:
            target = target[group] if isinstance(target.get(group), dict) else {}
        if name not in target:
            raise StageError(f"the recipe has {key}, which is not a key of {PARAMETERS}")
        target[name] = value
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
    committed = run_git("show", f"HEAD:./{PARAMETERS}").decode()
    current = PARAMETERS.read_text(encoding="utf-8")
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
    else:  # `make repro` without a recipe
        check(read_yaml(PARAMETERS))
        check_repository()


if __name__ == "__main__":
    run(main)
