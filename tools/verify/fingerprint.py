"""Write fingerprint.json: the machine and the libraries that dvc.lock was recorded on.

It helps to explain a difference. It is not part of the result, so no stage writes it. A file that
belongs to the present dvc.lock stays as it is.

    python -m tools.verify.fingerprint
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import run
from stages.core.machine import collect_fingerprint, promises_same_bytes
from stages.core.paths import LOCK

RECORD = Path("fingerprint.json")


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
