"""Read one section of `params.yaml` and check its values.

Each stage declares its sections as subclasses of `Section`, and reads no other sections. An invalid
value stops the stage with one line, before the stage reads or writes any other file.
"""

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.nodes import Node, ScalarNode

from stages.core.errors import StageError
from stages.core.paths import PARAMETERS

MAX_VALUES = 100_000  # that the aliases in a YAML file may expand to
MAX_SHOWN = 200  # characters of a value in a message


class Section(BaseModel):
    """A section of `params.yaml`. Unknown keys, type conversions and changes are not allowed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    section: ClassVar[str]

    @classmethod
    def read(cls, path: Path = PARAMETERS) -> Self:
        """Return this section of the YAML file at `path`.

        If a value is invalid, raises StageError with the key, the value and what is allowed.
        """
        return cls.check(read_yaml(path).get(cls.section), path)

    @classmethod
    def check(cls, values: Any, path: Path = PARAMETERS) -> Self:
        """Return the section with these values. Raises StageError, which names each invalid key."""
        if not isinstance(values, Mapping):
            raise StageError(f"{path}: section '{cls.section}' is missing or holds no keys")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise StageError(f"{path}: {_describe(cls, error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, parsed as DVC does: in YAML 1.2, `1e-3` is a number.

    Raises StageError if the file is missing, has a merge conflict, is not YAML or holds no
    mapping.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _BoundedConstructor
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run from the project's folder") from None
    except OSError:  # its message names the file
        raise
    except Exception as error:  # ruamel.yaml also raises KeyError, RecursionError and others
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.startswith(b"<<<<<<< "):
                raise StageError(
                    f"merge conflict in {path}, line {number}: keep one version of each part"
                ) from None
        raise StageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StageError(f"{path}: expected sections of keys, found {type(content).__name__}")
    return content


class _BoundedConstructor(SafeConstructor):
    """Refuses a small file whose aliases of aliases expand to billions of values."""

    def construct_document(self, node: Node) -> Any:
        characters = node.end_mark.index  # without aliases, there are fewer values
        if _count_values(node, {}) > max(MAX_VALUES, characters):
            raise ValueError(f"its aliases expand to more than {MAX_VALUES:,} values")
        return super().construct_document(node)


def _count_values(node: Node, known: dict[Node, float]) -> float:
    """Return how many values a YAML node has once its aliases are expanded."""
    if isinstance(node, ScalarNode):
        return 1
    if node not in known:
        known[node] = math.inf  # until it is known, for an alias of a node inside itself
        pairs = [pair if isinstance(pair, tuple) else (pair,) for pair in node.value]
        known[node] = 1 + sum(_count_values(inner, known) for pair in pairs for inner in pair)
    return known[node]


def _describe(section: type[Section], error: ValidationError) -> str:
    """Return one line that names every invalid key of `section`, its value and what is allowed."""
    lines = []
    for fault in error.errors():
        key, value = ".".join([section.section, *map(str, fault["loc"])]), fault["input"]
        shown = repr(value)
        if len(shown) > MAX_SHOWN:
            shown = f"{shown[:MAX_SHOWN]}..."
        match fault["type"]:
            case "missing":
                lines.append(f"{key} is missing")
            case "extra_forbidden":
                model = _find_model(section, fault["loc"][:-1])
                file = os.path.relpath(inspect.getfile(model))
                lines.append(
                    f"{key} is not a known key; the keys are {', '.join(model.model_fields)}; "
                    f"delete it, or declare it in {file}"
                )
            case "value_error":  # from a section's own check, whose message names the keys
                lines.append(str(fault["ctx"]["error"]))
            case "model_type":  # a value in place of keys, as after `-S train.schedule=cosine`
                model = _find_model(section, fault["loc"])
                names = [name for name in model.model_fields if _allows(model, name, value)]
                meant = ", ".join(f"{key}.{name}" for name in names or model.model_fields)
                lines.append(
                    f"{key} is {shown}, but it is a section: restore it with "
                    f"`git checkout {PARAMETERS}`, then set {meant}"
                )
            case _:
                lines.append(f"{key} is {shown}: {fault['msg']}")
    return " ".join("; ".join(lines).split())


def _find_model(section: type[Section], place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the class of the keys at a place inside a section."""
    model: Any = section
    for name in place:
        model = model.model_fields[name].annotation
    found: type[BaseModel] = model
    return found


def _allows(model: type[BaseModel], name: str, value: Any) -> bool:
    """Return whether the key `name` of a model may have this value."""
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        return all(fault["loc"][:1] != (name,) for fault in error.errors())
    return True
