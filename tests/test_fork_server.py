"""The fork server answers as a new process does."""

import os
import subprocess
import sys

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
    assert fork.stdout == new.stdout.replace("False", "True")
    assert (fork.stderr, fork.returncode) == (new.stderr, new.returncode)
    # A variable that libraries read when they are loaded: this is a new process.
    assert other.stdout == new.stdout.replace("text None", "text XYZ-14")


@pytest.mark.linux
def test_server_that_has_ended_is_named(project, monkeypatch):
    monkeypatch.setenv(fork_server.FOLDER, "")  # undoes what `start` sets
    server = fork_server.start()
    server.kill()
    server.wait()
    ended = run(fork_server.find("python"), "-m", "show")
    fork_server.stop(server)
    assert (ended.returncode, ended.stderr) == (1, "the fork server has ended\n")
