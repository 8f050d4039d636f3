"""Check environment, data and cache. Prints a line for each check, or for each problem and its fix.

Checks files and versions of packages and where they come from, variables that change results or
keep DVC from working, the processor, the git repository, the disk, params.yaml and what dvc.yaml
lists of it, DVC's files, this project's files in DVC's cache (DVC does not check those that it made
read-only), the raw data, and whether dvc.lock belongs to the last commit.
Takes seconds and changes nothing. Exits with status 1 if there is a problem.

    python -m tools.doctor
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dvc_verify.packages import find_changed_packages, find_extra_files
from stages.core.environment import PINS, REMOVED
from stages.core.errors import run
from stages.core.paths import LOCK
from stages.core.terminal import print_line

# Other modules are imported inside the checks, so that a missing package is reported, too.

REQUIREMENTS = (Path("requirements.txt"), Path("requirements-tools.txt"))
REINSTALL = "rm .venv/runtime && make .venv/runtime"
DISK_SPACE = 1_000_000_000  # bytes: raw and prepared data, and copies of them in the cache


class CheckError(Exception):
    """A check found something wrong. Each argument is a line: a problem, with its fix."""


def conclude(problems: Iterable[str], fine: str) -> str:
    """Return `fine`, the result of a check that found nothing; raise CheckError otherwise."""
    if found := list(problems):
        raise CheckError(*found)
    return fine


def read_requirements() -> str:
    """Return the text of the files that pin the packages of this environment."""
    return "\n".join(file.read_text(encoding="utf-8") for file in REQUIREMENTS)


def check_files() -> str:
    """Compare the files of the pinned packages with the packages' own records."""
    pinned = set(re.findall(r"^([\w.-]+)==", read_requirements(), re.M))
    changed = find_changed_packages().items()
    problems = [f"{name}: {what}: {REINSTALL}" for name, what in changed if name in pinned]
    if not problems and (extra := find_extra_files()):
        problems = [f"no package has installed {extra[0]}: rm -f {' '.join(map(str, extra))}"]
    return conclude(problems, f"those of {len(pinned)} packages are as installed")


def check_packages() -> str:
    """Compare the installed packages with the pinned versions."""
    from packaging.requirements import Requirement

    from dvc_verify.machine import list_installed, normalise

    lines = sorted(set(re.findall(r"^(\w.*?) *\\?$", read_requirements(), re.M)))
    pins = [Requirement(line) for line in lines]
    needed = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    installed = list_installed()
    versions = [(pin, installed.get(normalise(pin.name))) for pin in needed]
    problems = ", ".join(
        f"{pin.name} {version or 'is missing'} instead of {str(pin.specifier).lstrip('=')}"
        for pin, version in versions
        if version is None or version not in pin.specifier
    )
    fine = f"Python {platform.python_version()} and {len(needed)} packages with pinned versions"
    return conclude([f"{problems}: {REINSTALL}"] if problems else [], fine)


def check_places() -> str:
    """Check that DVC and Python find this environment's packages and programs."""
    places = (sys.prefix, str(Path(sys.prefix).resolve()))
    names = ("dvc", "keras", "matplotlib", "numpy", "pandas", "PIL", "sklearn", "tensorflow")
    specs = {name: importlib.util.find_spec(name) for name in names}
    problems = (
        f"{name} is imported from {spec.origin}: unset PYTHONPATH"
        for name, spec in specs.items()
        if spec and spec.origin and not spec.origin.startswith(places)
    )
    return conclude(problems, "packages come from this environment")


def check_variables() -> str:
    """Look for variables that disturb a `dvc` you start yourself. `make` removes most of them."""
    problems = []
    for name, value in REMOVED.items():
        unusable = Path(value).name in ("nologin", "false") or not os.access(value, os.X_OK)
        if name == "SHELL" and unusable:
            problems.append(
                f"SHELL is {value}, with which DVC runs the stages: export SHELL=/bin/sh"
            )
        if name.startswith(("GIT_", "PYTHONHOME", "PYTHONSAFEPATH")):
            problems.append(f"{name} is {value}, which changes what DVC and git do: unset {name}")
    if "TF_CONFIG" in os.environ:
        problems.append(
            "TF_CONFIG makes train wait for other workers; if you do not train on several: "
            "unset TF_CONFIG"
        )
    return conclude(problems, "none that disturbs DVC or git")


def check_processor() -> str:
    """Look for AVX, and for variables that make libraries compute with other kernels."""
    from dvc_verify.machine import read_fingerprint
    from stages.core.machine import collect_fingerprint, promises_same_bytes

    kernels = re.compile("(TF_)?(XLA|ONEDNN|DNNL)_|TF_(ENABLE|DISABLE|SET|USE)_|TENSORFLOW_")
    names = [name for name in os.environ if kernels.match(name) and name not in PINS]
    if names:
        raise CheckError(f"{' and '.join(names)} may change results: unset {' '.join(names)}")
    here = collect_fingerprint()
    instructions = here["vector_instructions"].split()
    if here["machine"] == "x86_64" and instructions and "avx" not in instructions:
        raise CheckError(
            f"{here['processor']} has no AVX, which TensorFlow's packages need: use another "
            "machine, or give the virtual machine its host's processor"
        )
    promised = all(map(promises_same_bytes, (here, read_fingerprint(Path()) or here)))
    promise = "the same bytes" if promised else "equivalent results"
    return f"{here['processor']}: {promise} as on the machine that recorded {LOCK}"


def check_git() -> str:
    """Check that git can read the repository, and that it is complete."""
    from dvc_verify import git

    git.check_repository()
    if not git.is_in_git():
        return "not used: DVC's option core.no_scm is set"
    notes = [f"commit {git.find_last_commit()[:12]}"]
    conflicts = git.ask_git("diff", "--name-only", "--diff-filter=U", "--relative").split()
    if conflicts:
        raise CheckError(f"merge conflicts in {', '.join(conflicts)}: make resolve")
    if git.is_partial():
        raise CheckError(f"a partial clone, in which `dvc metrics diff` can hang: {git.COMPLETE}")
    if prefix := git.ask_git("rev-parse", "--show-prefix").rstrip("/"):
        notes.append(f"the project is its folder {prefix}")
    if git.is_shallow():
        notes.append("shallow: `git fetch --unshallow` brings older commits")
    return ", ".join(notes)


def check_disk() -> str:
    """Check that the disk has room for the data and for temporary files, and can be written to."""
    places = [Path(place) for place in (".", ".dvc", ".dvc/tmp", ".dvc/cache", ".venv", "data")]
    places += [path for path in Path("data").glob("*") if path.is_dir()]
    if closed := [str(path) for path in places if path.exists() and not os.access(path, os.W_OK)]:
        raise CheckError(
            f"{' and '.join(closed)} cannot be written to, as after a run by another user: "
            "sudo chown -R $(id -u) ."
        )
    free = {place: shutil.disk_usage(place).free for place in (os.curdir, tempfile.gettempdir())}
    problems = [
        f"{Path(place).resolve()} has {size / 1e9:.1f} GB free, but a run may need "
        f"{DISK_SPACE / 1e9:.0f} GB: free some space, or name another folder in TMPDIR"
        for place, size in free.items()
        if size < DISK_SPACE
    ]
    return conclude(problems, f"{min(free.values()) / 1e9:.0f} GB free")


def check_parameters() -> str:
    """Check params.yaml, and that dvc.yaml lists the sections that each stage reads."""
    from stages.core.paths import PARAMETERS
    from stages.core.settings import read_yaml
    from tools.recipe import check

    content = read_yaml(PARAMETERS)
    check(content)
    return f"{len(content)} sections with valid values, which the stages read"


def check_pipeline() -> str:
    """Let DVC read its files, and list the stages whose inputs have changed."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError

    from dvc_verify.machine import RECORD, read_fingerprint

    try:
        with Repo() as repo:
            changed = repo.status()
    except RWLockFileCorruptedError as error:  # DVC was killed while it wrote the file
        raise CheckError(f"{error}: rm .dvc/tmp/rwlock") from error
    except DvcException as error:
        reason = " ".join(str(error).split())
        if LOCK.name in reason:
            reason += f": git checkout HEAD -- {LOCK} && dvc repro"
        raise CheckError(reason) from error
    if changed:
        return f"changed: {', '.join(changed)} (`make repro`)"
    if LOCK.exists() and read_fingerprint(Path()) is None:
        raise CheckError(f"{RECORD} is missing or of another {LOCK}: make repro")
    return "up to date"


def check_cache() -> str:
    """Compare this project's files in DVC's cache with the MD5 in their names."""
    from dvc.repo import Repo

    with Repo() as repo:
        cache = Path(repo.cache.local.path)
    recorded = read_recorded_outputs()
    if cache.is_relative_to(Path.cwd()):
        objects = sorted(cache.glob("??/*"))
    else:  # other projects may share it
        places = (cache / md5[:2] / md5[2:] for md5 in recorded.values())
        objects = sorted(path for path in places if path.exists())
    problems = []
    for path in objects:
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "md5").hexdigest()
        except PermissionError:
            problems.append(f"{path} belongs to another user: sudo chmod a+r {path}")
            continue
        name = path.parent.name + path.name
        if found != name.removesuffix(".dir"):
            place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            outputs = [output for output, md5 in recorded.items() if md5 == name]
            problems.append(
                f"{place} ({', '.join(outputs) or 'from an earlier run'}) has the MD5 {found}: "
                f"rm -f {' '.join([str(place), *outputs])} && dvc repro"
            )
    return conclude(problems, f"{len(objects)} files with the right MD5")


def read_recorded_outputs() -> dict[str, str]:
    """Return the MD5 of each output in dvc.lock; nothing if the file cannot be read."""
    from dvc_verify import VerifyError
    from dvc_verify.lockfile import list_files, read_lock

    try:
        outputs = list_files(read_lock(), "outs").items()
        return {path: recorded.md5 for path, recorded in outputs}
    except (VerifyError, LookupError, AttributeError, TypeError):
        return {}  # check_pipeline reports it


def check_raw() -> str:
    """Compare the raw data with the SHA-256 in the catalogue."""
    from stages.core.paths import RAW
    from stages.download import DownloadParameters
    from stages.sources.catalogue import CATALOGUE
    from stages.sources.fetch import has_expected_hash

    dataset = DownloadParameters.read().dataset
    if dataset not in CATALOGUE:
        return f"not checked: the catalogue has no hashes of the dataset '{dataset}'"
    files = [file for file in CATALOGUE[dataset].files if (RAW / file.name).exists()]
    problems = (
        f"{RAW / file.name} does not have the SHA-256 {file.sha256} of {dataset}: "
        f"rm -f {RAW / file.name} && dvc repro"
        for file in files
        if not has_expected_hash(RAW / file.name, file)
    )
    count = len(CATALOGUE[dataset].files)
    return conclude(problems, f"{len(files)} of {count} files there, with the right SHA-256")


def check_lock() -> str:
    """Compare code, parameters and small outputs in the last commit with its dvc.lock."""
    from dvc_verify.git import clone_commit, find_last_commit, is_in_git
    from dvc_verify.project import read_project
    from dvc_verify.stale import find_stale

    if not is_in_git():
        return "not checked: this folder has no commits"
    with tempfile.TemporaryDirectory() as folder:
        clone = clone_commit(find_last_commit(), Path(folder) / "clone")
        if not (clone / LOCK).exists():
            return f"not checked: the last commit has no {LOCK}"
        found = find_stale(read_project(clone)).values()
    notes = dict.fromkeys(note for stage in found for note in stage)
    problems = (f"{note}: make repro && git commit --all" for note in notes)
    return conclude(problems, f"{LOCK} belongs to the last commit")


CHECKS = {
    "files": check_files,
    "packages": check_packages,
    "places": check_places,
    "variables": check_variables,
    "processor": check_processor,
    "repository": check_git,
    "disk": check_disk,
    "parameters": check_parameters,
    "pipeline": check_pipeline,
    "cache": check_cache,
    "raw": check_raw,
    "lock": check_lock,
}


def main() -> None:
    """Run every check and print its result."""
    wrong: set[str] = set()
    for name, check in CHECKS.items():
        # To import a damaged package can end this process.
        needed = {"files", "repository"} if name in ("pipeline", "cache", "lock") else {"files"}
        if cause := needed & wrong:
            print_line(f"-      {name}: not checked, because of the {cause.pop()}")
            continue
        try:
            found: tuple[object, ...] = (check(),)
            verdict = "-" if str(found[0]).startswith("not ") else "ok"
        except Exception as error:  # one failing check must not stop the others
            verdict, found = "wrong", error.args if isinstance(error, CheckError) else (error,)
            if isinstance(error, ModuleNotFoundError):
                found = (f"{error}: {REINSTALL}",)
            wrong.add(name)
        for line in found:
            print_line(f"{verdict:<6} {name}: {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run(main)
