"""Make .venv and install the pinned packages: `python tools/install.py requirements.txt ...`.

With --pin instead of files, writes the requirements files: the newest versions that fit together.
With --check, only deletes incomplete compiled files.

`make` runs this script before anything else, so the script uses only the standard library. `make`
does not use `python -m tools.install`, because that would import stages/ first. pip installs the
pinned uv, and uv installs all other packages several times faster than pip would.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import marshal
import os
import re
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin/python"
UV = VENV / "bin/uv"
TOOLS = "requirements-tools.txt"  # pins uv, and setuptools, which builds packages without a wheel

# Some builds of Python lack one of these modules. Without this list, a stage would fail later.
NEEDED = ("bz2", "ctypes", "ensurepip", "lzma", "sqlite3", "ssl", "venv", "zlib")

# uv does not read pip's settings. This table has uv's variable for each setting.
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}

# The variables of pip and uv that say where packages come from and how to get them. Others, such
# as a constraint, a target folder or another Python, would change what is installed, or where.
KEPT = re.compile(
    "PIP_(CACHE_DIR|CERT|CLIENT_CERT|CONFIG_FILE|DEFAULT_TIMEOUT|EXTRA_INDEX_URL|FIND_LINKS|INDEX_URL"
    "|KEYRING_PROVIDER|NO_CACHE_DIR|NO_INDEX|PROXY|RETRIES|TIMEOUT|TRUSTED_HOST)"
    "|UV_(CACHE_DIR|CONCURRENT_.*|DEFAULT_INDEX|EXTRA_INDEX_URL|FIND_LINKS|HTTP_.*|INDEX(?!_STRATEGY).*"
    "|INSECURE_HOST|KEYRING_PROVIDER|NATIVE_TLS|NO_CACHE|OFFLINE|REQUEST_TIMEOUT|SYSTEM_CERTS)"
)


def say(text: str) -> None:
    """Print a line. What cannot be printed, as on a full disk, changes nothing."""
    if sys.stdout:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), f"{text}\n".encode(errors="backslashreplace"))


def check_python() -> None:
    """Stop unless this Python has a supported version and every module that is needed."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if version not in ("3.11", "3.12", "3.13"):
        problem = f"is Python {version}, but this project needs Python 3.11, 3.12 or 3.13. Name one"
    elif missing == ["ensurepip"]:  # on Debian and Ubuntu, it is in a separate package
        problem = (
            "cannot make virtual environments. On Debian or Ubuntu, install the missing package "
            f"(apt-get install python{version}-venv), or name another Python"
        )
    elif missing:
        problem = (
            f"was built without {', '.join(missing)}. Install the libraries that they need and "
            "build it again, or name another Python"
        )
    else:
        return
    sys.exit(f"error: {sys.executable} {problem}: make repro PYTHON=python3.11")


def make_venv() -> None:
    """Make .venv, unless it already works. If that fails, delete what was made."""
    if PYTHON.exists():
        version = [str(PYTHON), "-m", "pip", "--version"]
        tried = subprocess.run(version, env=make_environment(), capture_output=True)
        if tried.returncode == 0:
            return
    # Inside an activated .venv, `python3` is a link into the folder that is about to be made.
    base = getattr(sys, "_base_executable", sys.executable)
    if subprocess.run([base, "-m", "venv", "--clear", VENV]).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"error: {base} could not make {VENV} (see above)")


def fetch_uv() -> None:
    """Install the pinned uv, unless it is there already."""
    pins = Path(TOOLS).read_text(encoding="utf-8")
    pin = re.search(r"^uv==([^ ]+).*\n(?:    --hash.*\n)+", pins, re.MULTILINE)
    assert pin, f"{TOOLS} pins uv"
    with contextlib.suppress(OSError):  # it is not there, or incomplete
        installed = subprocess.run([UV, "--version"], capture_output=True, text=True).stdout
        if installed.split()[1:2] == [pin[1]]:
            return
    with tempfile.TemporaryDirectory(dir=VENV) as folder:
        requirement = Path(folder, "uv.txt")
        requirement.write_text(pin[0], encoding="utf-8")
        # Two steps: `download` reads the user's settings, because they name the package index.
        # `install` reads no settings, because some make pip install elsewhere (PIP_USER,
        # PIP_TARGET, pip.conf).
        download = ["--require-hashes", "--only-binary", ":all:", "--dest", folder]
        run_pip("download", *download, "--requirement", str(requirement))
        (wheel,) = Path(folder).glob("*.whl")
        alone = ["--isolated", "--no-index", "--no-deps", "--force-reinstall"]
        run_pip("install", *alone, str(wheel), PIP_CONFIG_FILE=os.devnull)


def run_pip(command: str, *arguments: str, **variables: str) -> None:
    """Run .venv's pip with the additional environment `variables`, and stop if it fails."""
    pip = [str(PYTHON), "-m", "pip", command, "-qq", "--disable-pip-version-check"]
    if subprocess.run([*pip, *arguments], env=make_environment() | variables).returncode:
        sys.exit(
            f"error: pip could not {command} uv (see above). If this machine needs a proxy or a "
            "package mirror, configure pip: uv gets the same settings"
        )


def make_environment() -> dict[str, str]:
    """Return this process's environment, but of pip's and uv's variables only those in KEPT."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "UV_")) or KEPT.fullmatch(name)
    }


def read_pip_settings(listing: str) -> dict[str, str]:
    """Return the settings in the output of `pip config list`, by name."""
    settings = {}
    for section in ("global.", "install.", ":env:."):  # the last one wins, as in pip
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                settings[name[len(section) :]] = str(ast.literal_eval(value))
    return settings


def make_uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment for uv. pip's `settings` apply if the user has set none for uv."""
    environment = make_environment()
    for name, variable in UV_VARIABLES.items():
        if name in settings:
            separator = "," if name == "find-links" else " "
            environment.setdefault(variable, separator.join(settings[name].split()))
    # Nor may a uv.toml change what is installed, or where.
    return environment | {"XDG_CONFIG_HOME": os.devnull, "UV_NO_SYSTEM_CONFIG": "1"}


def run_uv(*command: str) -> bool:
    """Run a command of `uv pip` with the settings of pip, and return whether it succeeded."""

    def ask(*asked: str | Path, env: dict[str, str]) -> str:
        return subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout

    settings = read_pip_settings(ask(PYTHON, "-m", "pip", "config", "list", env=make_environment()))
    # With several indexes, take each package from the one that has the pinned version. The hashes
    # make that safe.
    options = ["--quiet", "--index-strategy", "unsafe-best-match"]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options += ["--no-index"]
    elif command[0] == "compile":
        # An additional index may lack what other systems need.
        settings.pop("extra-index-url", None)
        settings.pop("find-links", None)
    environment = make_uv_environment(settings)
    cache = Path(ask(UV, "cache", "dir", env=environment).strip())
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK):
        options += ["--no-cache"]
    return subprocess.run([UV, "pip", *command, *options], env=environment).returncode == 0


def install(files: list[str]) -> None:
    """Install the packages that the requirements `files` pin, the damaged ones once more."""
    pins = "".join(Path(file).read_text(encoding="utf-8") for file in files)
    if re.search("^<<<<<<< ", pins, re.MULTILINE):
        sys.exit(
            f"error: merge conflict in {' or '.join(files)}: take one version of each, as in "
            f"`git checkout --ours {files[0]}`, then pin all packages again: make requirements"
        )
    names = set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    # Copies, not links: a file that is edited in .venv must not change in uv's cache.
    command = ["install", "--python", str(PYTHON), "--link-mode", "copy", "--require-hashes"]
    command += ["--require-build-hashes", "--build-constraints", TOOLS]
    command += [word for file in files for word in ("--requirement", file)]
    forget_damaged(names)
    # uv's cache may be damaged, too.
    if not run_uv(*command) or (forget_damaged(names) and not run_uv(*command, "--no-cache")):
        sys.exit(
            f"error: uv could not install the packages in {', '.join(files)} (see above). If two "
            "pinned versions do not fit together, pin all again: make requirements"
        )


def forget_damaged(names: set[str]) -> bool:
    """Let uv install those packages again whose files differ from their record."""
    command = [str(PYTHON), "-P", "dvc_verify/packages.py"]
    listing = subprocess.run(command, capture_output=True, text=True).stdout
    damaged = dict(line.split(": ", 1) for line in listing.splitlines())
    for folder in (VENV / "lib").glob("python3*/site-packages/*.dist-info"):
        name = re.sub(r"[-_.]+", "-", folder.name.partition("-")[0]).lower()
        if name in names & damaged.keys():
            say(f"Installing {name} again: {damaged[name]}")
            shutil.rmtree(folder)
    return bool(names & damaged.keys())


def pin_packages() -> None:
    """Write the requirements files: the newest versions that fit together, at least a week old.

    One set of versions serves every supported system and Python. The first command finds it. The
    next three write one file each, with all dependencies.
    """
    together = str(VENV / "together.txt")
    command = ["compile", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url"]
    command += ["--exclude-newer", "7 days", "pyproject.toml"]
    shared = ["--constraints", together, "--output-file"]
    for arguments in (
        ["--upgrade", "--group=tools", "--group=dev", "--output-file", together],
        [*shared, "requirements.txt"],
        [*shared, TOOLS, "--group=tools"],
        [*shared, "requirements-dev.txt", "--group=dev"],
    ):
        if not run_uv(*command, *arguments):
            sys.exit("error: uv could not pin the packages in pyproject.toml (see above)")


def delete_incomplete_bytecode() -> None:
    """Delete compiled files that Python cannot load.

    On a full disk, Python 3.11 writes a part of such a file and does not notice. It would refuse to
    import the module from then on.
    """
    pattern = "**/__pycache__/*.pyc"
    for name in glob(pattern, recursive=True) + glob(f"{VENV}/lib/{pattern}", recursive=True):  # noqa: PTH207 # faster
        content = Path(name).read_bytes()
        if content.startswith(importlib.util.MAGIC_NUMBER):
            try:
                marshal.loads(content[16:])  # noqa: S302 # as Python would
            except (EOFError, TypeError, ValueError):
                Path(name).unlink()
                say(f"deleted {name}, which was incomplete, as after a full disk")


def main() -> None:
    """Make .venv and install the requirements files that the command line names."""
    files = sys.argv[1:]
    if files == ["--check"]:
        delete_incomplete_bytecode()
        return
    check_python()
    if files == ["--pin"]:
        say("Pinning the newest versions of all packages that are at least a week old")
    elif PYTHON.exists():
        say(f"Installing the packages in {' and '.join(files)} into .venv")
    else:
        say("Installing the pinned packages into .venv: 0.5 GB to download, 2 GB on disk")
    make_venv()
    fetch_uv()
    if files == ["--pin"]:
        pin_packages()
    else:
        install(files)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
