"""TODO stages.core.errors."""

import errno
import sys
import tempfile
from collections.abc import Callable


class StageError(Exception):
    """A mistake or fault outside the code: its message is the one line that the user reads."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; end the process with one line where the fault is not the code's."""
    try:
        main()
    except StageError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # A write names no file where it finds the disk full. Those that could be told from their
        # context have been by now; what is left is temporary.
        full = error.errno == errno.ENOSPC and not error.filename
        sys.exit(f"error: {error}" + (f": {tempfile.gettempdir()}" if full else ""))
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
