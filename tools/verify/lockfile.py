"""Read dvc.lock and compare it with the commit it belongs to."""

import hashlib
from pathlib import Path
from typing import Any

from stages.core.settings import read_yaml

Outputs = dict[str, str]  # path to MD5, as dvc.lock has them


def listed(lock: dict[str, Any], stage: str, kind: str) -> Outputs:
    """Return the MD5 of each of a stage's `deps` or `outs` in a dvc.lock."""
    entries = lock.get("stages", {}).get(stage, {}).get(kind, [])
    return {entry["path"]: entry["md5"] for entry in entries}


def stale(room: Path, lock: dict[str, Any]) -> dict[str, list[str]]:
    """Return, for each stage, what the commit checked out in `room` contradicts in its dvc.lock."""
    parameters, graph = read_yaml(room / "params.yaml"), read_yaml(room / "dvc.yaml")["stages"]
    recorded = lock.get("stages", {})
    made = {path: md5 for stage in recorded for path, md5 in listed(lock, stage, "outs").items()}
    found: dict[str, list[str]] = {stage: [] for stage in [*recorded, *graph]}
    for stage, notes in found.items():
        if stage not in recorded or stage not in graph:
            notes.append(f"{stage} is a stage in only one of dvc.yaml and dvc.lock")
            continue
        listing, entry = graph[stage], recorded[stage]
        keys = entry.get("params", {}).get("params.yaml", {})
        outs = [out for kind in ("outs", "metrics", "plots") for out in listing.get(kind, [])]
        pairs = {
            "command": ({listing["cmd"]}, {entry["cmd"]}),
            "dependency": (set(listing["deps"]), set(listed(lock, stage, "deps"))),
            "parameter": (set(listing.get("params", [])), set(keys)),
            "output": (
                {next(iter(out)) if isinstance(out, dict) else out for out in outs},
                set(listed(lock, stage, "outs")),
            ),
        }
        for kind, (ours, theirs) in pairs.items():
            for name in sorted(ours ^ theirs):
                notes.append(f"{name} is its {kind} in only one of dvc.yaml and dvc.lock")
        for path, md5 in {**listed(lock, stage, "deps"), **listed(lock, stage, "outs")}.items():
            file = room / path
            if file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() != md5:  # noqa: S324  # DVC's
                notes.append(f"{path} in the commit is not the file that dvc.lock records")
            elif made.get(path, md5) != md5:
                notes.append(f"{path} is not what dvc.lock says the earlier stage made")
        for key, value in keys.items():
            if value != (now := lookup(parameters, key)):
                notes.append(f"{key} is {now!r} in params.yaml and {value!r} in dvc.lock")
    return found


def lookup(parameters: Any, key: str) -> Any:
    """Return the value of a dotted key, or None where there is none."""
    for part in key.split("."):
        parameters = parameters.get(part) if isinstance(parameters, dict) else None
    return parameters
