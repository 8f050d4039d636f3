"""What a command prints never changes how it ends, and names cannot forge or colour a line."""

import ast
import sys

import pytest
from helpers.project import ROOT

from stages.core.terminal import make_printable

PRINT = """
import sys
from stages.core.errors import StageError, run

def main():
    print("\\x1b[31m 한글 ≥ \\udcff \\u202e", *range(20_000), sys.stdin.read())
    print("≥ \\x1b[31m", file=sys.stderr)
    if sys.argv[1] == "error":
        raise StageError("params.yaml\\n\\x1b[31mforged: 한글")
    sys.exit(3)

run(main)
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("사진 7.png", "사진 7.png"),
        ("Screenshot\u202f3.04\u3000PM", "Screenshot\u202f3.04\u3000PM"),  # spaces that people use
        ("7\n8: 100 %", r"7\n8: 100 %"),
        ("7\r8\v\f\x85\u2028", r"7\r8\x0b\x0c\x85\u2028"),
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("\u202egnp.7\u2066\u200f", r"\u202egnp.7\u2066\u200f"),
        (" ::error::7.png", r" \x3a:error::7.png"),
        ("7 ##[error] ::8", r"7 #\x23[error] ::8"),
        ("\udcff", r"\udcff"),  # what Python makes of a byte that is not UTF-8
    ],
)
def test_text_stays_on_its_line(text, shown):
    assert make_printable(text) == shown


@pytest.mark.parametrize("end", ["error", "code"])
@pytest.mark.parametrize(
    ("redirected", "variables"),
    [
        ("", {}),
        ("", {"PYTHONIOENCODING": "latin-1"}),
        ("", {"PYTHONIOENCODING": "ascii:strict"}),
        ("", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
        ("> /dev/full", {}),
        ("> /dev/full 2>&1", {"PYTHONUNBUFFERED": "1"}),
        ("| true", {}),
        (">&-", {}),
        ("2>&-", {}),
        ("<&- >&- 2>&-", {}),
    ],
)
def test_output_that_cannot_be_written_changes_no_exit_code(
    run_python, tmp_path, monkeypatch, redirected, variables, end
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "print.py").write_text(PRINT, encoding="utf-8")
    shell = f'set -o pipefail; "{sys.executable}" print.py {end} {redirected}'
    code = f"import subprocess, sys; sys.exit(subprocess.call(['bash', '-c', {shell!r}], stdin=-3))"
    ended = run_python("-c", code)
    assert ended.returncode == {"error": 1, "code": 3}[end]
    assert "Traceback" not in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    if end == "error" and "2>" not in redirected:
        assert ended.stderr.splitlines()[-1].startswith(r"error: params.yaml\n\x1b[31mforged: ")
    assert ("No space left" in ended.stderr) == (redirected == "> /dev/full")


@pytest.mark.parametrize("redirected", ["> /dev/full", "> /dev/full 2>&1", "2>&1 | true", "2>&-"])
def test_dvc_verify_keeps_its_exit_code(run_python, redirected):
    """It imports nothing of this project. `tmp_path` is not a repository."""
    shell = f'set -o pipefail; "{sys.executable}" -m dvc_verify lock {redirected}'
    ended = run_python("-c", f"import os; os.execvp('bash', ['bash', '-c', {shell!r}])")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_every_command_ends_through_run():
    """The only others run before packages are installed, or measure a command."""
    found = {}
    for folder in ("stages", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            last = ast.parse(path.read_bytes()).body[-1]
            if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
                found[path.stem] = "; ".join(map(ast.unparse, last.body))
    others = {name for name, body in found.items() if body != "run(main)"}
    assert found.keys() > {"train", "doctor", "seeds"}
    assert others <= {"install", "resolve", "references", "timers"}


def test_closed_streams_do_not_lend_their_numbers(run_python, tmp_path):
    """Otherwise what a library writes to standard error would end in a file with data."""
    code = "\n".join(
        [
            "import os, sys",
            "from stages.core.errors import run",
            "def main():",
            "    with open('data', 'w') as data:",
            "        os.write(2, b'notice')",
            "        assert data.fileno() > 2",
            "run(main)",
        ]
    )
    shell = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", code]
    ended = run_python("-c", f"import subprocess, sys; sys.exit(subprocess.call({shell!r}))")
    assert ended.returncode == 0
    assert (tmp_path / "data").read_text() == ""
