"""The machine and the libraries that a result depends on."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """Return this machine's processor and system, and the versions of Python and of LIBRARIES."""
    model, instructions = read_processor()
    vector = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|sve).*")
    return {
        "cores": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "libraries": {
            name: found.version
            for found in importlib.metadata.distributions()
            if (name := found.name.lower().replace("_", "-")) in LIBRARIES
        },
        "machine": platform.machine(),
        "processor": model,
        "python": platform.python_version(),
        "system": platform.system(),
        "vector_instructions": " ".join(sorted(filter(vector.fullmatch, instructions))),
    }


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Return the name of the processor and its instruction sets, or no sets if not on Linux."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), []
    model = re.search(r"^(?:model name|CPU part)\s*: (.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    return model[1] if model else platform.processor(), flags[1].split() if flags else []


def promises_same_bytes(machine: Mapping[str, Any]) -> bool:
    """Return whether a machine must compute the recorded bytes, even of trained weights."""
    fused = (
        machine["machine"] in ("aarch64", "arm64")
        or "fma" in machine["vector_instructions"].split()
    )
    return fused and machine["system"] == "Linux"
