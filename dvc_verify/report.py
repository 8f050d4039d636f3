"""Write the report: on the terminal, as Markdown and JSON, and as GitHub's annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dvc_verify.check import EQUIVALENT, WRONG, Finding
from dvc_verify.lockfile import IDENTICAL, LINE_ENDS
from dvc_verify.terminal import annotate, clean, say

REPORTS = Path("reports")


def describe(finding: Finding) -> list[str]:
    """Return a line for each reason of a verdict."""
    lines = [
        f"{output.path} differs{': ' if output.notes else ''}{'; '.join(output.notes)}"
        for output in finding.outputs
        if output.verdict not in (IDENTICAL, LINE_ENDS)
    ]
    if ends := [output.path for output in finding.outputs if output.verdict == LINE_ENDS]:
        lines.append(f"recorded with other line ends, as on Windows: {', '.join(ends[:5])}")
    return [clean(line) for line in (*lines, *finding.notes)]


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
    cells = [[clean(cell).replace("|", "\\|") for cell in row] for row in rows]
    return str(tabulate(cells, headers, tablefmt="pipe", disable_numparse=True))


def write_report(findings: Sequence[Finding], more: dict[str, Any], project: Path) -> None:
    """Write reports/verify.json and reports/verify.md in the project's folder, and print it.

    `more` has what concerns no single stage: verdict, commit, perturbed, notes, environment.
    """
    departed = (each.stage for each in findings if each.verdict in (EQUIVALENT, *WRONG))
    stages: list[dict[str, Any]] = [
        {
            "stage": each.stage,
            "verdict": each.verdict,
            "outputs": sorted(o.path for o in each.outputs if o.verdict != IDENTICAL),
            "notes": describe(each),
            "files": [vars(output) for output in each.outputs],
        }
        for each in findings
    ]
    report = {**more, "first_divergence": next(departed, None), "stages": stages}
    (project / REPORTS).mkdir(exist_ok=True)
    text = json.dumps(report, indent=2, sort_keys=True) + "\n"
    (project / REPORTS / "verify.json").write_text(text, encoding="utf-8")
    text = format_report(report, whole=True)
    (project / REPORTS / "verify.md").write_text(text, encoding="utf-8", errors="replace")
    say(f"\n{format_report(report, whole=False)}")
    say(f"The report is also in {REPORTS}/verify.md and verify.json.")
    for stage, each in zip(stages, findings, strict=True):
        level = "error" if each.verdict in WRONG else "warning"
        if each.verdict not in (IDENTICAL, LINE_ENDS):
            annotate(level, f"{each.stage}: {each.verdict}: {'; '.join(stage['notes'])}")
    say(report["verdict"])
