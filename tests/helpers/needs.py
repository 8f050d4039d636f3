"""What a test needs beside the packages in .venv: a program, the web, a Debian package."""

import os
from typing import NoReturn

import pytest


def miss(what: str) -> NoReturn:
    """Skip a test because `what` is missing. In CI the test fails: .ci/run has installed it."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(f"needs {what}")
