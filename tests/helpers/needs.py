"""What a test needs beside the packages in .venv: a program, the web, a Debian package."""

import os
import shutil
from typing import NoReturn

import pytest

# Debian's packages with the programs that tests look for.
PACKAGES = {
    "chromium-headless-shell": "chromium-headless-shell",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "tc": "iproute2",
    "unshare": "util-linux",
}


def miss(what: str) -> NoReturn:
    """Skip a test because `what` is missing. In CI the test fails: .ci/run has installed it."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(f"needs {what}")


def find_program(name: str, *others: str) -> str:
    """Return the path of the first of these programs that is installed, or skip the test."""
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    for each in (name, *others):
        if path := shutil.which(each, path=places):
            return path
    miss(f"{' or '.join([name, *others])}; on Debian: apt-get install {PACKAGES[name]}")
