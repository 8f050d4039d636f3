"""Measure how much memory a program takes. Linux only."""

from collections.abc import Callable
from subprocess import CompletedProcess

# Prints the anonymous memory (without files that are mapped) before some code, and its peak in it.
PROGRAM = """
import re, sys, threading
from pathlib import Path

def read():
    return int(re.search(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def watch():
    while not done.wait(0.005):
        found.append(read())

{imports}
found, done = [read()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
{code}
done.set()
thread.join()
print(found[0], max(found))
"""


def measure_memory(
    run_python: Callable[..., CompletedProcess[str]], imports: str, code: str
) -> tuple[int, int]:
    """Return the bytes in use before some code, and at most while it runs."""
    ended = run_python("-c", PROGRAM.format(imports=imports, code=code))
    assert ended.returncode == 0, ended.stderr
    before, peak = map(int, ended.stdout.splitlines()[-1].split())
    return before, peak
