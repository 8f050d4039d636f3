"""Run a command and append its seconds and peak memory to a file of JSON lines.

A process's peak counts that of the one it was forked from, so commands are started from this
script, which imports next to nothing, and not from DVC or a tool that has loaded a library.

    python tools/benchmark/timed.py RECORD NAME COMMAND [ARGUMENT ...]
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Run, measure, append, and end as the command ended."""
    record, name, *command = sys.argv[1:]
    start = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawnp(command[0], command, os.environ), 0)
    line = {
        "name": name,
        "seconds": time.perf_counter() - start,
        # Linux counts kibibytes, macOS bytes.
        "mebibytes": usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20),
    }
    with Path(record).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
