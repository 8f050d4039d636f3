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
import io
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Mapping
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
    found = [Difference(True, [])]
    if theirs != ours:
        found.append(_compare_names(old, new, theirs - ours, ours - theirs))
    for name in sorted(theirs & ours):
        difference = _compare_files(old / name, new / name, limits, places)
        notes = [f"{name}: {note}" for note in difference.notes]
        found.append(Difference(difference.equivalent, notes, difference.cause))
    notes = [note for each in found for note in each.notes]
    if len(notes) > 4:
        notes[3:] = [f"and {len(notes) - 3} more differences"]
    causes = dict.fromkeys(each.cause for each in found if each.cause)
    return Difference(all(each.equivalent for each in found), notes, "; ".join(causes))


def _compare_names(old: Path, new: Path, missing: set[str], added: set[str]) -> Difference:
    """Compare two folders in which files have other names."""
    first, second = (
        sorted((folder / name).read_bytes() for name in names)
        for folder, names in ((old, missing), (new, added))
    )
    if first != second:
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
    header = [content[:4] + content[8:] for content in contents]
    if new.suffix == ".gz" and header[0] == header[1]:
        return Difference(equivalent, notes, "the header of the gzip file holds the time")
    return Difference(
        equivalent, notes, "" if equivalent else _find_cause(*contents, theirs, ours, places)
    )


def read_values(name: str, content: bytes) -> Values:
    """Return the values in a file, by key.

    Raises UnreadableError if this type of file has no values, or if its reader is not installed.
    """
    suffix = PurePosixPath(name.lower()).suffix
    try:
        if suffix in PACKED:
            return read_values(name[: -len(suffix)], PACKED[suffix](content))
        if suffix in READERS:
            return dict(READERS[suffix](content))
        return {"lines": np.array(content.decode().splitlines())}
    except ImportError as error:
        raise UnreadableError(f"install {error.name} to compare {suffix} files") from None
    except UnicodeDecodeError:
        raise UnreadableError("only the bytes of such files are compared") from None
    except UnreadableError:
        raise
    except Exception as error:  # the libraries raise anything on a damaged file
        raise UnreadableError(f"it cannot be read ({type(error).__name__})") from error


def _flatten(value: Any, prefix: str = "") -> Values:
    """Return each value in nested mappings and lists by its dotted key."""
    if not value or not isinstance(value, Mapping | list):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return {prefix.removesuffix("."): np.array([text])}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for key, each in pairs for k, v in _flatten(each, f"{prefix}{key}.").items()}


def _read_table(content: bytes, delimiter: str = ",") -> Values:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig")), delimiter=delimiter))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        return {"lines": np.array(content.decode().splitlines())}
    columns = np.array(rows[1:]).reshape(-1, len(rows[0])).T
    return {name or f"column {i}": columns[i] for i, name in enumerate(rows[0])}


def _read_arrays(content: bytes) -> Values:
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    return dict(loaded) if hasattr(loaded, "files") else {"array": loaded}


def _read_hdf5(content: bytes) -> Values:
    import h5py

    found: Values = {}
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(
            lambda n, item: found.update({n: item[()]} if hasattr(item, "shape") else {})
        )
    return found


def _read_parquet(content: bytes) -> Values:
    import pandas as pd

    frame = pd.read_parquet(io.BytesIO(content))
    return {str(name): column.to_numpy() for name, column in frame.items()}


def _read_pixels(content: bytes) -> Values:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGBA"), np.float32) / 255
    return {"pixels": pixels[..., :3] if (pixels[..., 3] == 1).all() else pixels}


def _read_archive(content: bytes) -> Values:
    """Return the values of all files in an archive; the bytes of those that have none."""
    stream = io.BytesIO(content)
    found: Values = {}
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    else:
        with tarfile.open(fileobj=stream) as tar:
            files = [(each.name, tar.extractfile(each)) for each in tar]
            members = {name: file.read() for name, file in files if file}
    for name, data in members.items():
        try:
            found |= {f"{name}/{key}": value for key, value in read_values(name, data).items()}
        except UnreadableError:
            found[name] = np.array([data])
    return found


PACKED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
READERS: dict[str, Any] = {
    ".json": lambda content: _flatten(json.loads(content)),
    **dict.fromkeys((".yaml", ".yml"), lambda content: _flatten(YAML(typ="safe").load(content))),
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
        accepted, size, note = True, 0.0, ""
        if key not in old or key not in new:
            accepted, size, note = False, np.inf, "is missing" if key in old else "is new"
        else:
            accepted, size, note = _compare_arrays(old[key], new[key], limit)
        if note:
            found.append(
                (not accepted and not limit.get("any"), bool(limit), size, f"{key} {note}")
            )
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
    different = old != new
    texts = old.dtype.kind in "OSU"
    if texts:
        try:
            before, after = old[different].astype(np.float64), new[different].astype(np.float64)
        except ValueError:
            before = after = None
    else:
        different &= (old == old) | (new == new)  # not if both are NaN
        before, after = old[different].astype(np.float64), new[different].astype(np.float64)
    share = different.mean() if different.size else 0.0
    if not share:
        return (
            old.dtype == new.dtype or texts,
            0.0,
            "" if texts or old.dtype == new.dtype else "has another type",
        )
    where = "" if old.size == 1 else f" in {different.sum()} of {old.size} entries"
    if before is None:
        size, note = np.inf, f"differs{where}"
        if not where:
            note = f"is {_shorten(new[0])} instead of {_shorten(old[0])}"
        measures = {"agreement": 1 - share}
    else:
        apart = np.abs(before - after)
        size = float((apart / np.maximum(np.maximum(np.abs(before), np.abs(after)), 1e-300)).max())
        note = f"differs{where} by at most {apart.max():.3g}, {size:.2g} of the value"
        measures = {"relative": size, "absolute": apart.max(), "mean": apart.sum() / old.size}
        measures["agreement"] = 1 - share
    for name, allowed in limit.items():
        if name in measures:
            fine = measures[name] >= allowed if name == "agreement" else measures[name] <= allowed
            return bool(fine), size, f"{note} ({name} {measures[name]:.4g}, limit {allowed})"
    return size <= ROUNDING, size, note


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _find_cause(
    old: bytes, new: bytes, theirs: Values, ours: Values, places: tuple[str, str]
) -> str:
    """Return what kind of difference two files have, or "" if it cannot be seen."""
    text, other = (content.decode(errors="replace") for content in (old, new))
    here = places[1] and re.search(re.escape(places[1]) + r"[\w./-]*", other)
    for place in filter(None, places):
        text, other = text.replace(place, "@"), other.replace(place, "@")
    if here and (text == other or not places[0]):
        return f"it holds the path of the project, {here[0]}"
    if TIME.sub("@", text) == TIME.sub("@", other):
        return "it holds the time"
    sorts = [
        {k: sorted(map(str, v.ravel()[:100_000])) for k, v in values.items()}
        for values in (theirs, ours)
    ]
    if sorts[0] == sorts[1] or sorted(re.split(r"[\s,{}\[\]]+", text)) == sorted(
        re.split(r"[\s,{}\[\]]+", other)
    ):
        return ORDER
    return ""
