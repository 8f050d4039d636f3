"""Read one section of `params.yaml` and hold it to its type.

Each stage declares its own section as a `Section` and reads nothing else. A wrong value stops the
stage with one line before it reads or writes any other file.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML

from stages.core.errors import StageError
from stages.core.paths import PARAMETERS

# Aliases of aliases can make a value too long to print.
SHORTENED = reprlib.Repr()
SHORTENED.maxlevel, SHORTENED.maxstring = 2, 80


class Section(BaseModel):
    """A section of `params.yaml`: no unknown keys, no conversion between types, no changes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    section: ClassVar[str]

    @classmethod
    def read(cls, path: Path = PARAMETERS) -> Self:
        """Return this section of the YAML file at `path`.

        Raises StageError, naming key, value and what is allowed, unless every value is valid.
        """
        return cls.check(read_yaml(path).get(cls.section), path)

    @classmethod
    def check(cls, values: Any, path: Path = PARAMETERS) -> Self:
        """Return the section that `values` describe, or raise StageError naming each wrong key."""
        if not isinstance(values, Mapping):
            raise StageError(f"{path}: section '{cls.section}' is missing or holds no keys")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise StageError(f"{path}: {_describe(cls, error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, parsed as DVC parses it (YAML 1.2: `1e-3` is a number)."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run from the project's folder") from None
    except OSError:
        raise
    except Exception as error:  # ruamel.yaml raises more than its own: KeyError, RecursionError ...
        raise StageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StageError(f"{path}: expected sections of keys, found {type(content).__name__}")
    return content


def _describe(section: type[Section], error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join([section.section, *map(str, fault["loc"])])
        match fault["type"]:
            case "missing":
                lines.append(f"{key} is missing")
            case "extra_forbidden":
                model: Any = section
                for name in fault["loc"][:-1]:
                    model = model.model_fields[name].annotation
                known = ", ".join(model.model_fields)
                lines.append(f"{key} is not a known key; they are {known}")
            case "value_error":  # raised by a section's own check, which names the keys itself
                lines.append(str(fault["ctx"]["error"]))
            case _:
                lines.append(f"{key} is {SHORTENED.repr(fault['input'])}: {fault['msg']}")
    return " ".join("; ".join(lines).split())
