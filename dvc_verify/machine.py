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
from collections.abc import Collection, Iterator
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
    found: dict[str, str] = {}
    for path in filter(None, ask_git("ls-files", "-z", "--", *PINS, cwd=project).split("\0")):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            text = (project / path).read_text(encoding="utf-8")
            found |= {normalise(name): version for name, version in _read_pins(path, text)}
    return found


def _read_pins(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and version of each package that a file pins."""
    if path == "Pipfile.lock":
        content = json.loads(text)
        for name, entry in {**content.get("develop", {}), **content.get("default", {})}.items():
            yield name, entry["version"].removeprefix("==")
    elif path.endswith(".lock"):
        for package in tomllib.loads(text)["package"]:
            yield package["name"], package["version"]
    else:
        pattern = r"^[\s-]*([\w.-]+)(?:\[[\w, -]*\])?\s*={1,3}\s*(\d[\w.+!]*)"
        yield from re.findall(pattern, text, re.M)


def collect_fingerprint(libraries: Collection[str]) -> dict[str, Any]:
    """Return this machine's processor, system and the versions of `libraries`."""
    model, instructions = read_processor()
    wanted = {normalise(name) for name in libraries}
    return {
        "cores": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "libraries": {n: v for n, v in sorted(list_installed().items()) if n in wanted},
        "machine": platform.machine(),
        "processor": model,
        "python": platform.python_version(),
        "system": platform.system(),
        "vector_instructions": instructions,
    }


def read_processor() -> tuple[str, str]:
    """Return the processor's model name and its vector instruction sets."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    vector = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|sve).*")
    names = sorted(filter(vector.fullmatch, flags[1].split())) if flags else []
    return model[1] if model else platform.processor(), " ".join(names)


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


def record_fingerprint(project: Path, libraries: Collection[str]) -> bool:
    """Write fingerprint.json, unless the one there belongs to dvc.lock. Return whether it wrote."""
    try:
        if read_fingerprint(project):
            return False
    except VerifyError:
        pass  # damaged, so it is written again
    content = {**collect_fingerprint(libraries), "dvc_lock": hash_lock(project)}
    temporary = project / f".{RECORD}.new"
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(project / RECORD)
    return True


def compare_machines(
    here: dict[str, Any], recorded: dict[str, Any] | None, pins: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Return a row (name, recorded value, value here) for each entry of two fingerprints.

    Without a recorded one, the versions that the project pins take its place.
    """
    installed = list_installed()
    old = dict(recorded or {})
    libraries = {**here["libraries"], **old.pop("libraries", {})}
    rows = [
        (key.replace("_", " "), str(old.get(key, "not recorded")), str(here[key]))
        for key in here
        if key != "libraries"
    ]
    known = (recorded or {}).get("libraries", {})
    rows += [(n, known.get(n, "not recorded"), installed.get(n, "none")) for n in sorted(libraries)]
    return (
        rows
        + [
            (name, f"{version} (pinned)", installed[name])
            for name, version in sorted(pins.items())
            if installed.get(name, version) != version
        ]
        + [
            (name, "as installed", what)
            for name, what in find_changed_packages().items()
            if name in pins or name in here["libraries"]
        ]
    )
