"""The project's exceptions, and how a command ends after one."""

import re
import sys
from pathlib import Path

import pytest

from stages.core import errors
from stages.core.errors import StageError, run

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    """`run` replaces them."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.mark.parametrize("error", [StageError("raw: bad"), OSError("raw: bad")])
def test_stage_error_and_os_error_end_with_one_line(error):
    def fail():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(fail)
    assert caught.value.code == "error: raw: bad"


def test_interrupt_ends_with_one_line():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run(interrupt)
    assert caught.value.code == "error: interrupted"


def test_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_tree_shows_every_exception_below_its_base():
    defined = {}
    for folder in ("stages", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            defined |= dict(re.findall(r"^class (\w+)\((\w*(?:Error|Exception))\):", text, re.M))
    drawn, bases = {}, []
    for branch, name in re.findall(r"^([ │├└─]+)(\w*(?:Error|Exception))\b", errors.__doc__, re.M):
        level = len(branch) // 4 - 1
        bases[level:] = [name]
        if level:
            drawn[name] = bases[level - 1]
    assert drawn == defined
