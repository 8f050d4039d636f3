"""Versions of scikit-learn in pickles."""

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path


def find_version(
    found: Path, recorded: Path | None, md5: str, versions: Mapping[str, set[str]]
) -> str:
    """Return a sentence if a pickle and the recorded one hold different versions of scikit-learn.

    Without the recorded one, looks for a version with which the pickle has the recorded MD5.
    """
    here, there = (_read_version(path) for path in (found, recorded))
    if here and there and here != there:
        return f"scikit-learn {there} wrote the recorded file, and {here} is here"
    if not here or recorded:
        return ""
    content = found.read_bytes()
    for version in sorted({*versions.get("scikit-learn", ()), *_list_versions()}):
        other = replace_text(content, here, version)
        if hashlib.md5(other, usedforsecurity=False).hexdigest() == md5:
            return (
                f"it is the recorded file but for the version of scikit-learn in it, {version} "
                f"instead of {here}"
            )
    return f"it holds the version of scikit-learn, {here} here"


def _read_version(path: Path | None) -> str:
    """Return the version of scikit-learn that a pickle holds, or ""."""
    if path is None or not path.is_file() or path.stat().st_size > 50_000_000:
        return ""
    found = re.search(rb"_sklearn_version\x94?\x8c.([\d.]+\w*)\x94", path.read_bytes(), re.S)
    return found[1].decode() if found else ""


def replace_text(pickle: bytes, old: str, new: str) -> bytes:
    """Return a pickle with a short text in it replaced everywhere."""
    before, after = (b"\x8c" + bytes([len(t)]) + t.encode() for t in (old, new))
    changed = pickle.replace(before, after)
    if pickle[2:3] == b"\x95":  # the length of the first frame
        (length,) = struct.unpack("<Q", pickle[3:11])
        frame = pickle[11 : 11 + length]
        size = length + frame.count(before) * (len(after) - len(before))
        changed = changed[:3] + struct.pack("<Q", size) + changed[11:]
    return changed


def _list_versions() -> Iterator[str]:
    """Yield versions that scikit-learn has or may have had."""
    for major, minors in ((0, range(18, 25)), (1, range(12))):
        for minor in minors:
            yield f"{major}.{minor}"
            yield from (f"{major}.{minor}.{patch}" for patch in range(8))
