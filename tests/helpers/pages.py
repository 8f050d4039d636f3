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


def read_section(page: Path, heading: str | None) -> str:
    """Return the text of a page, or only what is directly below one of its headings."""
    text = page.read_text(encoding="utf-8")
    if heading is None:
        return text
    return re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)[1]


def apply_blocks(page: Path, heading: str, folder: Path) -> None:
    """Apply the code blocks of a section that name a file to the files in `folder`.

    A block that starts with ```diff and a path changes the file: its lines without + must be there
    once, one after the other, and become its lines without -. A line `@@` separates two changes.
    Any other block is the content of a new file.
    """
    blocks = re.findall(r"^```(\w+) (\S+)\n(.*?)^```$", read_section(page, heading), re.M | re.S)
    for language, name, block in blocks:
        path = folder / name
        if language != "diff":
            assert not path.exists(), path
            path.write_text(block)
            continue
        text = path.read_text()
        for change in re.split(r"^@@\n", block, flags=re.M):
            lines = change.splitlines(keepends=True)
            # An empty line may have lost the space in front of it.
            old = "".join(line[1:] or line for line in lines if line[0] != "+")
            new = "".join(line[1:] or line for line in lines if line[0] != "-")
            assert f"\n{text}".count(f"\n{old}") == 1, f"{name}: {old}"
            text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
        path.write_text(text)


def find_quoted_commands(
    page: Path, heading: str | None = None, names: Mapping[str, str] | None = None
) -> list[Quoted]:
    """Return the commands that a page quotes, or only those directly below one of its headings.

    `names` maps a name in the page to the name that the test uses, for example of a real server.
    """
    text = read_section(page, heading)
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


def find_missing_lines(quoted: list[str], printed: str) -> list[str]:
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
