"""Give each output and each stage a verdict, and name the cause of a difference."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path

from dvc_verify.compare import Difference, Limits, compare_outputs
from dvc_verify.contents import Contents
from dvc_verify.lockfile import IDENTICAL, LINE_ENDS, Recorded, hash_tree, match
from dvc_verify.project import Project, Stage
from dvc_verify.run import Run
from dvc_verify.versions import find_version

EQUIVALENT = "equivalent"
NOT_COMPARABLE = "not comparable"
NOT_RUN = "not run"
DIFFERENT = "different"  # dvc.lock is out of date
REPEATS = "repeats here but not as recorded"
RANDOM = "not deterministic"
# From the best to the worst. A stage has the worst verdict of its outputs.
VERDICTS = (IDENTICAL, LINE_ENDS, EQUIVALENT, NOT_COMPARABLE, NOT_RUN, DIFFERENT, REPEATS, RANDOM)
WRONG = (DIFFERENT, REPEATS, RANDOM)


@dataclass
class Output:
    """The verdict on one output."""

    path: str
    verdict: str = IDENTICAL
    notes: list[str] = field(default_factory=list)


@dataclass
class Finding:
    """The verdict on one stage, and the reasons for it."""

    stage: str
    verdict: str = IDENTICAL
    outputs: list[Output] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def worsen(self, verdict: str, *notes: str) -> None:
        """Lower the verdict to `verdict` unless it is already as low, and add notes."""
        self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        self.notes += notes


@dataclass
class Judge:
    """What the verdicts are based on."""

    project: Project  # a checkout of the commit, in which nothing ran
    contents: Contents
    tolerances: Mapping[str, Limits]
    stale: Mapping[str, list[str]]
    obstacles: Mapping[str, str]  # why stages were not run
    versions: Mapping[str, set[str]]  # of packages, that may have been used for the recording
    network: bool
    trace: str = ""  # an output that tells where a training departs

    def judge_all(self, first: Run, second: Run | None = None) -> list[Finding]:
        """Return a finding for each stage of a run. `second` is another run of some of them."""
        findings: dict[str, Finding] = {}
        for name, stage in self.project.stages.items():
            finding = findings[name] = Finding(name)
            if reason := self._find_reason(stage, first, findings):
                finding.worsen(NOT_RUN, reason)
                continue
            again = second if second and name in second.stages else None
            finding.outputs = [
                self._judge_output(path, recorded, first, again)
                for path, recorded in stage.outs.items()
            ]
            for output in finding.outputs:
                finding.worsen(output.verdict)
            if first.stages[name].attempts and finding.verdict in WRONG and not self.network:
                finding.verdict = NOT_RUN
                finding.outputs = []
                finding.notes = ["it needs the network, which was cut off; --network allows it"]
                continue
            if stage.recorded is None:
                finding.worsen(NOT_COMPARABLE, f"{stage.lock} does not have this stage")
            else:
                for note in self.stale.get(name, []):
                    finding.worsen(DIFFERENT, note)
            needed = {each.name for each in stage.list_needed()}
            wrong = [n for n, each in findings.items() if n in needed and each.verdict in WRONG]
            if finding.verdict in (REPEATS, RANDOM) and wrong:
                finding.notes.append(f"its inputs differ, from {wrong[0]} on")
            recorded = stage.outs.get(self.trace)
            if recorded and not match(first.folder, first.folder / self.trace, recorded):
                old = self.contents.find(self.trace, recorded, self.project.folder)
                finding.notes.append(find_departure(old, first.folder / self.trace))
        for name, lock in self.project.retired.items():
            findings[name] = Finding(name, NOT_RUN, notes=[f"stale: only {lock} has this stage"])
        return list(findings.values())

    def _find_reason(self, stage: Stage, run: Run, findings: Mapping[str, Finding]) -> str:
        """Return why a stage was not run, or ""."""
        if stage.name in self.obstacles:
            return self.obstacles[stage.name]
        lost = [n.name for n in stage.needs if n.commands and n.name not in self.obstacles]
        if lost := [name for name in lost if findings[name].verdict == NOT_RUN]:
            return f"its input from {lost[0]} is missing"
        ran = run.stages[stage.name]
        last = next(reversed(ran.log), "")
        reason = ran.problem + (f": {last}" if ran.problem and last not in ran.problem else "")
        if reason and ran.attempts and not self.network:
            reason += "; it tried to reach the network: --network allows it"
        return reason

    def _judge_output(
        self, path: str, recorded: Recorded | None, first: Run, second: Run | None
    ) -> Output:
        """Compare an output with the recorded one, and with the output of a second run."""
        output, place = Output(path), first.folder / path
        limits = next((v for pattern, v in self.tolerances.items() if fnmatch(path, pattern)), {})
        found = Difference(False, [])
        if recorded is None or not recorded.md5:
            output.verdict, output.notes = NOT_COMPARABLE, ["dvc.lock has no MD5 of it"]
        elif matched := match(first.folder, place, recorded):
            output.verdict = matched
        else:
            old = self.contents.find(path, recorded, self.project.folder)
            if old:
                found = compare_outputs(old, place, limits, ("", first.place))
            else:
                found.notes.append("the recorded content is neither in git nor in DVC's cache")
            output.verdict = EQUIVALENT if found.equivalent else REPEATS if second else DIFFERENT
            output.notes = [*found.notes, found.cause]
            if not found.equivalent and not found.cause:
                output.notes.append(find_version(place, old, recorded.md5, self.versions))
        if second and hash_tree(first.folder, place) != hash_tree(
            second.folder, second.folder / path
        ):
            places = (first.place, second.place)
            again = compare_outputs(place, second.folder / path, limits, places)
            if not again.equivalent:
                output.verdict = RANDOM
                output.notes = [*found.notes, again.cause or "two runs here differ: no seed?"]
            elif again.cause not in output.notes:
                output.notes.append(again.cause)
        output.notes = [note for note in output.notes if note]
        return output


def find_departure(recorded: Path | None, found: Path) -> str:
    """Return the first row that differs between two tables whose last column is a hash."""
    if recorded is None:
        return "the recorded trace is neither in git nor in DVC's cache"
    old, new = (
        list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        for path in (recorded, found)
    )
    for number, (theirs, ours) in enumerate(zip_longest(old, new), 1):
        if ours != theirs:
            pairs = zip(old[0][:-1], theirs or ours or [], strict=False)
            names = ", ".join(f"{name} {value}" for name, value in pairs)
            return f"it departs at {names} (row {number} of {found.name})"
    return ""
