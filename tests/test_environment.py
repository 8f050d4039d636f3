"""The environment variables that make results independent of the processor."""

import json

import pytest

from stages.core.environment import PINS

SHOW = """
import json, os
import stages
from stages.core import environment

print(json.dumps({name: os.environ[name] for name in environment.PINS}))
"""

TENSORFLOW_FIRST = """
import tensorflow
from stages.core import environment
from stages.sources import idx

print(idx.__name__, environment.TENSORFLOW_LOADED_BEFORE_PINS)
"""


def test_import_replaces_the_users_values(run_python, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.delenv("KERAS_BACKEND")
    ended = run_python("-c", SHOW)
    assert json.loads(ended.stdout) == PINS


@pytest.mark.slow
def test_tensorflow_may_be_imported_first(run_python):
    """A notebook can read data then; only `configure_tensorflow` refuses."""
    ended = run_python("-c", TENSORFLOW_FIRST)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "stages.sources.idx True\n"
