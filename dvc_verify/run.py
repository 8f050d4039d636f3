"""Run stages of a project in a clone, in a changed environment if asked."""

import ctypes
import fcntl
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from threading import Timer

from dvc_verify import VerifyError
from dvc_verify.contents import make_path
from dvc_verify.git import ask_git
from dvc_verify.lockfile import LOCK, read_lock
from dvc_verify.project import Stage, name_stage
from dvc_verify.report import say

NOTE = "dvc-verify: "  # starts a line of the new process about what could not be done
HIDDEN = ("GIT_", "PYTHON", "DVC_")  # variables with these prefixes do not reach the stages

MOUNTS, NAMES, USER, NETWORK = 0x00020000, 0x04000000, 0x10000000, 0x40000000  # CLONE_NEW…
# What --perturb changes, none of which may affect a result, and the variables for that. `isolate`
# changes the machine: cores, host name and umask.
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


@dataclass
class Ran:
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
        with suppress(ImportError):
            import libfaketime

            committed = int(ask_git("log", "-1", "--format=%ct", cwd=project) or 0)
            offset = choose_offset(datetime.now(UTC), datetime.fromtimestamp(committed, UTC))
            kept |= libfaketime.get_reload_information()[1]
            kept["FAKETIME"] = f"+{int(offset.total_seconds())}"
    return kept


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


def isolate(network: bool, perturb: bool) -> None:
    """Cut this process off from the network unless `network`.

    With `perturb`, also give the machine another name and a single core. Raises OSError if the
    system does not allow it.
    """
    if perturb:
        os.umask(0o077)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    flags = (0 if network else NETWORK) | (NAMES | MOUNTS if perturb else 0)
    if not flags:
        return
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags | (USER if uid else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in maps.items() if uid else ():
        Path("/proc/self", name).write_text(text, encoding="ascii")
    if not network:  # the loopback interface is down in a new namespace
        with socket.socket() as control:
            fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up
    if perturb:
        socket.sethostname("elsewhere")
        with tempfile.NamedTemporaryFile("w") as one:
            one.write("0\n")
            one.flush()
            libc.mount(None, b"/", None, 0x44000, None)  # private: nothing outside changes
            for name in ("online", "possible"):
                place = f"/sys/devices/system/cpu/{name}".encode()
                libc.mount(one.name.encode(), place, None, 0x1000, None)  # bind


def start_apart(network: bool, perturb: bool) -> None:
    """Isolate this new process, before it starts the stages, or print why that is not possible."""
    try:
        isolate(network, perturb)
    except (OSError, AttributeError) as error:
        what = "" if network else "the network was not cut off"
        what += " and the machine was not perturbed" if perturb else ""
        os.write(1, f"{NOTE}{what}: the system does not allow namespaces ({error})\n".encode())


def count_attempts(counters: Iterable[int]) -> int:
    """Return how often processes tried to reach another machine, from /proc/net/snmp and snmp6."""
    found = 0
    for file in counters:
        rows = (line.split() for line in os.pread(file, 1_000_000, 0).decode().splitlines())
        for first, second in pairwise(rows):
            # A row with names and a row with values, or a name and a value in each row.
            pairs = zip(first, second, strict=False) if first[0] == second[0] else [first[:2]]
            wanted = r"(Ip6|Udp6)?(OutNoRoutes|NoPorts)"
            found += sum(int(v) for k, v in pairs if re.fullmatch(wanted, k) and v.isdigit())
    return found


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
    run, names = Run(folder, str(folder)), [each.name for each in stages]
    environment = make_environment(folder, factors, hidden)
    if "clock" in factors and "FAKETIME" not in environment:
        run.notes.append("the clock was not moved: install libfaketime")
    repro = [sys.executable, "-P", "-m", "dvc", "repro", "--force", "--no-run-cache"]
    repro += ["--keep-going", "--single-item", *names]
    process = subprocess.Popen(
        ["sh", "-c", command or (":" if not names else shlex.join(repro))],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(start_apart, network, "machine" in factors),
    )
    timer = Timer(limit or 0, os.killpg, (process.pid, signal.SIGKILL))
    if limit:
        timer.start()
    counters, counted, stage = list[int](), 0, Ran()
    with suppress(OSError):  # not on Linux
        for name in ("snmp", "snmp6"):
            counters.append(os.open(f"/proc/{process.pid}/net/{name}", os.O_RDONLY))
    assert process.stdout
    try:
        for line in chain(process.stdout, [b""]):
            before, counted = counted, count_attempts(counters)
            stage.attempts += counted - before
            text = line.decode(errors="replace").strip()
            if text.startswith(NOTE):
                run.notes.append(text.removeprefix(NOTE))
            elif started := re.fullmatch("Running stage '(.*)':", text):
                stage = run.stages[started[1]] = Ran()
            elif text.startswith("WARNING: "):  # DVC's, or one of the stage's before
                reason = text.removeprefix("WARNING: ").strip()
                stage.problem = "; ".join(filter(None, (stage.last, reason)))
            elif text and not text.startswith("> "):  # DVC shows the command
                stage.last = text
            say(text)
        process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
        for file in counters:
            os.close(file)
    ended: set[str] = set()
    for graph in {each.graph for each in stages}:
        with suppress(VerifyError):  # no stage of it ended, or the run was killed
            ended |= {name_stage(graph, name) for name in read_lock((folder / graph).parent)}
    for name in names:
        ran = run.stages.setdefault(name, Ran(last=stage.last))
        status = f"the run ended with status {process.returncode}"
        ran.problem = "" if name in ended else ran.problem or ran.last or status
        if ran.problem and limit and process.returncode == -signal.SIGKILL:
            ran.problem = f"the time limit of {limit:g} s ended the run"
    return run
