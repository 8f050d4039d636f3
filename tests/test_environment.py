"""The environment variables that make results independent of the processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.environment import LEFTOVERS, PINS
from stages.core.errors import StageError
from stages.core.machine import read_processor
from stages.model import runtime

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
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "2"
show_refusal()
"""


def test_import_replaces_the_users_values(run_python, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "2")
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
    assert changed.endswith(" and do not change TF_ENABLE_ONEDNN_OPTS")


# What other programs leave for their own children


def test_variables_of_git_are_removed():
    """All that this version of git calls local to a repository."""
    listed = subprocess.run(
        ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.split()) <= set(LEFTOVERS)


LIST = """
import os, subprocess, sys
import stages
subprocess.run([sys.executable, "-c", "import os; print(*os.environ)"])
"""


def test_children_do_not_get_leftovers(run_python, monkeypatch):
    """Not those that Python itself would obey before it imports anything."""
    names = [name for name in LEFTOVERS if name not in ("PYTHONHOME", "PYTHONSAFEPATH")]
    for name in names:
        if not name.startswith("PYTHON"):
            monkeypatch.setenv(name, "/x")
    found = run_python("-c", LIST).stdout.split()
    assert "PATH" in found
    assert not set(found) & set(names)


def test_plots_work_in_a_notebook(run_python, monkeypatch):
    """A kernel names its own backend, which is not installed here."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    code = "import stages, matplotlib.pyplot; print(matplotlib.get_backend())"
    assert run_python("-c", code).stdout.strip() == "agg"


def test_numpy_starts_with_other_features_enabled(run_python, monkeypatch):
    monkeypatch.setenv("NPY_ENABLE_CPU_FEATURES", "AVX2")
    assert run_python("-c", "import stages, numpy; print(1)").stdout == "1\n"


WITHOUT_NAME = """
import os
os.getuid = lambda: 12345
import stages
from dvc.cli import main
print(main(["version"]))
"""


def test_dvc_works_for_a_user_without_a_name(run_python, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    ended = run_python("-c", WITHOUT_NAME)
    assert ended.stdout.endswith("\n0\n"), ended.stderr


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false", "/does/not/exist"])
def test_dvc_runs_commands_whatever_the_shell_is(run_python, project, monkeypatch, shell):
    """Accounts of services have such a shell."""
    monkeypatch.setenv("SHELL", shell)
    run_python("-m", "dvc", "init", "-q", "--no-scm")
    (project / "dvc.yaml").write_text("stages: {one: {cmd: echo done > out}}\n")
    code = "import stages; from dvc.cli import main; main(['repro'])"
    run_python("-c", code)
    assert (project / "out").read_text() == "done\n"


@pytest.mark.parametrize(
    ("flags", "missing"),
    [("sse4_2 avx fma", ""), ("sse4_2", "AVX"), ("avx avx2", "FMA"), (None, "")],
)
def test_missing_instructions_are_named(tmp_path, monkeypatch, flags, missing):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(runtime, "read_processor", lambda: read_processor(cpuinfo))
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # so that importing it fails at once
    with pytest.raises(StageError if missing else ImportError, match=missing or None):
        runtime.load_tensorflow()


def test_makefile_removes_what_python_would_obey(tmp_path):
    """`make` starts Python, which reads these before it can remove them."""
    variables = {"PYTHONPATH": "/x", "PYTHONHOME": "/x", "PYTHONSAFEPATH": "1", "GIT_DIR": "/x"}
    rule = "show:\n\t@env\n"
    (tmp_path / "Makefile").write_text(f"include {Path('Makefile').resolve()}\n{rule}")
    shown = subprocess.run(
        ["make", "-s", "-C", tmp_path, "show"],
        env=os.environ | variables | {"SHELL": "/bin/false", "MPLBACKEND": "x"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    assert not found.keys() & variables
    assert (found["SHELL"], found["MPLBACKEND"]) == ("/bin/sh", "agg")
