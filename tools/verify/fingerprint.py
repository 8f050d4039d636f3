"""Record what machine and libraries wrote dvc.lock, in fingerprint.json beside it.

It explains a difference; it is no part of the result, so no stage writes it and no metric holds it.

    python -m tools.verify.fingerprint
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from stages.core.errors import run
from stages.core.files import write_json
from stages.core.paths import LOCK, PARAMETERS
from stages.core.settings import read_yaml

RECORD = Path("fingerprint.json")

# What computes the bytes of an output.
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


def fingerprint(project: Path) -> dict[str, Any]:
    """Return the processor, the system, the libraries here, and the threads of the project."""
    parameters = read_yaml(project / PARAMETERS)
    model, flags = processor()
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
        "threads": parameters["evaluate"]["threads"],
        "replicas": parameters["train"]["replicas"],
        "vector_instructions": flags,
    }


def processor() -> tuple[str, str]:
    """Return the processor's model name and the vector instructions among its flags."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    vector = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|sve).*")
    names = sorted(filter(vector.fullmatch, flags[1].split())) if flags else []
    return model[1] if model else platform.processor(), " ".join(names)


def hardware_promises_same_bytes(record: dict[str, Any]) -> bool:
    """Return whether `record` is of a machine on which the trained weights are promised too."""
    x86 = record["machine"] in ("x86_64", "AMD64") and record["system"] == "Linux"
    return x86 and {"avx2", "fma"} <= set(record["vector_instructions"].split())


def recorded(project: Path) -> dict[str, Any] | None:
    """Return the fingerprint recorded for the project's very dvc.lock, or None."""
    try:
        record: dict[str, Any] = json.loads((project / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record.get("dvc_lock") == checksum(project) else None


def checksum(project: Path) -> str:
    """Return the SHA-256 of dvc.lock, by which the record belongs to it."""
    return hashlib.sha256((project / LOCK).read_bytes()).hexdigest()


def main() -> None:
    """Write the record."""
    here = Path()
    write_json(RECORD, {**fingerprint(here), "dvc_lock": checksum(here)})


if __name__ == "__main__":
    run(main)
