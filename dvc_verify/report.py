"""Show results: on the terminal, as Markdown and JSON, and as GitHub's annotations."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

REPORTS = Path("reports")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line. A closed pipe or a full disk never changes the exit code."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def clean(text: str) -> str:
    """Return a text in one line, in which names from outside cannot forge or colour anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def annotate(level: str, message: str) -> None:
    """Print an annotation that GitHub shows beside the change, if this runs there."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        say(f"::{level} file=dvc.lock,title=dvc-verify::{text}")


def format_report(report: dict[str, Any], whole: bool) -> str:
    """Return the report as Markdown. With `whole`, it lists all of the environment."""
    rows = [
        (name if old in (new, "not recorded") else f"{name} ≠", old, new)
        for name, old, new in report["environment"]
        if whole or old not in (new, "not recorded")
    ]
    stages, departed = report["stages"], report["first_divergence"]
    parts = [
        f"# {report['verdict']}: {report['commit'][:12]} compared with its dvc.lock",
        _format_table(("stage", "verdict"), [(e["stage"], e["verdict"]) for e in stages]),
        "\n".join(f"- {each['stage']}: {note}" for each in stages for note in each["notes"]),
        f"The first stage to diverge is **{departed}**." if departed else "",
        "\n".join(f"- {clean(note)}" for note in report["notes"]),
        _format_table(("environment", "recorded", "here"), rows) if rows else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    cells = [[clean(cell).replace("|", "\\|") for cell in row] for row in rows]
    return str(tabulate(cells, headers, tablefmt="pipe", disable_numparse=True))


def write_report(report: dict[str, Any], project: Path) -> None:
    """Write reports/verify.json and reports/verify.md in the project's folder, and print it."""
    (project / REPORTS).mkdir(exist_ok=True)
    text = json.dumps(report, indent=2, sort_keys=True) + "\n"
    (project / REPORTS / "verify.json").write_text(text, encoding="utf-8")
    text = format_report(report, whole=True)
    (project / REPORTS / "verify.md").write_text(text, encoding="utf-8", errors="replace")
    say(f"\n{format_report(report, whole=False)}")
    say(f"The report is also in {REPORTS}/verify.md and verify.json.")
    for stage in report["stages"]:
        if stage["level"]:
            notes = "; ".join(stage["notes"])
            annotate(stage["level"], f"{stage['stage']}: {stage['verdict']}: {notes}")
    say(report["verdict"])
