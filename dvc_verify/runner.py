"""Run stages of the DVC project in the current folder, apart from the rest of the machine.

The check starts this file as a program in the clone, with a JSON text that says what to do. It
imports nothing but DVC: the clone may hold another version of this package.
"""

import ctypes
import fcntl
import json
import logging
import os
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

MOUNTS, NAMES, USER, NETWORK = 0x00020000, 0x04000000, 0x10000000, 0x40000000  # CLONE_NEW…


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
    if uid:
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in maps.items():
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


def count_attempts() -> int:
    """Return how often a process in this network namespace tried to reach another machine."""
    found = 0
    for name in ("snmp", "snmp6"):
        with suppress(OSError):
            text = Path("/proc/net", name).read_text("ascii")
            for first, second in pairwise(line.split() for line in text.splitlines()):
                # A row with names and a row with values, or a name and a value in each row.
                pairs = zip(first, second, strict=False) if first[0] == second[0] else [first[:2]]
                wanted = r"(Ip6|Udp6)?(OutNoRoutes|NoPorts)"
                found += sum(int(v) for k, v in pairs if re.fullmatch(wanted, k) and v.isdigit())
    return found


def run_stages(stages: list[tuple[str, list[str]]], report: Callable[..., None]) -> None:
    """Run stages in this order; each is a name and the names of those that it needs.

    Reports each, and skips what needs a stage that failed.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # without advice about git
    failed: set[str] = set()
    with Repo() as repo:
        for name, needs in stages:
            problem, before = "", count_attempts()
            if missing := [each for each in needs if each in failed]:
                problem = f"its input from {missing[0]} is missing"
            else:
                print(f"Running stage '{name}':", flush=True)
                try:
                    repo.reproduce(name, single_item=True, force=True, run_cache=False)
                except DvcException as error:
                    problem = " ".join(str(error.__cause__ or error).split())
            if problem:
                failed.add(name)
            report(name, problem, count_attempts() - before)


def main() -> None:
    """Do what the JSON text says. A line with its mark tells the check what happened."""
    job: dict[str, Any] = json.loads(sys.argv[1])

    def report(*entries: str | int) -> None:
        """Say how a stage ended: name, problem, attempts; without a name, what was not possible."""
        print(f"\n{job['mark']}{json.dumps(entries)}", flush=True)

    try:
        isolate(job["network"], job["perturb"])
    except (OSError, AttributeError) as error:
        what = "" if job["network"] else "the network was not cut off"
        what += " and the machine was not perturbed" if job["perturb"] else ""
        report("", f"{what}: the system does not allow namespaces ({error})", 0)
    if job["command"]:
        os.execvp("/bin/sh", ["sh", "-c", job["command"]])  # noqa: S606
    run_stages(job["stages"], report)


if __name__ == "__main__":
    main()
