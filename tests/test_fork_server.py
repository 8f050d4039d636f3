"""The fork server answers as a new process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fork_server
from helpers.project import ROOT

MODULE = """
import os, sys
print(os.getcwd(), sys.argv[1:], sys.stdin.read(), os.environ.get("TZ"), sys.path[:2])
print("numpy" in sys.modules)
sys.exit(eval(sys.argv[1]))
"""


def run(program, *arguments, **variables):
    return subprocess.run(
        [program, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        input="text",
        capture_output=True,
        text=True,
        check=False,
    )


def read_log():
    """Return the modules that ran in new processes, and the variables that were the reason."""
    return (Path(os.environ[fork_server.FOLDER]) / "real").read_text()


@pytest.mark.linux
@pytest.mark.parametrize("ended", ["None", "3", "'error: text'"])
def test_fork_gives_the_same_streams_and_exit_code(project, ended):
    (project / "show.py").write_text(MODULE)
    new, fork, other = (
        run(sys.executable, "-m", "show", ended),
        run(fork_server.find("python"), "-m", "show", ended),
        run(fork_server.find("python"), "-m", "show", ended, TZ="XYZ-14"),
    )
    assert new.stdout.endswith("False\n")
    assert fork.stdout == new.stdout.replace("False", "True"), read_log()
    assert (fork.stderr, fork.returncode) == (new.stderr, new.returncode)
    # A variable that libraries read when they are loaded: this is a new process.
    assert other.stdout == new.stdout.replace("text None", "text XYZ-14")
    assert "show TZ\n" in read_log()


@pytest.mark.linux
def test_server_that_has_ended_is_named(project, monkeypatch):
    monkeypatch.setenv(fork_server.FOLDER, "")  # undoes what `start` sets
    server = fork_server.start()
    server.kill()
    server.wait()
    ended = run(fork_server.find("python"), "-m", "show")
    fork_server.stop(server)
    assert (ended.returncode, ended.stderr) == (1, "the fork server has ended\n")


@pytest.mark.xdist_group("leak")
@pytest.mark.parametrize("turn", [1, 2])
def test_what_a_test_leaves_in_the_environment_is_undone(turn):
    assert "LEFT" not in os.environ
    assert "PATH" in os.environ
    os.environ["LEFT"] = os.environ.pop("PATH")
