"""Check one commit: clone it, run its stages as often as needed, and give the verdicts."""

from argparse import Namespace
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.contents import Contents, restore_pointers, restore_submodules
from dvc_verify.git import ask_git, clone_commit
from dvc_verify.judge import NOT_COMPARABLE, NOT_RUN, RANDOM, VERDICTS, WRONG, Finding, Judge
from dvc_verify.lockfile import hash_tree
from dvc_verify.look import prepare
from dvc_verify.machine import read_fingerprint, read_pins
from dvc_verify.project import read_project
from dvc_verify.run import FACTORS, Run, run_stages
from dvc_verify.settings import Settings
from dvc_verify.stale import find_stale


class Check:
    """One check of a commit. Everything is in a temporary folder."""

    def __init__(self, workspace: Path, commit: str, folder: Path, options: Namespace) -> None:
        """Clone the commit and read the project. Raises VerifyError if it has no stages."""
        self.workspace, self.commit, self.folder, self.options = workspace, commit, folder, options
        self.committed = clone_commit(commit, folder / "committed", workspace)
        self.settings = Settings.read(self.committed)
        self.project = read_project(self.committed)
        if not self.project.stages:
            problem = self.project.problems or ["no dvc.yaml in the last commit has stages"]
            raise VerifyError(f"{workspace}: {problem[0]}")
        self.contents = Contents(workspace, options.network, folder / "contents")
        self.notes = dict.fromkeys(self.project.problems)  # for the report
        self.pins = read_pins(self.committed)
        self.recorded: dict[str, Any] | None = None  # the machine that recorded dvc.lock
        try:
            self.recorded = read_fingerprint(self.committed)
        except VerifyError as error:
            self.notes[str(error)] = None
        self.obstacles: dict[str, str] = {}
        self.runs = 0

    def run(self, factors: Set[str] = frozenset(), only: Set[str] | None = None) -> Run:
        """Run the stages, or `only` these and what they need, in a clone of their own."""
        options, settings = self.options, self.settings
        place = self.folder / ("elsewhere/in_another_folder" if "path" in factors else "work")
        clone = clone_commit(self.commit, place / "clone", self.workspace)
        inside = clone.relative_to(place)
        top = self.workspace.parents[len(inside.parts) - 2] if inside.parts[1:] else self.workspace
        for path in restore_submodules(place / "clone", top):
            self.notes[f"the submodule {path} is not here: git submodule update --init"] = None
        for path in restore_pointers(place / "clone", top):
            self.notes[f"{path} is only a Git LFS pointer here: git lfs pull"] = None
        project = read_project(clone)
        start = partial(run_stages, project, hidden=settings.hidden, limit=options.time_limit)
        keep = {*settings.keep, *options.keep}
        for name in keep & project.stages.keys():
            files = project.stages[name].outs.items()
            if not all(file and self.contents.restore(path, file, clone) for path, file in files):
                start([project.stages[name]], network=True)
        self.obstacles = prepare(project, self.contents, keep, options.network)
        names = set(project.stages)
        if only is not None:
            needed = [n.name for name in only for n in project.stages[name].list_needed()]
            names = {*only, *needed}
        chosen = [s for n, s in project.stages.items() if n in names and n not in self.obstacles]
        run = start(chosen, factors=factors, network=options.network, command=options.command)
        self.notes |= dict.fromkeys(run.notes)
        self._note_changes(clone, [path for each in project.stages.values() for path in each.outs])
        self.runs += 1
        place.rename(self.folder / f"run{self.runs}")
        run.folder = self.folder / f"run{self.runs}" / inside
        self.contents.places.append(run.folder)
        return run

    def _note_changes(self, clone: Path, outs: list[str]) -> None:
        """Note which files of the commit a run has changed, apart from what DVC changes."""
        changed = ask_git("diff", "--name-only", "--relative", cwd=clone).splitlines()
        mine = ("dvc.lock", ".gitignore")
        changed = [p for p in changed if not p.endswith(mine) and not p.startswith(tuple(outs))]
        if changed:
            self.notes[f"the run changed files of the commit: {', '.join(changed[:5])}"] = None

    def judge(self) -> list[Finding]:
        """Run the stages, more than once if something differs, and give the verdicts."""
        perturb, known = self.options.perturb, (self.recorded or {}).get("libraries", {})
        first = self.run(set(FACTORS) if perturb else set())
        versions = {n: {v, known.get(n, v)} for n, v in (known | self.pins).items()}
        judge = Judge(
            self.project, self.contents, self.settings.tolerances, find_stale(self.project),
            self.obstacles, versions, self.options.network, self.settings.trace,
        )  # fmt: skip
        findings = judge.judge_all(first)
        again = {
            each.stage
            for each in findings
            if each.stage in first.stages and not first.stages[each.stage].problem
            and (self.options.twice or any(output.verdict in WRONG for output in each.outputs))
        }  # fmt: skip
        if again:
            print(f"\nRunning {', '.join(again)} again: does it give the same here?", flush=True)
            second = self.run(set() if perturb else {"path"}, again)
            findings = judge.judge_all(first, second)
            random = [each for each in findings if each.verdict == RANDOM]
            if perturb and random:
                factors = self._find_factors(second, random[0])
                random[0].notes.append(f"it changes with: {', '.join(factors)}")
        return findings

    def _find_factors(self, reference: Run, finding: Finding) -> list[str]:
        """Return which of FACTORS change the outputs of a stage, by running it again."""

        def changes(factors: Sequence[str]) -> bool:
            print(f"\nRunning {finding.stage} again; changed: {', '.join(factors) or 'nothing'}")
            run = self.run(set(factors), {finding.stage})
            found, other = (
                [hash_tree(each.folder, each.folder / output.path) for output in finding.outputs]
                for each in (run, reference)
            )
            return found != other

        def search(factors: Sequence[str]) -> list[str]:
            """Return those that matter, if at least one does."""
            if len(factors) == 1:
                return list(factors)
            first, second = factors[: len(factors) // 2], factors[len(factors) // 2 :]
            if not changes(first):
                return search(second)
            return search(first) + (search(second) if changes(second) else [])

        return ["every run"] if changes(()) else search(list(FACTORS))

    def summarise(self, findings: list[Finding]) -> str:
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
