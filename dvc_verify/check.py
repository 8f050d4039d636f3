"""Check one commit: clone it, run its stages as often as needed, and give the verdicts."""

import csv
from argparse import Namespace
from collections.abc import Set
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.compare import Difference, Limits, compare_outputs, find_version
from dvc_verify.contents import Contents, complete_clone, prepare
from dvc_verify.git import ask_git, clone_commit, find_last_commit
from dvc_verify.lockfile import IDENTICAL, LINE_ENDS, Recorded, hash_tree, match
from dvc_verify.machine import (
    collect_fingerprint,
    compare_machines,
    read_fingerprint,
    read_pins,
)
from dvc_verify.packages import find_changed_packages
from dvc_verify.project import Stage, clone_project, read_settings
from dvc_verify.report import clean, say
from dvc_verify.run import FACTORS, Run, run_stages
from dvc_verify.stale import find_stale

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

    def describe(self) -> dict[str, Any]:
        """Return what the report says of the stage."""
        lines = [
            f"{output.path} differs{': ' if output.notes else ''}{'; '.join(output.notes)}"
            for output in self.outputs
            if output.verdict not in (IDENTICAL, LINE_ENDS)
        ]
        if ends := [output.path for output in self.outputs if output.verdict == LINE_ENDS]:
            lines.append(f"recorded with other line ends, as on Windows: {', '.join(ends[:5])}")
        level = "error" if self.verdict in WRONG else "warning"
        return {
            "stage": self.stage,
            "verdict": self.verdict,
            "outputs": sorted(each.path for each in self.outputs if each.verdict != IDENTICAL),
            "notes": [clean(line) for line in (*lines, *self.notes)],
            "files": [vars(output) for output in self.outputs],
            "level": "" if self.verdict in (IDENTICAL, LINE_ENDS) else level,
        }

    def worsen(self, verdict: str, *notes: str) -> None:
        """Lower the verdict to `verdict` unless it is already as low, and add notes."""
        self.verdict = max(self.verdict, verdict, key=VERDICTS.index)
        self.notes += notes


class Check:
    """One check of a commit. Everything is in a temporary folder."""

    def __init__(self, workspace: Path, folder: Path, options: Namespace) -> None:
        """Clone the last commit, read its project, and find the order of the stages."""
        self.workspace, self.folder, self.options = workspace, folder, options
        self.commit = find_last_commit(workspace)
        self.project = clone_project(self.commit, folder / "committed", workspace)
        self.project.sort()
        self.committed = self.project.folder
        self.inside = self.committed.relative_to(folder / "committed")  # a project in a subfolder
        self.settings, self.pins = read_settings(self.committed), read_pins(self.committed)
        self.stale = find_stale(self.project)
        self.contents = Contents(workspace, options.network, folder / "contents")
        self.notes = dict.fromkeys(self.project.problems)  # for the report
        self.recorded: dict[str, Any] | None = None  # the machine that recorded dvc.lock
        try:
            self.recorded = read_fingerprint(self.committed)
        except VerifyError as error:
            self.notes[str(error)] = None
        self.obstacles: dict[str, str] = {}  # why stages cannot run
        self.runs = 0

    def verify(self) -> list[Finding]:
        """Run the stages, more than once if something differs, and give the verdicts."""
        perturb = self.options.perturb
        first = self._run(set(FACTORS) if perturb else set())
        findings = self._judge(first)
        again = {
            each.stage
            for each in findings
            if each.stage in first.stages and not first.stages[each.stage].problem
            and (self.options.twice or any(output.verdict in WRONG for output in each.outputs))
        }  # fmt: skip
        if again:
            say(f"\nRunning {', '.join(again)} again: does it give the same here?")
            second = self._run(set() if perturb else {"path"}, again)
            findings = self._judge(first, second)
            random = [each for each in findings if each.verdict == RANDOM]
            if perturb and random:
                factors = self._find_factors(second, random[0])
                random[0].notes.append(f"it changes with: {', '.join(factors)}")
        return findings

    def _run(self, factors: Set[str], only: Set[str] | None = None) -> Run:
        """Run the stages, or `only` these and what they need, in a clone of their own."""
        options, stages = self.options, self.project.stages
        place = self.folder / ("elsewhere/in_another_folder" if "path" in factors else "work")
        clone = clone_commit(self.commit, place / "clone", self.workspace)
        (clone / ".dvc").mkdir(exist_ok=True)
        config = "[core]\nautostage = true\ncheck_update = false\n[cache]\ndir = cache\n"
        (clone / ".dvc/config.local").write_text(config, encoding="utf-8")
        top = self.workspace.joinpath(*[".."] * len(self.inside.parts)).resolve()
        self.notes |= dict.fromkeys(complete_clone(place / "clone", top))
        some: dict[str, Any] = {"hidden": self.settings.hidden, "limit": options.time_limit}
        keep = {*self.settings.keep, *options.keep}
        for name in keep & stages.keys():
            if not all(self.contents.restore(out, clone) for out in stages[name].outs):
                run_stages(clone, [stages[name]], network=True, **some)
        self.obstacles = prepare(self.project, clone, self.contents, keep, options.network)
        names = set(stages if only is None else only)
        names |= {needed.name for name in names for needed in stages[name].list_needed()}
        chosen = [stage for name, stage in stages.items() if name in names - self.obstacles.keys()]
        some |= {"network": options.network, "command": options.command}
        run = run_stages(clone, chosen, factors=factors, **some)
        self.notes |= dict.fromkeys(run.notes)
        # DVC itself changes some files.
        mine = tuple(out.path for stage in stages.values() for out in stage.outs)
        listed = ask_git("diff", "--name-only", "--relative", cwd=clone).splitlines()
        changed = [p for p in listed if not p.endswith(("dvc.lock", ".gitignore"))]
        if changed := [path for path in changed if not path.startswith(mine)]:
            self.notes[f"the run changed files of the commit: {', '.join(changed[:5])}"] = None
        self.runs += 1
        place.rename(self.folder / f"run{self.runs}")
        run.folder = self.folder / f"run{self.runs}" / "clone" / self.inside
        self.contents.places.append(run.folder)
        return run

    def _judge(self, first: Run, second: Run | None = None) -> list[Finding]:
        """Return a finding for each stage of a run. `second` is another run of some of them."""
        findings: dict[str, Finding] = {}
        for name, stage in self.project.stages.items():
            finding = findings[name] = Finding(name)
            if reason := self._find_reason(stage, first, findings):
                finding.worsen(NOT_RUN, reason)
                continue
            again = second if second and name in second.stages else None
            for out in stage.outs:
                finding.outputs.append(self._judge_output(out, first, again))
                finding.worsen(finding.outputs[-1].verdict)
            if (
                first.stages[name].attempts
                and finding.verdict in WRONG
                and not self.options.network
            ):
                reason = "it needs the network, which was cut off; --network allows it"
                findings[name] = Finding(name, NOT_RUN, notes=[reason])
                continue
            if stage.recorded is None:
                finding.worsen(NOT_COMPARABLE, f"{stage.lock} does not have this stage")
            elif notes := self.stale.get(name):
                finding.worsen(DIFFERENT, *notes)
            needed = {each.name for each in stage.list_needed()}
            wrong = [n for n, each in findings.items() if n in needed and each.verdict in WRONG]
            if finding.verdict in (REPEATS, RANDOM) and wrong:
                finding.notes.append(f"its inputs differ, from {wrong[0]} on")
            for out in stage.outs:
                new = first.folder / out.path
                if out.path == self.settings.trace and not match(first.folder, new, out):
                    old = self.contents.find(out, self.committed)
                    finding.notes.append(find_departure(old, new))
        retired = self.project.retired.items()
        lines = {name: f"stale: only {lock} has this stage" for name, lock in retired}
        stale = [Finding(name, NOT_RUN, notes=[line]) for name, line in lines.items()]
        return [*findings.values(), *stale]

    def _find_reason(self, stage: Stage, run: Run, findings: dict[str, Finding]) -> str:
        """Return why a stage was not run, or ""."""
        if stage.name in self.obstacles:
            return self.obstacles[stage.name]
        for each in stage.needs:
            found = findings.get(each.name)
            if found and found.verdict == NOT_RUN and each.name not in self.obstacles:
                return f"its input from {each.name} is missing"
        ran = run.stages[stage.name]
        if ran.problem and ran.attempts and not self.options.network:
            return f"{ran.problem}; it tried to reach the network: --network allows it"
        return ran.problem

    def _judge_output(self, recorded: Recorded, first: Run, second: Run | None) -> Output:
        """Compare an output with the recorded one, and with the output of a second run."""
        output, place = Output(recorded.path), first.folder / recorded.path
        patterns = self.settings.tolerances.items()
        limits: Limits = next((v for pattern, v in patterns if fnmatch(recorded.path, pattern)), {})
        found = Difference(False, [])
        if not recorded.md5:
            output.verdict, output.notes = NOT_COMPARABLE, ["dvc.lock has no MD5 of it"]
        elif matched := match(first.folder, place, recorded):
            output.verdict = matched
        else:
            old = self.contents.find(recorded, self.committed)
            if old:
                found = compare_outputs(old, place, limits, ("", first.place))
            else:
                found.notes.append("the recorded content is neither in git nor in DVC's cache")
            output.verdict = EQUIVALENT if found.equivalent else REPEATS if second else DIFFERENT
            output.notes = [*found.notes, found.cause]
            if not found.equivalent and not found.cause:
                libraries = (self.recorded or {}).get("libraries", {})
                versions = {each.get("scikit-learn", "") for each in (libraries, self.pins)} - {""}
                output.notes.append(find_version(place, old, recorded.md5, versions))
        other = second.folder / recorded.path if second else place
        if second and hash_tree(first.folder, place) != hash_tree(second.folder, other):
            again = compare_outputs(place, other, limits, (first.place, second.place))
            if not again.equivalent:
                output.verdict = RANDOM
                output.notes = [*found.notes, again.cause or "two runs here differ: no seed?"]
            elif again.cause not in output.notes:
                output.notes.append(again.cause)
        output.notes = [note for note in output.notes if note]
        return output

    def _find_factors(self, reference: Run, finding: Finding) -> list[str]:
        """Return which of FACTORS change the outputs of a stage, by running it with each."""

        def changes(factors: Set[str]) -> bool:
            say(f"\nRunning {finding.stage} again; changed: {', '.join(factors) or 'nothing'}")
            folders = reference.folder, self._run(factors, {finding.stage}).folder
            hashes = [[hash_tree(f, f / out.path) for out in finding.outputs] for f in folders]
            return hashes[0] != hashes[1]

        if changes(set()):
            return ["every run"]
        return [each for each in FACTORS if changes({each})] or ["several of them together"]

    def report(self, findings: list[Finding]) -> dict[str, Any]:
        """Return the whole result as a mapping that JSON can hold."""
        verdict = self._summarise(findings)
        if ask_git("status", "--porcelain", "-uno", "--", ".", cwd=self.workspace):
            self.notes["the workspace has changes, which are not part of the commit"] = None
        packages = find_changed_packages() if verdict == "different" else {}
        for package, note in packages.items():
            self.notes[f"the files of {package} are not those that were installed: {note}"] = None
        here = collect_fingerprint(self.settings.libraries or self.pins)
        departed = (f.stage for f in findings if f.verdict in (EQUIVALENT, *WRONG))
        return {
            "verdict": verdict,
            "commit": self.commit,
            "perturbed": self.options.perturb,
            "notes": list(self.notes),
            "environment": compare_machines(here, self.recorded, self.pins),
            "first_divergence": next(departed, None),
            "stages": [finding.describe() for finding in findings],
        }

    def _summarise(self, findings: list[Finding]) -> str:
        """Return the verdict on the whole project. What was kept or is retired does not count."""
        verdicts = {
            each.verdict
            for each in findings
            if each.stage not in self.project.retired
            and not self.obstacles.get(each.stage, "").startswith("kept:")
        }
        if verdicts & set(WRONG):
            return "different"
        if verdicts <= {NOT_RUN, NOT_COMPARABLE}:
            return "not checked"
        if verdicts & {NOT_RUN, NOT_COMPARABLE} or self.project.problems:
            return "partly checked"
        return max(verdicts, key=VERDICTS.index)


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
