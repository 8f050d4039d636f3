"""Standard output and standard error: what a command prints never changes how it ends.

A terminal may lack a character, a pipe may be closed, a disk may be full, and a name from outside,
for example of a file, a branch or a class, may hold codes that colour or move text.
"""

import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LAYOUT = "\n\r\t"  # tqdm draws its bar over the last one with \r


def make_printable(text: object, keep: str = "") -> str:
    r"""Return `text` on one line, with every invisible character escaped, such as `\x1b`.

    These are line ends, codes for terminals, the marks with which Unicode reverses a line, and what
    Python makes of bytes that are not UTF-8. The characters in `keep` stay. What GitHub Actions
    obeys in a program's output, `::error` and `##[error]`, is escaped too.
    """
    line = "".join(
        letter
        if letter.isprintable() or letter in keep or unicodedata.category(letter) == "Zs"  # a space
        else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
    return re.sub(r"^(\s*):(?=:)", r"\1\\x3a", line).replace("##[", r"#\x23[")


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a message, with names from outside in it, on one line; `file` as for `print`."""
    print(make_printable(text), file=file, flush=True)


class _Output(io.TextIOWrapper):
    """A stream that shows any text and raises no error."""

    cut_off = False

    def write(self, text: str, /) -> int:
        with self._report_fault():
            super().write(make_printable(text, keep=LAYOUT))
        return len(text)

    def flush(self) -> None:
        with self._report_fault():
            super().flush()

    def close(self) -> None:
        """Leave the file open for the stream that opened it."""
        self.flush()

    @contextmanager
    def _report_fault(self) -> Iterator[None]:
        """Turn an error into one line on standard error, unless the reader has gone, as `head`."""
        try:
            yield
        except BrokenPipeError:
            pass
        except OSError as error:
            if self is sys.stdout and not self.cut_off:
                self.cut_off = True
                print(f"warning: standard output is cut off: {error.strerror}", file=sys.stderr)


def protect_output() -> None:
    """Let this process print any text to any terminal, pipe or file, even to a closed one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # it is closed: without this, the next file that is opened gets its number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # keeps it open
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")  # for code that holds it, such as loggers
        setattr(
            sys,
            name,
            _Output(
                stream.buffer,
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )
