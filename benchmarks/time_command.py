"""Run a command and append its seconds and peak memory to a file of JSON lines.

A process starts with the peak memory of the process it was forked from. So commands are started
from this script, which imports almost nothing, and not from DVC or from a tool with large imports.

    python benchmarks/time_command.py RECORD NAME COMMAND [ARGUMENT ...]
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

INTERVAL = 0.02  # seconds between two measurements of the memory


def append_record(record: Path, name: str, **values: Any) -> None:
    """Append one measurement to `record`, as a line of JSON."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **values}) + "\n")


class AnonymousMemory(threading.Thread):
    """Measure the peak anonymous memory of a process in MiB, until `stop` is called.

    Anonymous memory is what the process has allocated, without the files that it maps into memory,
    which the system can drop at any time. Only Linux reports it; elsewhere the peak stays 0.
    """

    def __init__(self, pid: int) -> None:
        """Prepare to watch the process with number `pid`."""
        super().__init__(daemon=True)
        self.path = Path(f"/proc/{pid}/status")
        self.ended = threading.Event()
        self.peak = 0.0

    def run(self) -> None:
        """Read the current value again and again."""
        while not self.ended.wait(INTERVAL):
            try:
                found = re.search(r"RssAnon:\s+(\d+) kB", self.path.read_text(encoding="utf-8"))
            except OSError:
                continue
            if found:
                self.peak = max(self.peak, int(found[1]) / 1024)

    def stop(self) -> float:
        """Stop, and return the peak."""
        self.ended.set()
        self.join()
        return self.peak


def main() -> None:
    """Run the command, append the measurement, and exit with the command's exit code."""
    record, name, *command = sys.argv[1:]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    memory = AnonymousMemory(pid)
    memory.start()
    _, status, usage = os.wait4(pid, 0)
    append_record(
        Path(record),
        name,
        seconds=time.perf_counter() - start,
        # The unit is the kibibyte on Linux, and the byte on macOS.
        mebibytes=usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20),
        anonymous=memory.stop(),
    )
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
