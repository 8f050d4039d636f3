"""Decide which experiments a sweep needs, and which of them have run before."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo.experiments.utils import gen_random_name
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hydra.errors import HydraException

from dvc_verify.git import ask_git, find_last_commit, is_shallow
from dvc_verify.lockfile import flatten
from stages.core.errors import StageError
from stages.core.files import write_text
from stages.core.paths import LOCK, PARAMETERS
from stages.core.settings import Section, read_yaml
from stages.download import DownloadParameters
from stages.sources.folder import expand
from stages.sources.parts import is_visible
from tools.recipe import check, find_sections
from tools.shared.revision import (
    SEEDS,
    Result,
    differs_from,
    list_experiments,
    open_files,
    read_commit,
)


@dataclass(frozen=True)
class Run:
    """One experiment."""

    overrides: tuple[str, ...]  # as `dvc exp run` gets them after -S
    text: str  # of its params.yaml, as `dvc exp run` would write it
    label: str  # names the run in messages
    name: str | None = None  # of the experiment; None: one of DVC's random names


@dataclass(frozen=True)
class Combination:
    """Values of parameters, and its runs: one for each seed, or a single one."""

    overrides: tuple[str, ...]
    parameters: Mapping[str, Any]  # by dotted key, without the seeds of its runs
    runs: tuple[Run, ...]


def require_commit() -> str:
    """Return the last commit, which the experiments belong to.

    Raises StageError if the workspace differs from it, or if the clone is shallow.
    """
    if differs_from(commit := find_last_commit()):
        raise StageError(
            "the workspace differs from the last commit, and experiments belong to a commit: "
            "commit your changes, or set them aside with `git stash`"
        )
    if is_shallow():
        raise StageError(
            "this clone is shallow, and workers need the whole history: git fetch --unshallow"
        )
    return commit


def check_dataset(parameters: DownloadParameters) -> None:
    """Raise StageError unless every clone of the last commit finds the custom dataset.

    Nothing is checked if the dataset lies outside the project or is not a custom one.
    """
    if parameters.dataset != "custom" or parameters.folder is None:
        return
    folder = expand(parameters.folder)
    if folder.is_absolute():
        return  # the same in every clone on this machine
    named = f"download.folder is {parameters.folder!r}"
    if ".." in folder.parts:
        raise StageError(
            f"{named}, which a clone in another place does not find; use an absolute path, or a "
            "folder of the project"
        )
    files, place = open_files("HEAD", folder)
    tracked = {Path(path).relative_to(place) for path in files.find(place)}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    missing = [path for path in found if is_visible(path.name) and path not in tracked]
    if missing or not tracked:
        example = f", such as {folder / min(missing)}" if missing else ""
        raise StageError(
            f"{named}: the last commit has {len(tracked)} files of it in git and DVC, and lacks "
            f"{len(missing) or 'all'}{example}, so no clone has them; add them with `git add`, or "
            "with `dvc add` if they are large, and commit"
        )


def expand_grid(settings: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every combination of the values in `settings`, written as DVC's -S takes them.

    Raises StageError if one of them does not have DVC's syntax.
    """
    if not settings:
        return []
    try:
        sweeps = get_hydra_sweeps({str(PARAMETERS): list(settings)})
    except HydraException as error:
        raise StageError(f"-S: {' '.join(str(error).split())}") from error
    return [tuple(sweep[str(PARAMETERS)]) for sweep in sweeps]


def change_parameters(
    overrides: Sequence[str], sections: Mapping[str, type[Section] | None]
) -> tuple[str, dict[str, Any]]:
    """Return params.yaml with some values changed: its text as DVC writes it, and its content.

    `sections` are those that it must have. Raises StageError if the parameters do not allow the
    values.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMETERS
        write_text(path, PARAMETERS.read_text(encoding="utf-8"))
        try:
            if overrides:
                apply_overrides(path, list(overrides))
        except DvcException as error:
            raise StageError(" ".join(str(error.__cause__ or error).split())) from error
        text, content = path.read_text(encoding="utf-8"), read_yaml(path)
    check(content, sections)
    return text, content


def make_combinations(
    grid: Sequence[tuple[str, ...]],
    seeds: Sequence[int],
    base: tuple[str, ...] = (),
    seed_keys: Sequence[str] = SEEDS,
    name: Callable[[tuple[str, ...], int], str | None] = lambda *_: None,
) -> list[Combination]:
    """Return the combinations with their runs. Those with the same parameters are joined.

    `base` is set in every run. Without seeds, a combination is run once, under a random name.
    `name` returns the experiment's name for a combination and a seed, or None for a random one.
    Raises StageError, which names every combination that the parameters do not allow.
    """
    found: dict[str, Combination] = {}
    refused, sections = [], find_sections()
    for overrides in grid:
        label = ", ".join(overrides) or "the committed parameters"
        try:
            for override in overrides:
                if seeds and override.startswith(tuple(seed_keys)):
                    raise StageError(f"{override} contradicts the seeds")
            whole = (*base, *overrides)
            text, content = change_parameters(whole, sections)
            check_dataset(DownloadParameters.check(content["download"]))
            runs = [] if seeds else [Run(whole, text, label)]
            for seed in seeds:
                seeded = (*whole, *(f"{key}={seed}" for key in seed_keys))
                text, _ = change_parameters(seeded, sections)
                runs.append(Run(seeded, text, f"{label}, seed {seed}", name(overrides, seed)))
        except StageError as error:
            refused.append(f"{label}: {str(error).removeprefix(f'{PARAMETERS}: ')}")
            continue
        parameters = flatten(content)
        found.setdefault(repr(parameters), Combination(overrides, parameters, tuple(runs)))
    if refused:
        raise StageError(
            f"{len(refused)} of {len(grid)} combinations are not allowed: {'; '.join(refused)}"
        )
    return list(found.values())


def find_finished(commit: str, runs: Iterable[Run]) -> dict[str, Result]:
    """Return the results that the last commit or its experiments already have, by Run.text.

    An experiment counts if it has the code of the commit and if all its results belong to its
    parameters. A run with a name needs an experiment with that name.
    """
    wanted = {run.text.strip(): run for run in runs}
    finished: dict[str, Result] = {}
    may_differ = [f":(exclude){path}" for path in (PARAMETERS, LOCK, "data")]
    for name, candidate in {"HEAD": commit, **list_experiments(commit)}.items():
        run = wanted.get(ask_git("show", f"{candidate}:./{PARAMETERS}"))
        if run is None or run.text in finished or run.name not in (None, name):
            continue
        if ask_git("diff", "--name-only", commit, candidate, "--", ".", *may_differ):
            continue
        try:
            result = read_commit(name, candidate)
        except StageError:
            continue
        if not result.stale:
            finished[run.text] = result
    return finished


def name_experiments(commit: str, runs: Iterable[Run]) -> list[Run]:
    """Return the runs, each with a name: its own, or one of the names that DVC makes up.

    Raises StageError if an experiment of the commit has one of these names.
    """
    taken = set(list_experiments(commit))
    named = []
    for run in runs:
        name = run.name or next(each for each in iter(gen_random_name, "") if each not in taken)
        if name in taken:
            raise StageError(
                f"the experiment {name} exists and was run with other parameters or other code; "
                f"remove it with `dvc exp remove {name}`"
            )
        taken.add(name)
        named.append(replace(run, name=name))
    return named
