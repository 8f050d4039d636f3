"""Write reports as Markdown and HTML that show names from outside as they are.

A stranger chooses the names in a pull request: of branches, parameters, classes and files. GitHub
turns `@name` into a mention and `#1` into a link, and renders images and HTML in a comment.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from tabulate import tabulate

from stages.core.files import write_text
from stages.core.terminal import make_printable

TEMPLATES = Path(__file__).parents[1] / "templates"

# What GitHub's Markdown gives a meaning. The last line is what it turns into links by itself.
SPECIAL = re.compile(
    r"[\\`*<>#~$&@]|(?<!\w)_|_(?!\w)|\][(:\[]|:[\w+-]+:"
    r"|www\.|://|mailto:|xmpp:|\bGH-\d",
    re.IGNORECASE,
)


def escape(text: object) -> str:
    """Return `text` on one line, so that GitHub's Markdown shows it unchanged.

    Text with a special character becomes a code span, in which GitHub interprets nothing. Code
    spans in `text` stay. A pipe stays in its cell of a table.
    """
    line = make_printable(text)
    # After another backslash, \| may end the cell.
    line = line.replace("|", "\\x7c" if "\\" in line else "\\|")
    if not SPECIAL.search(re.sub(r"(?<!`)`[^`]+`(?!`)|\\\|", "", line)):
        return line
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def format_table(rows: Sequence[Mapping[str, str]], alignment: str = "") -> str:
    """Return a Markdown table without a final line end, or "" if there are no rows.

    `alignment` has one letter for each column: l(eft) or r(ight). Without it, all are left.
    """
    if not rows:
        return ""
    marks = [{"l": ":-", "r": "-:"}[letter] for letter in alignment or "l" * len(rows[0])]
    lines = [map(escape, rows[0]), marks, *(map(escape, row.values()) for row in rows)]
    return align_tables("".join(f"|{'|'.join(line)}|\n" for line in lines)).rstrip("\n")


def align_tables(text: str) -> str:
    """Return Markdown in which each column of a table has one width."""

    def align(table: re.Match[str]) -> str:
        header, marks, *rows = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table[0].splitlines()
        )
        sides = ["right" if mark.endswith(":") else "left" for mark in marks]
        return f"{tabulate(rows, header, 'pipe', disable_numparse=True, colalign=sides)}\n"

    return re.sub(r"^\|.*\n\|[-:|]+\|\n(?:\|.*\n)+", align, text, flags=re.MULTILINE)


@contextmanager
def replace_report(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file then replaces the report at `path`.

    Two commands at once may write the same report. The one that ends last wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        written = Path(folder) / path.name
        yield written
        written.replace(path)


def publish(path: Path, text: str, note: str = "") -> None:
    """Write a report to `path`, and print it with a note where it is."""
    with replace_report(path) as part:
        write_text(part, text)
    print(f"\n{text}\nThis text is in {path}{note}.")


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template in tools/templates. Every value that it shows is escaped.

    Tables, which are Markdown already, need the filter `safe`.
    """
    html = template.endswith("html.jinja")

    def finalize(value: object) -> object:
        if isinstance(value, Markup):
            return value
        return make_printable(value) if html else escape(value)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.jinja"]),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
