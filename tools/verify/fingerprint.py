"""Write fingerprint.json: the machine and the libraries that dvc.lock was recorded on.

It helps to explain a difference. It is not part of the result, so no stage writes it. A file that
belongs to the present dvc.lock stays as it is.

    python -m tools.verify.fingerprint
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import run
from stages.core.paths import LOCK

RECORD = Path("fingerprint.json")

# The libraries that compute or write an output.
LIBRARIES = (
    "h5py",
    "keras",
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "scipy",
    "tensorflow",
    "tensorflow-cpu",
)


def collect_fingerprint() -> dict[str, Any]:
    """Return this machine's processor, system and libraries."""
    model, instructions = read_processor()
    installed = {
        name: found.version
        for found in importlib.metadata.distributions()
        if (name := found.name.lower().replace("_", "-")) in LIBRARIES
    }
    return {
        "cores": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "libraries": installed,
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


def promises_same_bytes(fingerprint: dict[str, Any]) -> bool:
    """Return whether this kind of machine must give the same bytes, even of trained weights."""
    x86 = fingerprint["machine"] in ("x86_64", "AMD64") and fingerprint["system"] == "Linux"
    return x86 and {"avx2", "fma"} <= set(fingerprint["vector_instructions"].split())


def find_difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return why the machine `there` may compute other bytes than the one `here`, or ""."""
    if promises_same_bytes(dict(here)) and not promises_same_bytes(dict(there)):
        return (
            f"its processor is {there['processor'] or there['machine']}, and the same bytes are "
            "promised only on Linux on x86-64 with AVX2"
        )
    for name in sorted(here["libraries"].keys() | there["libraries"].keys()):
        expected, found = (side["libraries"].get(name, "missing") for side in (here, there))
        if expected != found:
            return f"{name} is {found} instead of {expected}"
    return ""


def read_fingerprint(project: Path) -> dict[str, Any] | None:
    """Return the fingerprint written for the project's present dvc.lock, or None."""
    try:
        text = (project / RECORD).read_text(encoding="utf-8")
        fingerprint: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    return fingerprint if fingerprint.get("dvc_lock") == hash_lock(project) else None


def hash_lock(project: Path) -> str:
    """Return the SHA-256 of dvc.lock, which links the fingerprint to it."""
    return hashlib.sha256((project / LOCK).read_bytes()).hexdigest()


def main() -> None:
    """Write fingerprint.json, unless it belongs to the present dvc.lock."""
    if read_fingerprint(Path()) is None:
        from stages.core.files import write_json  # here, because it loads pandas

        write_json(RECORD, {**collect_fingerprint(), "dvc_lock": hash_lock(Path())})


if __name__ == "__main__":
    run(main)
