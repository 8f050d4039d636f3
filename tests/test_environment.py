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
import os
import tensorflow
from stages.core import environment
from stages.core.errors import StageError
from stages.sources import idx

def show_refusal():
    from stages.model import runtime

    try:
        runtime.configure_tensorflow(1)
    except StageError as error:
        print(error)

show_refusal()
environment.TENSORFLOW_LOADED_BEFORE_PINS = False
os.environ["ONEDNN_MAX_CPU_ISA"] = "SSE41"
show_refusal()
"""


def test_import_replaces_the_users_values(run_python, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.delenv("KERAS_BACKEND")
    ended = run_python("-c", SHOW)
    assert json.loads(ended.stdout) == PINS


@pytest.mark.slow
def test_only_configuring_tensorflow_too_late_is_refused(run_python):
    """A notebook may import TensorFlow, then stages, and read data."""
    ended = run_python("-c", TENSORFLOW_FIRST)
    assert ended.returncode == 0, ended.stderr
    too_late, changed = ended.stdout.splitlines()
    assert too_late.endswith("run `import stages` before `import tensorflow`")
    assert changed.endswith(" and do not change ONEDNN_MAX_CPU_ISA")
