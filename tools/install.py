"""Make .venv and install the pinned packages: `python tools/install.py requirements.txt ...`.

`make` runs this script before anything else, so the script uses only the standard library. `make`
does not use `python -m tools.install`, because that would import stages/ first. pip installs the
pinned uv, and uv installs all other packages several times faster than pip would.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin/python"
UV = VENV / "bin/uv"

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

# pip's variables that say where packages come from and how to get them. All others are left out: a
# constraint, a target folder or another Python would change what is installed, or where.
PIP_VARIABLES = {f"PIP_{name.upper().replace('-', '_')}" for name in UV_VARIABLES} | {
    "PIP_CACHE_DIR",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_RETRIES",
    "PIP_TIMEOUT",
}

# Variables with a user's settings for other projects. They would change what uv installs, or where.
FOREIGN = (
    "UV_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_MANAGED_PYTHON",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_NO_BUILD",
    "UV_NO_BUILD_ISOLATION",
    "UV_NO_BUILD_PACKAGE",
    "UV_NO_VERIFY_HASHES",
    "UV_OVERRIDE",
    "UV_PRERELEASE",
    "UV_PROJECT",
    "UV_PYTHON",
    "UV_RESOLUTION",
    "UV_SYSTEM_PYTHON",
    "UV_TORCH_BACKEND",
    "UV_WORKING_DIR",
)


def check_python() -> None:
    """Stop unless this Python has a supported version and every module that is needed."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in ("3.11", "3.12", "3.13"):
        sys.exit(
            f"error: {sys.executable} is Python {version}, but this project needs Python 3.11, "
            "3.12 or 3.13. Name one: make repro PYTHON=python3.11"
        )
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing == ["ensurepip"]:  # on Debian and Ubuntu, it is in a separate package
        sys.exit(
            f"error: {sys.executable} cannot make virtual environments. On Debian or Ubuntu, "
            f"install the missing package: apt-get install python{version}-venv"
        )
    if missing:
        sys.exit(
            f"error: {sys.executable} was built without {', '.join(missing)}. Install the libraries"
            " they need and build it again, or name another: make repro PYTHON=python3.11"
        )


def make_venv() -> None:
    """Make .venv, unless it already works. If that fails, delete what was made."""
    if PYTHON.exists():
        version = [str(PYTHON), "-m", "pip", "--version"]
        tried = subprocess.run(version, env=make_pip_environment(), capture_output=True)
        if tried.returncode == 0:
            return
    # Inside an activated .venv, `python3` is a link into the folder that is about to be made.
    base = getattr(sys, "_base_executable", sys.executable)
    if subprocess.run([base, "-m", "venv", "--clear", VENV]).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"error: {base} could not make {VENV} (see above)")


def fetch_uv(pins: str) -> None:
    """Install uv as the requirements file `pins` pins it, unless it is there already."""
    pin = re.search(r"^uv==([^ ]+).*\n(?:    --hash.*\n)+", pins, re.MULTILINE)
    assert pin, "requirements-tools.txt pins uv"
    if UV.exists():
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
        alone = ["--isolated", "--no-index", "--no-deps"]
        run_pip("install", *alone, str(wheel), PIP_CONFIG_FILE=os.devnull)


def run_pip(command: str, *arguments: str, **variables: str) -> None:
    """Run .venv's pip with the additional environment `variables`, and stop if it fails."""
    pip = [str(PYTHON), "-m", "pip", command, "-qq", "--disable-pip-version-check"]
    if subprocess.run([*pip, *arguments], env={**make_pip_environment(), **variables}).returncode:
        sys.exit(
            f"error: pip could not {command} uv (see above). If this machine needs a proxy or a "
            "package mirror, configure pip: uv gets the same settings"
        )


def make_pip_environment() -> dict[str, str]:
    """Return the variables for pip: this process's, but of pip's own only PIP_VARIABLES."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PIP_") or name in PIP_VARIABLES
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
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    for name, variable in UV_VARIABLES.items():
        if name in settings:
            separator = "," if name == "find-links" else " "
            environment.setdefault(variable, separator.join(settings[name].split()))
    return environment


def install(files: list[str]) -> None:
    """Install the packages that the requirements `files` pin."""
    listing = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"],
        env=make_pip_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    settings = read_pip_settings(listing)
    environment = make_uv_environment(settings)
    command = [str(UV), "pip", "install", "--quiet", "--require-hashes", "--python", str(PYTHON)]
    # With several indexes, take each package from the one that has the pinned version. The hashes
    # make that safe.
    command += ["--index-strategy", "unsafe-best-match"]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        command += ["--no-index"]
    if not has_cache(environment):
        command += ["--no-cache"]
    for file in files:
        command += ["--requirement", file]
    if subprocess.run(command, env=environment).returncode:
        sys.exit(f"error: uv could not install the packages in {', '.join(files)} (see above)")


def has_cache(environment: dict[str, str]) -> bool:
    """Return whether uv can write to its cache. If it cannot, uv needs `--no-cache`."""
    shown = subprocess.run([UV, "cache", "dir"], env=environment, capture_output=True, text=True)
    folder = Path(shown.stdout.strip())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def main() -> None:
    """Make .venv and install the requirements files that the command line names."""
    files = sys.argv[1:]
    check_python()
    if PYTHON.exists():
        print(f"Installing the packages in {' and '.join(files)} into .venv", flush=True)
    else:
        print(
            "Installing the pinned packages into .venv: 0.5 GB to download, 2 GB on disk",
            flush=True,
        )
    make_venv()
    fetch_uv(Path("requirements-tools.txt").read_text(encoding="utf-8"))
    install(files)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
