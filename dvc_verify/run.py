"""Run stages of a project in a clone, in a changed environment if asked."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from dvc_verify.contents import make_path
from dvc_verify.git import ask_git
from dvc_verify.lockfile import LOCK, read_lock
from dvc_verify.project import Stage, name_stage
from dvc_verify.terminal import say

HIDDEN = ("GIT_", "PYTHON", "DVC_")  # variables with these prefixes do not reach the stages

# What --perturb changes, none of which may affect a result, and the variables for that. "machine"
# also changes cores, host name and umask; see runner.py.
FACTORS: dict[str, dict[str, str]] = {
    "path": {},
    "clock": {},
    "hash seed": {"PYTHONHASHSEED": "20011"},
    "time zone": {"TZ": "XYZ-14"},
    "locale": {
        **dict.fromkeys(("LC_ALL", "LANG"), "C"),
        **dict.fromkeys(("PYTHONUTF8", "PYTHONCOERCECLOCALE"), "0"),
        "LANGUAGE": "xx",
        "COLUMNS": "43",
    },
    "user and home": dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "somebody"),
    "machine": {"PYTHON_CPU_COUNT": "1"},
}
HOME = {  # settings of libraries that a home folder may hold
    ".keras/keras.json": '{"floatx": "float64", "epsilon": 0.001}\n',
    ".config/matplotlib/matplotlibrc": "font.size: 17\nsavefig.dpi: 37\n",
}


class Ran(NamedTuple):
    """How a stage ended in one run."""

    problem: str = ""  # why it failed
    attempts: int = 0  # to reach another machine
    last: str = ""  # the last line that it printed


@dataclass
class Run:
    """One run of some stages."""

    folder: Path  # the project in the clone
    place: str  # its path when the stages ran
    stages: dict[str, Ran] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be done as asked


def make_environment(project: Path, factors: Set[str], hidden: Sequence[str]) -> dict[str, str]:
    """Return the variables for the stages: without those of git, of other Pythons and `hidden`."""
    folder = project.parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith(HIDDEN) and k not in hidden}
    kept |= {"PATH": make_path(), "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
    for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR"):
        kept[f"DVC_{name}"] = str(folder / "dvc")
    for factor in factors:
        kept |= FACTORS[factor]
    if "user and home" in factors:
        home = folder / "home"
        for name, text in HOME.items():
            (home / name).parent.mkdir(parents=True)
            (home / name).write_text(text, encoding="utf-8")
        kept |= {"HOME": str(home), "XDG_CONFIG_HOME": f"{home}/.config", "TMPDIR": str(home)}
    if "clock" in factors:
        kept |= move_clock(int(ask_git("log", "-1", "--format=%ct", cwd=project) or 0))
    return kept


def move_clock(recorded: int) -> dict[str, str]:
    """Return the variables that move the clock, or nothing if libfaketime is not installed.

    `recorded` is the time of the commit, in seconds since 1970.
    """
    try:
        import libfaketime
    except ImportError:
        return {}
    _, preload = libfaketime.get_reload_information()
    offset = choose_offset(datetime.now(UTC), datetime.fromtimestamp(recorded, UTC))
    return {"FAKETIME": f"+{int(offset.total_seconds())}", **preload}


def choose_offset(now: datetime, recorded: datetime) -> timedelta:
    """Return by how much to move the clock so that every field of the time changes.

    The fields are year, month, day, week, weekday, hour (also on a clock face), minute and second,
    in UTC, in the local time zone and in the time zone of FACTORS. Each differs from the same field
    now and at the time of the recording, also a few minutes earlier and later.
    """
    zones = (UTC, datetime.now().astimezone().tzinfo, timezone(timedelta(hours=14)))
    minutes = [timedelta(minutes=count) for count in (0, 4, 8)]

    def list_fields(moment: datetime) -> set[tuple[int, str, str]]:
        times = [moment.astimezone(zone) for zone in zones]
        return {(i, f, t.strftime(f"%{f}")) for i, t in enumerate(times) for f in "YmdVuIMS"}

    before = set[tuple[int, str, str]]().union(
        *(list_fields(t - more) for t in (now, recorded) for more in minutes)
    )
    offset = timedelta(days=400, hours=4, minutes=23, seconds=17)
    while any(before & list_fields(now + offset + more) for more in minutes):
        offset += timedelta(days=1, hours=1, minutes=1, seconds=1)
    return offset


def run_stages(
    folder: Path,
    stages: Sequence[Stage],
    *,
    factors: Set[str] = frozenset(),
    network: bool = False,
    command: str = "",
    hidden: Sequence[str] = (),
    limit: float | None = None,
) -> Run:
    """Run stages in a clone of the project, in this order, and return how each ended.

    `command` runs instead, if it is given. After `limit` seconds everything is killed.
    """
    # A run writes dvc.lock again. So its entries are those of stages that ran to the end.
    for lock in folder.rglob(LOCK):
        lock.unlink()
    names = [each.name for each in stages]
    mark = f"{secrets.token_hex(8)} "
    job = {
        "stages": [(s.name, [n.name for n in s.needs if n.name in names]) for s in stages],
        "mark": mark,
        "command": command,
        "network": network,
        "perturb": "machine" in factors,
    }
    run = Run(folder, str(folder))
    environment = make_environment(folder, factors, hidden)
    if "clock" in factors and "FAKETIME" not in environment:
        run.notes.append("the clock was not moved: install libfaketime")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("runner.py")), json.dumps(job)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    timer = Timer(limit or 0, os.killpg, (process.pid, signal.SIGKILL))
    if limit:
        timer.start()
    last = ""
    assert process.stdout
    try:
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            if text.startswith(mark):
                name, problem, attempts = json.loads(text.removeprefix(mark))
                if name:
                    run.stages[name] = Ran(problem, attempts, last)
                else:
                    run.notes.append(problem)
                last = ""
            elif text:
                last = text.strip()
                say(text)
        process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    reason = f"the run ended with status {process.returncode}: {last}"
    if process.returncode == -signal.SIGKILL and limit:
        reason = f"the time limit of {limit:g} s ended the run"
    # `command` does not report each stage.
    ended = {
        name_stage(graph, name)
        for graph in {each.graph for each in stages if command}
        if (folder / graph).with_name(LOCK).exists()
        for name in read_lock((folder / graph).parent)
    }
    for name in names:
        run.stages.setdefault(name, Ran("" if name in ended else reason))
    return run
