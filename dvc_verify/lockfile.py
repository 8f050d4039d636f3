"""What dvc.lock records: reading it, and hashing files and folders as DVC does."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from dvc_verify import VerifyError

Lock = dict[str, Any]  # what dvc.lock records of each stage, by the stage's name
Convert = Callable[[bytes], bytes]

GRAPH, LOCK, PARAMETERS = "dvc.yaml", "dvc.lock", "params.yaml"
IDENTICAL, LINE_ENDS = "identical", "identical after line ends"


class Recorded(NamedTuple):
    """What DVC recorded of a file or a folder."""

    path: str
    md5: str  # ends in ".dir" for a folder; "" if DVC recorded no MD5
    size: int = 0
    old: bool = False  # recorded by DVC 2, whose MD5 counts CRLF as LF in text files
    cached: bool = False  # it is in DVC's cache, not in git
    persistent: bool = False  # DVC does not delete it before its stage runs


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises VerifyError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        refuse_conflict(path, text)
        content = YAML(typ="safe").load(text)
    except FileNotFoundError:
        raise VerifyError(f"{path} does not exist; run `dvc repro`") from None
    except OSError:  # its message names the file
        raise
    except Exception as error:  # ruamel.yaml also raises KeyError, RecursionError and others
        reason = " ".join(str(error).split())
        raise VerifyError(f"{path}: not readable as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise VerifyError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def refuse_conflict(path: Path, text: str) -> None:
    """Raise VerifyError if a text has the markers of a merge conflict."""
    if found := re.search("^(<<<<<<<|>>>>>>>) ", text, re.MULTILINE):
        raise VerifyError(
            f"{path}: not readable as YAML or JSON: it has conflict markers in line "
            f"{text.count(chr(10), 0, found.start()) + 1}; resolve the conflict, run `dvc repro`, "
            "and commit"
        )


def read_lock(project: Path = Path()) -> Lock:
    """Return what the dvc.lock in a folder records. Raises VerifyError if it cannot be read."""
    path = project / LOCK
    content = read_yaml(path)
    if "schema" not in content:
        raise VerifyError(f"{path}: it has the first schema, which DVC no longer reads: run "
                          "`dvc repro` and commit")  # fmt: skip
    stages = content.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(each, dict) for each in stages.values()):
        raise VerifyError(f"{path}: expected stages, found {type(stages).__name__}")
    return stages


def list_files(lock: Lock, kind: str) -> dict[str, Recorded]:
    """Return the recorded `deps` or `outs` by path, relative to the stage's working folder."""
    return {
        entry["path"]: Recorded(entry["path"], entry.get("md5") or "", entry.get("size") or 0)
        for stage in lock.values()
        for entry in stage.get(kind, [])
    }


def list_parameters(lock: Lock) -> dict[str, Any]:
    """Return the recorded parameters, by the keys in dvc.yaml: `model`, or `model.seed`."""
    recorded = [stage.get("params", {}).get(PARAMETERS, {}) for stage in lock.values()]
    return {key: value for values in recorded for key, value in values.items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return each value in nested mappings by its dotted key. Tuples become lists, as in YAML."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def compute_md5(path: Path, convert: Convert | None = None) -> str:
    """Return the MD5 of a file, by which DVC identifies it. `convert` changes a text first."""
    with path.open("rb") as stream:
        if convert is None or b"\0" in stream.read(8192):
            stream.seek(0)
            return hashlib.file_digest(stream, "md5").hexdigest()
    return hashlib.md5(convert(path.read_bytes()), usedforsecurity=False).hexdigest()


def hash_folder(files: Mapping[str, str]) -> str:
    """Return DVC's hash of a folder: the MD5 of a JSON list of its files and their MD5."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


@cache
def list_folder(project: Path, folder: Path) -> list[str]:
    """Return the files in a folder, relative to it, without those that .dvcignore leaves out."""
    from dvc.fs import LocalFileSystem
    from dvc.ignore import DvcIgnoreFilter

    ignore = DvcIgnoreFilter(LocalFileSystem(), str(project.resolve()))
    found = ignore.find(ignore.fs, str(folder.resolve()))
    return sorted(Path(path).relative_to(folder.resolve()).as_posix() for path in found)


def hash_files(project: Path, folder: Path, convert: Convert | None = None) -> dict[str, str]:
    """Return the MD5 of each file in a folder, by its path in the folder."""
    files = [name for name in list_folder(project, folder) if (folder / name).is_file()]
    return {name: compute_md5(folder / name, convert) for name in files}


def hash_tree(project: Path, path: Path, convert: Convert | None = None) -> str:
    """Return DVC's MD5 of a file or a folder of a project, or "" if it does not exist."""
    if path.is_dir():
        return hash_folder(hash_files(project, path, convert))
    return compute_md5(path, convert) if path.is_file() else ""


def match(project: Path, path: Path, recorded: Recorded) -> str | None:
    """Return IDENTICAL or LINE_ENDS if a file or folder is the recorded one, or None."""
    kinds: dict[str, Convert | None] = {"as it is": None}
    kinds["LF"] = lambda content: content.replace(b"\r\n", b"\n")
    kinds["CRLF"] = lambda content: content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for kind, convert in kinds.items() if path.exists() else ():
        if hash_tree(project, path, convert) == recorded.md5:
            counts_as_lf = kind == "LF" and recorded.old
            return IDENTICAL if convert is None or counts_as_lf else LINE_ENDS
    return None
