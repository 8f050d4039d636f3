"""Small functions that several test modules use."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stages.core.errors import StageError


def get_refusal(call: Callable[..., object], *arguments: object) -> str:
    """Return the message of the StageError that a call raises, which must be one line."""
    with pytest.raises(StageError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, and make the folder if it is missing."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder and below it, by the file's relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
