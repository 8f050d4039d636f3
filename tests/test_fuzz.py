"""A short fuzzing of what reads files that others may have made; docs/faults.md has longer runs."""

import re

import pytest

pytest.importorskip("atheris", reason="has no package for this system")


@pytest.mark.parametrize(
    ("target", "runs"), [("idx", 2000), ("parameters", 100), ("picture", 1000)]
)
def test_damaged_files_are_read_or_refused(run_python, tmp_path, target, runs, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = run_python("-m", "tests.fuzz", target, f"-runs={runs}", "-seed=1")
    assert ended.returncode == 0, ended.stderr
    assert re.search(f"^Done {runs} runs", ended.stderr, re.M)
