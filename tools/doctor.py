"""Say what is wrong around the pipeline, a line each, and the command that mends it.

Looks at the libraries, the processor and what overrides its pins, the disk, DVC's files, every
object in DVC's cache (DVC itself trusts those it has made read-only), the raw data and the results
of the last commit. Takes seconds and changes nothing. Exits with 1 if something is wrong.

    python -m tools.doctor
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.core.environment import PINS
from stages.core.paths import LOCK

# Other modules are imported where they are used: a library that is missing is to be named.

REQUIREMENTS = (Path("requirements.txt"), Path("requirements-tools.txt"))
ROOM = 1_000_000_000  # bytes: raw and prepared data, twice where the cache cannot be linked to


class CheckError(Exception):
    """What a check found wrong and how to mend it, one line each."""


def libraries() -> str:
    """Compare the installed packages with the pinned versions."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    text = "\n".join(file.read_text(encoding="utf-8") for file in REQUIREMENTS)
    lines = sorted(set(re.findall(r"^(\w.*?) *\\?$", text, re.M)))
    pins = [Requirement(line) for line in lines]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    installed = importlib.metadata.distributions()
    found = {canonicalize_name(library.name): library.version for library in installed}
    wrong = [
        f"{pin.name} {version or 'is missing'} instead of {str(pin.specifier).lstrip('=')}"
        for pin in here
        if (version := found.get(canonicalize_name(pin.name))) is None
        or version not in pin.specifier
    ]
    if wrong:
        raise CheckError(f"{', '.join(wrong)}: rm .venv/runtime && make .venv/runtime")
    return f"Python {platform.python_version()} and {len(here)} libraries as pinned"


def processor() -> str:
    """Look for variables by which libraries choose other kernels than the pinned ones."""
    from tools.verify.fingerprint import fingerprint, hardware_promises_same_bytes

    kernels = re.compile("(TF_)?(XLA|ONEDNN|DNNL)_|TF_(ENABLE|DISABLE|SET|USE)_|TENSORFLOW_")
    wrong = [name for name in os.environ if kernels.match(name) and name not in PINS]
    if wrong:
        raise CheckError(f"{' and '.join(wrong)} may change results: unset {' '.join(wrong)}")
    here = fingerprint(Path())
    promise = "the same bytes" if hardware_promises_same_bytes(here) else "equivalent results"
    return f"{here['processor']}: {promise} as on other machines"


def disk() -> str:
    """Look for room for the data and for temporary files."""
    free = {place: shutil.disk_usage(place).free for place in (os.curdir, tempfile.gettempdir())}
    wrong = [
        f"{Path(place).resolve()} has {size / 1e9:.1f} GB free, a run may take {ROOM / 1e9:.0f}: "
        "make room, as `dvc gc --workspace` does of earlier results"
        for place, size in free.items()
        if size < ROOM
    ]
    if wrong:
        raise CheckError("\n".join(wrong))
    return f"{min(free.values()) / 1e9:.0f} GB free"


def pipeline() -> str:
    """Have DVC read its files, and say what has to run."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            changed = repo.status()
    except DvcException as error:
        cause = " ".join(str(error).split())
        if LOCK.name in cause:
            cause += f": git checkout HEAD -- {LOCK} && dvc repro"
        raise CheckError(cause) from error
    return f"to run: {', '.join(changed)} (`make repro`)" if changed else "up to date"


def cache() -> str:
    """Hold every object in DVC's cache to the MD5 that is its name."""
    from dvc.repo import Repo

    with Repo() as repo:
        objects = sorted(Path(repo.cache.local.path).glob("??/*"))
    wrong = []
    for path in objects:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        name = path.parent.name + path.name
        if found != name.removesuffix(".dir"):
            place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            links = list(outputs_of(name))
            wrong.append(
                f"{place} ({', '.join(links) or 'of an earlier run'}) has MD5 {found}: "
                f"rm -f {' '.join([str(place), *links])} && dvc repro"
            )
    if wrong:
        raise CheckError("\n".join(wrong))
    return f"{len(objects)} objects with the right MD5"


def outputs_of(md5: str) -> Iterator[str]:
    """Yield the outputs that dvc.lock, where it can be read, says are the object `md5`."""
    from stages.core.errors import StageError
    from tools.verify.lockfile import list_files, read_lock

    try:
        outputs = list_files(read_lock(), "outs").items()
        yield from (path for path, recorded in outputs if recorded.md5 == md5)
    except (StageError, LookupError, AttributeError, TypeError):
        pass  # `pipeline` says so


def raw() -> str:
    """Hold the raw data to the catalogue."""
    from stages.core.paths import RAW
    from stages.download import DownloadParameters
    from stages.sources.catalogue import CATALOGUE
    from stages.sources.fetch import has_expected_hash

    name = DownloadParameters.read().dataset
    if name not in CATALOGUE:
        return f"{name} is in no catalogue to hold it to"
    files = [file for file in CATALOGUE[name].files if (RAW / file.name).exists()]
    wrong = [file for file in files if not has_expected_hash(RAW / file.name, file)]
    if wrong:
        raise CheckError(
            "\n".join(
                f"{RAW / file.name} is not of {name}, its SHA-256 is not {file.sha256}: "
                f"rm -f {RAW / file.name} && dvc repro"
                for file in wrong
            )
        )
    return f"{len(files)} of {len(CATALOGUE[name].files)} files there, with the right SHA-256"


def results() -> str:
    """Hold the last commit's code, parameters and small results to its dvc.lock."""
    from tools.verify.lockfile import find_stale, read_lock

    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        git = ["git", "clone", "--quiet", ".", str(clone)]
        ended = subprocess.run(git, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise CheckError(" ".join(ended.stderr.split()))
        if not (clone / LOCK).exists():
            return f"no {LOCK} in the last commit"
        found = find_stale(clone, read_lock(clone)).values()
    if notes := dict.fromkeys(note for stage in found for note in stage):
        raise CheckError("\n".join(f"{note}: make repro, then git commit" for note in notes))
    return f"the last commit's are those of its {LOCK}"


def main() -> None:
    """Make every check, whatever the others found."""
    code = 0
    for check in (libraries, processor, disk, pipeline, cache, raw, results):
        try:
            verdict, findings = "ok", check()
        except Exception as error:  # a check that cannot be made must not keep the next from it
            verdict, findings, code = "wrong", str(error), 1
        for line in findings.splitlines():
            print(f"{verdict:<6} {check.__name__}: {line}", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
