"""What a project declares for the check, in its pyproject.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError


@dataclass(frozen=True)
class Settings:
    """The table [tool.dvc-verify] in a project's pyproject.toml."""

    keep: list[str] = field(default_factory=list)  # stages, as with --keep
    hidden: list[str] = field(default_factory=list)  # variables that stages must not see
    libraries: list[str] = field(default_factory=list)  # that compute or write outputs
    record: str = "dvc repro"  # the command that records dvc.lock
    trace: str = ""  # an output that tells where a training departs
    tolerances: Mapping[str, Any] = field(default_factory=dict)  # see compare.py

    @classmethod
    def read(cls, project: Path) -> "Settings":
        """Read the table. Raises VerifyError if it has other keys or types."""
        path, known = project / "pyproject.toml", vars(cls())
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise VerifyError(f"pyproject.toml: {error}") from error
        table = content.get("tool", {}).get("dvc-verify", {})
        for key, value in table.items():
            expected = type(known[key]).__name__ if key in known else f"one of {', '.join(known)}"
            if type(value).__name__ != expected:
                raise VerifyError(f"pyproject.toml: tool.dvc-verify.{key}: expected {expected}")
        return cls(**table)
