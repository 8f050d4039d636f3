"""Compare the files of installed packages with the packages' own records.

pip and uv list every file that they install, with its hash, in the package's RECORD. Uses the
standard library only.

    python packages.py     # print a line for each package that has other files
"""

import base64
import csv
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
# Python compiles files when it loads them. Companies add their certificate to the ones of certifi.
WRITTEN_LATER = (".pyc", ".pem")


def find_changed_packages(site: Path = SITE) -> dict[str, str]:
    """Return what differs, for each package in the folder `site` whose files are not as recorded.

    A package that is installed as editable has no record of its files. Takes seconds for 2 GB.
    """
    found = {}
    with ThreadPoolExecutor() as pool:
        for package, folder, rows in read_records(site):
            hashed = [row for row in rows if row[1] and row[0].suffix not in WRITTEN_LATER]
            notes = [
                f"{path.relative_to(site)} {'has changed' if digest else 'is missing'}"
                for (path, expected), digest in zip(
                    hashed, pool.map(hash_file, hashed), strict=True
                )
                if digest != expected
            ]
            if (folder / "RECORD", "") not in rows:  # it lists itself
                notes.insert(0, f"{folder.name}/RECORD is missing or incomplete")
            with suppress(OSError, ValueError, LookupError, TypeError):
                if json.loads((folder / "direct_url.json").read_bytes())["dir_info"]["editable"]:
                    notes.insert(0, "installed as editable")
            if notes:
                found[package] = notes[0] + (f" (and {len(notes) - 1} more)" if notes[1:] else "")
    return found


def find_extra_files(site: Path = SITE) -> list[Path]:
    """Return the files in `site` that Python would run, but that no package has recorded."""
    recorded = {path for _, _, rows in read_records(site) for path, _ in rows}
    present = (Path(folder, name) for folder, _, files in os.walk(site) for name in files)
    return [
        path
        for path in present
        if path.suffix in (".py", ".pth", ".so") and path not in recorded
        and not path.name.startswith("_virtualenv.")  # virtualenv and `uv venv` write these
    ]  # fmt: skip


def read_records(site: Path) -> Iterator[tuple[str, Path, list[tuple[Path, str]]]]:
    """Yield name, `.dist-info` folder, and files with their hashes, for each package in `site`.

    There are no files if the RECORD is missing or damaged.
    """
    for folder in sorted(site.glob("*.dist-info")):
        try:
            text = (folder / "RECORD").read_text(encoding="utf-8")
            rows = [(site / name, digest) for name, digest, _ in csv.reader(text.splitlines())]
        except (OSError, ValueError):
            rows = []
        yield re.sub(r"[-_.]+", "-", folder.name.partition("-")[0]).lower(), folder, rows


def hash_file(row: tuple[Path, str]) -> str:
    """Return the hash of a file in the form of the recorded one, or "" if it is missing."""
    path, algorithm = row[0], row[1].partition("=")[0]
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, algorithm).digest()
    except OSError:
        return ""
    except ValueError:  # RECORD names an unknown algorithm
        return "unknown"
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


if __name__ == "__main__":
    for package, what in find_changed_packages().items():
        print(f"{package}: {what}")
