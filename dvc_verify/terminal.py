"""Print lines for people and for GitHub."""

import os
import sys
from pathlib import Path
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line. A closed pipe or a full disk never changes the exit code."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def clean(text: str) -> str:
    """Return a text in one line, in which names from outside cannot forge or colour anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def annotate(level: str, message: str) -> None:
    """Print an annotation that GitHub shows beside the change, if this runs there."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        say(f"::{level} file=dvc.lock,title=dvc-verify::{text}")
