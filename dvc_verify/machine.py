"""The machine and the libraries that dvc.lock was recorded on, in fingerprint.json.

It helps to explain a difference. It is not part of the result, so no stage writes it.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tomllib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git
from dvc_verify.lockfile import LOCK, refuse_conflict
from dvc_verify.packages import find_changed_packages

RECORD = Path("fingerprint.json")
PINS = (
    "requirements*.txt", "*/requirements*.txt", "poetry.lock", "uv.lock", "pdm.lock",
    "Pipfile.lock", "environment.y*ml", "conda.y*ml",
)  # fmt: skip


def normalise(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def list_installed() -> dict[str, str]:
    """Return the version of each installed package."""
    return {normalise(each.name): each.version for each in importlib.metadata.distributions()}


def read_pins(project: Path) -> dict[str, str]:
    """Return the exact versions that a project's lock files and requirements name."""
    found: list[tuple[str, str]] = []
    for path in filter(None, ask_git("ls-files", "-z", "--", *PINS, cwd=project).split("\0")):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            text = (project / path).read_text(encoding="utf-8")
            if path.endswith("Pipfile.lock"):
                content = json.loads(text)
                entries = content.get("develop", {}) | content.get("default", {})
                found += [(n, e["version"].removeprefix("==")) for n, e in entries.items()]
            elif path.endswith(".lock"):
                found += [
                    (each["name"], each["version"]) for each in tomllib.loads(text)["package"]
                ]
            else:
                pattern = r"^[\s-]*([\w.-]+)(?:\[[\w, -]*\])?\s*={1,3}\s*(\d[\w.+!]*)"
                found += re.findall(pattern, text, re.M)
    return {normalise(name): version for name, version in found}


def collect_fingerprint(libraries: Collection[str]) -> dict[str, Any]:
    """Return this machine's processor, system and the versions of `libraries`."""
    cpu = ""
    with suppress(OSError):  # not on Linux
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpu, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpu, re.M)
    vector = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|sve).*")
    wanted = {normalise(name) for name in libraries}
    return {
        "cores": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "libraries": {n: v for n, v in sorted(list_installed().items()) if n in wanted},
        "machine": platform.machine(),
        "processor": model[1] if model else platform.processor(),
        "python": platform.python_version(),
        "system": platform.system(),
        "vector_instructions": " ".join(
            sorted(filter(vector.fullmatch, flags[1].split())) if flags else ()
        ),
    }


def read_fingerprint(project: Path) -> dict[str, Any] | None:
    """Return the fingerprint written for the project's present dvc.lock, or None.

    Raises VerifyError if the file cannot be read.
    """
    try:
        text = (project / RECORD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise VerifyError(f"{RECORD}: {error}") from error
    refuse_conflict(RECORD, text)
    try:
        fingerprint = json.loads(text)
        belongs = fingerprint["dvc_lock"] == hash_lock(project)
        complete = isinstance(fingerprint["libraries"], dict)
    except (ValueError, LookupError, TypeError) as error:
        raise VerifyError(f"{RECORD} is damaged; write it again: dvc-verify record") from error
    return fingerprint if belongs and complete else None


def hash_lock(project: Path) -> str:
    """Return the SHA-256 of dvc.lock, which links the fingerprint to it; "" if there is none."""
    path = project / LOCK
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def record_fingerprint(project: Path, libraries: Collection[str]) -> None:
    """Write fingerprint.json, unless the one there belongs to dvc.lock."""
    with suppress(VerifyError):  # damaged, so it is written again
        if read_fingerprint(project):
            return
    content = {**collect_fingerprint(libraries), "dvc_lock": hash_lock(project)}
    temporary = project / f".{RECORD}.new"
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(project / RECORD)


def compare_machines(
    here: dict[str, Any], recorded: dict[str, Any] | None, pins: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Return a row (name, recorded value, value here) for each entry of two fingerprints.

    Adds rows for libraries that differ from the versions that the project pins.
    """
    installed, changed = list_installed(), find_changed_packages()
    old, libraries = recorded or {}, here["libraries"]
    known = old.get("libraries", {})
    rows = [
        *((key.replace("_", " "), old.get(key), value) for key, value in here.items()),
        *((n, known.get(n), installed.get(n, "none")) for n in sorted(libraries | known)),
        *((n, f"{v} (pinned)", installed.get(n, v)) for n, v in sorted(pins.items())
          if installed.get(n, v) != v),
        *((n, "as installed", what) for n, what in changed.items() if n in pins | libraries),
    ]  # fmt: skip
    return [
        (name, "not recorded" if before is None else str(before), str(value))
        for name, before, value in rows
        if name != "libraries"
    ]
