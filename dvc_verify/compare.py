"""Compare two versions of an output by what they hold: values, arrays, pixels or lines.

A project may declare in its pyproject.toml by how much an output may differ, by patterns for its
path and for the key, column or array in it. The first pattern that matches counts:

    [tool.dvc-verify.tolerances]
    "metrics.json" = { "accuracy" = { absolute = 0.003 }, "*" = { any = true } }

    relative, absolute   the largest difference between two numbers
    mean                 the mean difference between two arrays; pixels are from 0 to 1
    agreement            the smallest fraction of equal entries
    any                  everything is accepted
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML

from dvc_verify.lockfile import list_folder

ROUNDING = 1e-9  # the largest relative difference that counts as equivalent
LARGEST = 500_000_000  # bytes; larger files are compared by their hash only
ORDER = "the same entries in another order: the order of a set or of files (hash seed)?"

Limits = Mapping[str, Mapping[str, Any]]  # what may differ, by a pattern for keys
Values = dict[str, Any]  # NumPy arrays by key

TIME = re.compile(
    r"\b1[5-9]\d{8}(\d{3}|\d{6}|\d{9})?(\.\d+)?\b|"  # seconds since 1970, and parts of them
    r"\d{4}[-/._]?\d\d[-/._]?\d\d([T _-]?\d\d[:_-]?\d\d([:_-]?\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?|"
    r"\d\d:\d\d(:\d\d(\.\d+)?)?|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\w*\b|"
    r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\w*\b"
)


class UnreadableError(Exception):
    """The content of a file cannot be read. The message says why."""


class Difference(NamedTuple):
    """How two versions of an output differ."""

    equivalent: bool
    notes: list[str]  # what differs, and by how much
    cause: str = ""  # what kind of difference it is, if that can be seen


def compare_outputs(
    old: Path, new: Path, limits: Limits, places: tuple[str, str] = ("", "")
) -> Difference:
    """Compare two files or folders, written when the project had the paths `places`.

    One that is not known is "". `limits` says what may differ; all else may only be rounded
    differently.
    """
    if old.is_dir() != new.is_dir():
        return Difference(False, ["it is a file in one of them and a folder in the other one"])
    if not old.is_dir():
        return _compare_files(old, new, limits, places)
    theirs, ours = (set(list_folder(folder, folder)) for folder in (old, new))
    found = [_compare_names(old, new, theirs - ours, ours - theirs)] if theirs != ours else []
    for name in sorted(theirs & ours):
        difference = _compare_files(old / name, new / name, limits, places)
        found.append(difference._replace(notes=[f"{name}: {note}" for note in difference.notes]))
    notes = [note for each in found for note in each.notes]
    if len(notes) > 4:
        notes[3:] = [f"and {len(notes) - 3} more differences"]
    causes = dict.fromkeys(each.cause for each in found if each.cause)
    return Difference(all(each.equivalent for each in found), notes, "; ".join(causes))


def _compare_names(old: Path, new: Path, missing: set[str], added: set[str]) -> Difference:
    """Compare two folders in which files have other names."""
    contents = [
        sorted((folder / name).read_bytes() for name in names)
        for folder, names in ((old, missing), (new, added))
    ]
    if contents[0] != contents[1]:
        names = ", ".join(sorted(missing | added)[:3])
        return Difference(False, [f"{len(added)} files added, {len(missing)} missing: {names}"])
    time = {TIME.sub("", name) for name in added} == {TIME.sub("", name) for name in missing}
    note = f"the same contents under other names: {min(added)} instead of {min(missing)}"
    return Difference(False, [note], "the name of a file holds the time" if time else "")


def _compare_files(old: Path, new: Path, limits: Limits, places: tuple[str, str]) -> Difference:
    """Compare two files."""
    if max(old.stat().st_size, new.stat().st_size) > LARGEST:
        return Difference(False, ["it is too large to compare what it holds"])
    contents = old.read_bytes(), new.read_bytes()
    if contents[0] == contents[1]:
        return Difference(True, [])
    try:
        theirs, ours = (read_values(new.name, content) for content in contents)
    except UnreadableError as error:
        return Difference(bool(limits.get("*", {}).get("any")), [str(error)])
    equivalent, notes = compare_values(theirs, ours, limits)
    if new.suffix == ".gz" and len({content[:4] + content[8:] for content in contents}) == 1:
        return Difference(equivalent, notes, "the header of the gzip file holds the time")
    cause = "" if equivalent else _find_cause(contents, (theirs, ours), places)
    return Difference(equivalent, notes, cause)


def read_values(name: str, content: bytes) -> Values:
    """Return the values in a file, by key.

    Raises UnreadableError if this type of file has no values, or if its reader is not installed.
    """
    suffix = PurePosixPath(name.lower()).suffix
    try:
        if suffix in PACKED:
            return read_values(name[: -len(suffix)], PACKED[suffix](content))
        return dict(READERS.get(suffix, _read_lines)(content))
    except ImportError as error:
        raise UnreadableError(f"install {error.name} to compare {suffix} files") from None
    except UnicodeDecodeError:
        raise UnreadableError("only the bytes of such files are compared") from None
    except UnreadableError:
        raise
    except Exception as error:  # the libraries raise anything on a damaged file
        raise UnreadableError(f"it cannot be read ({type(error).__name__})") from error


def _read_lines(content: bytes) -> Values:
    return {"lines": np.array(content.decode().splitlines())}


def _read_tree(value: Any, prefix: str = "") -> Values:
    if not value or not isinstance(value, Mapping | list):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return {prefix.removesuffix("."): np.array([text])}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for key, each in pairs for k, v in _read_tree(each, f"{prefix}{key}.").items()}


def _read_table(content: bytes, delimiter: str = ",") -> Values:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig")), delimiter=delimiter))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        return _read_lines(content)
    columns = np.array(rows[1:]).reshape(-1, len(rows[0])).T
    return {name or f"column {i}": columns[i] for i, name in enumerate(rows[0])}


def _read_arrays(content: bytes) -> Values:
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    return dict(loaded) if hasattr(loaded, "files") else {"array": loaded}


def _read_hdf5(content: bytes) -> Values:
    import h5py

    names: list[str] = []
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visit(names.append)
        return {n: np.asarray(file[n][()]) for n in names if hasattr(file[n], "shape")}


def _read_parquet(content: bytes) -> Values:
    import pandas as pd

    return {str(n): column.to_numpy() for n, column in pd.read_parquet(io.BytesIO(content)).items()}


def _read_pixels(content: bytes) -> Values:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGBA"), np.float32) / 255
    return {"pixels": pixels[..., :3] if (pixels[..., 3] == 1).all() else pixels}


def _read_archive(content: bytes) -> Values:
    """Return the values of all files in an archive; the bytes of those that have none."""
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    else:
        with tarfile.open(fileobj=stream) as tar:
            files = {each.name: tar.extractfile(each) for each in tar}
            members = {name: file.read() for name, file in files.items() if file}
    found: Values = {}
    for name, data in members.items():
        try:
            found |= {f"{name}/{key}": value for key, value in read_values(name, data).items()}
        except UnreadableError:
            found[name] = np.array([data])
    return found


PACKED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
READERS: dict[str, Any] = {
    ".json": lambda content: _read_tree(json.loads(content)),
    **dict.fromkeys((".yaml", ".yml"), lambda content: _read_tree(YAML(typ="safe").load(content))),
    ".csv": _read_table,
    ".tsv": partial(_read_table, delimiter="\t"),
    **dict.fromkeys((".npy", ".npz"), _read_arrays),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".parquet": _read_parquet,
    **dict.fromkeys((".zip", ".tar", ".keras"), _read_archive),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tiff", ".webp"), _read_pixels),
}


def compare_values(old: Values, new: Values, limits: Limits) -> tuple[bool, list[str]]:
    """Return whether values are equivalent, and the largest differences."""
    found: list[tuple[bool, bool, float, str]] = []  # those that are not accepted come first
    for key in dict.fromkeys([*old, *new]):
        limit = next((each for pattern, each in limits.items() if fnmatch(key, pattern)), {})
        if key in old and key in new:
            accepted, size, note = _compare_arrays(old[key], new[key], limit)
        else:
            accepted, size, note = False, np.inf, "is missing" if key in old else "is new"
        if note:
            wrong = not accepted and not limit.get("any")
            found.append((wrong, bool(limit), size, f"{key} {note}"))
    found.sort(reverse=True)
    notes = [note for *_, note in found[:3]]
    if len(found) > 3:
        notes.append(f"and {len(found) - 3} more values differ")
    same = "the same pixels, other metadata" if "pixels" in new else "the same content"
    return not any(wrong for wrong, *_ in found), notes or [same]


def _compare_arrays(old: Any, new: Any, limit: Mapping[str, Any]) -> tuple[bool, float, str]:
    """Return whether `limit` accepts how arrays differ, the relative difference, and a note."""
    if old.shape != new.shape:
        return False, np.inf, f"has the shape {new.shape} instead of {old.shape}"
    different = (old != new) & ((old == old) | (new == new))  # not if both are NaN
    if not different.any():
        same = old.dtype == new.dtype or old.dtype.kind in "OSU"
        return same, 0.0, "" if same else "has another type"
    where = "" if old.size == 1 else f" in {different.sum()} of {old.size} entries"
    measures, size = {"agreement": 1 - different.mean()}, np.inf
    try:
        before, after = (side[different].astype(np.float64) for side in (old, new))
    except (TypeError, ValueError):  # texts
        theirs, ours = (f"{each.flat[0]!s:.60}" for each in (old, new))
        note = f"differs{where}" if where else f"is {ours} instead of {theirs}"
    else:
        apart = np.abs(before - after)
        size = float((apart / np.maximum(np.maximum(np.abs(before), np.abs(after)), 1e-300)).max())
        note = f"differs{where} by at most {apart.max():.3g}, {size:.2g} of the value"
        measures |= {"relative": size, "absolute": apart.max(), "mean": apart.sum() / old.size}
    for name in filter(measures.__contains__, limit):  # the first one that can be measured
        value, allowed = measures[name], limit[name]
        fine = value >= allowed if name == "agreement" else value <= allowed
        return bool(fine), size, f"{note} ({name} {value:.4g}, limit {allowed})"
    return size <= ROUNDING, size, note


def _find_cause(
    contents: tuple[bytes, bytes], values: Sequence[Values], places: tuple[str, str]
) -> str:
    """Return what kind of difference two files have, or "" if it cannot be seen."""
    old, new = (content.decode(errors="replace") for content in contents)
    here = places[1] and re.search(re.escape(places[1]) + r"[\w./-]*", new)
    for place in filter(None, places):
        old, new = old.replace(place, "@"), new.replace(place, "@")
    if here and (old == new or not places[0]):
        return f"it holds the path of the project, {here[0]}"
    if TIME.sub("@", old) == TIME.sub("@", new):
        return "it holds the time"
    sorts = [{k: sorted(map(str, v.ravel()[:100_000])) for k, v in each.items()} for each in values]
    words = [sorted(re.split(r"[\s,{}\[\]]+", text)) for text in (old, new)]
    return ORDER if sorts[0] == sorts[1] or words[0] == words[1] else ""


def find_version(found: Path, recorded: Path | None, md5: str, versions: Set[str]) -> str:
    """Return a sentence if a pickle and the recorded one hold different versions of scikit-learn.

    Without the recorded one, looks for a version with which the pickle has the recorded MD5.
    """
    held = re.compile(rb"_sklearn_version\x94?\x8c.([\d.]+\w*)\x94", re.DOTALL)
    contents = [path.read_bytes() if path and path.is_file() else b"" for path in (found, recorded)]
    here, there = ("".join(m.decode() for m in held.findall(each)[:1]) for each in contents)
    if here and there and here != there:
        return f"scikit-learn {there} wrote the recorded file, and {here} is here"
    if not here or recorded:
        return ""
    minors = [*(f"0.{minor}" for minor in range(18, 25)), *(f"1.{minor}" for minor in range(12))]
    every = (minor + patch for minor in minors for patch in ("", *(f".{i}" for i in range(8))))
    for version in (*versions, *every):
        other = replace_text(contents[0], here, version)
        if hashlib.md5(other, usedforsecurity=False).hexdigest() == md5:
            return (
                f"it is the recorded file but for the version of scikit-learn in it, {version} "
                f"instead of {here}"
            )
    return f"it holds the version of scikit-learn, {here} here"


def replace_text(pickle: bytes, old: str, new: str) -> bytes:
    """Return a pickle with a short text in it replaced everywhere."""
    before, after = (b"\x8c" + bytes([len(t)]) + t.encode() for t in (old, new))
    changed = pickle.replace(before, after)
    if pickle[2:3] == b"\x95":  # the length of the first frame
        (length,) = struct.unpack("<Q", pickle[3:11])
        grown = pickle.count(before, 11, 11 + length) * (len(after) - len(before))
        changed = changed[:3] + struct.pack("<Q", length + grown) + changed[11:]
    return changed
