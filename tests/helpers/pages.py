"""Commands, and what they print, as the pages of the documentation quote them.

A page quotes them in blocks that start with ```console. A command starts with `$ `; the lines
below it, up to the next command, are what it prints.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Quoted(NamedTuple):
    """A command as a list of arguments, without its comment, and the lines that it prints."""

    command: list[str]
    output: list[str]


def quoted_commands(
    page: Path, heading: str | None = None, names: Mapping[str, str] | None = None
) -> list[Quoted]:
    """Return the commands that a page quotes, or only those directly below one of its headings.

    `names` maps a name in the page to the name to use instead, such as that of a real server.
    """
    text = page.read_text(encoding="utf-8")
    if heading is not None:
        text = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)[1]
    for documented, name in (names or {}).items():
        assert documented in page.read_text(encoding="utf-8"), documented
        text = text.replace(documented, name)
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            found.append(Quoted(shlex.split(command, comments=True), output))
    assert found, f"{page} quotes no command" + (f" below {heading}" if heading else "")
    return found


def missing_lines(quoted: list[str], printed: str) -> list[str]:
    """Return the quoted lines that a command did not print, or not in this order.

    `...` in a quoted line stands for any text, and a line with only `...` for any lines.
    """
    lines = iter(printed.splitlines())
    missing = []
    for line in quoted:
        if line.strip() == "...":
            continue
        pattern = ".*".join(map(re.escape, line.rstrip().split("...")))
        if not any(re.fullmatch(pattern, candidate.rstrip()) for candidate in lines):
            missing.append(line)
    return missing
