"""Find out whether another machine gives the same bytes (docs/reproducibility.md)."""

from collections.abc import Mapping
from typing import Any

from stages.core.machine import promises_same_bytes


def find_difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return why the machine `there` may compute other bytes than the one `here`, or ""."""
    if promises_same_bytes(here) and not promises_same_bytes(there):
        return (
            f"its processor is {there['processor'] or there['machine']}, and the same bytes are "
            "promised only on Linux on x86-64 with AVX2"
        )
    for name in sorted(here["libraries"].keys() | there["libraries"].keys()):
        expected, found = (side["libraries"].get(name, "missing") for side in (here, there))
        if expected != found:
            return f"{name} is {found} instead of {expected}"
    return ""
