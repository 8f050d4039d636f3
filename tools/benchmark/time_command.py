"""Run a command and append its seconds and peak memory to a file of JSON lines.

A process starts with the peak memory of the process it was forked from. So commands are started
from this script, which imports almost nothing, and not from DVC or from a tool with large imports.

    python tools/benchmark/time_command.py RECORD NAME COMMAND [ARGUMENT ...]
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def append_record(record: Path, name: str, **values: Any) -> None:
    """Append one measurement to `record`, as a line of JSON."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **values}) + "\n")


def main() -> None:
    """Run the command, append the measurement, and exit with the command's exit code."""
    record, name, *command = sys.argv[1:]
    start = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawnp(command[0], command, os.environ), 0)
    append_record(
        Path(record),
        name,
        seconds=time.perf_counter() - start,
        # Linux counts kibibytes, macOS bytes.
        mebibytes=usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20),
    )
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
