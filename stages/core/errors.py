"""The project's exceptions, and what a command does with them.

    Exception
    ├── StageError            a mistake or fault outside the code: the user sees one line
    │   └── ImageFileError    tools/predict/picture.py: an image file cannot be classified
    ├── SourceError           stages/sources/fetch.py: a source did not give the expected bytes
    │   └── TransientError    stages/sources/fetch.py: the same, but a retry may help
    └── CheckError            tools/doctor.py: a check found something wrong

The message of a StageError names the file, key or address, what was expected and what was found.
SourceError and CheckError never reach the user as exceptions: after a SourceError, `download` tries
the next source, and `doctor` prints a CheckError. Any other exception is a bug and keeps its
traceback.
"""

import errno
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.core.terminal import make_printable, protect_output


class StageError(Exception):
    """A mistake or fault outside the code. Its message is the one line that the user reads."""


@contextmanager
def name_faults(path: Path, kind: str, remedy: str = "") -> Iterator[None]:
    """Raise StageError, which names the file at `path`, if it is missing or cannot be read.

    `kind` says what the file should be, and `remedy` how to get it again. The libraries that read
    files raise many types of exceptions for damaged ones, so all are caught.
    """
    try:
        yield
    except StageError:
        raise
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to create it") from None
    except Exception as error:
        cause = " ".join(str(error).split())
        raise StageError(f"{path}: not readable as {kind}: {cause}{remedy}") from error


def run(main: Callable[[], None]) -> None:
    """Call `main`. After a fault outside the code, print one line and exit with status 1."""
    protect_output()
    gc.freeze()  # the garbage collector skips what was imported, so the process ends faster
    try:
        main()
    except StageError as error:
        sys.exit(f"error: {make_printable(error)}")
    except OSError as error:
        # OSError has no file name when the disk is full. All other writes report theirs as a
        # StageError, so this one is in the folder for temporary files.
        full = error.errno == errno.ENOSPC and not error.filename
        sys.exit(f"error: {make_printable(error)}" + (f": {tempfile.gettempdir()}" if full else ""))
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
