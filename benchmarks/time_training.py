"""Run the stage `train`, and append the seconds of the training itself to a file of JSON lines.

The clock starts when TensorFlow is loaded and the data is read, and stops before the model is
saved. The images are counted as often as they are seen, in every epoch and by every member.

    python -m benchmarks.time_training RECORD
"""

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.time_command import append_record
from stages import train as stage
from stages.core.errors import run


def main() -> None:
    """Replace `train_members` with a function that also measures its time, and run the stage."""
    train_members = stage.train_members

    def time_members(*arguments: Any) -> Any:
        _, _, training, _, _, state, _ = arguments
        start = time.perf_counter()
        model = train_members(*arguments)
        seconds = time.perf_counter() - start
        images = len(training[0]) * sum(map(len, state.rows))
        append_record(Path(sys.argv[1]), "training", seconds=seconds, images=images)
        return model

    stage.train_members = time_members  # type: ignore[assignment]
    stage.main()


if __name__ == "__main__":
    run(main)
