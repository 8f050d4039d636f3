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
    # Not at the top, because TensorFlow takes seconds to load.
    from stages.model import training

    train_members = training.train_members

    def time_members(*arguments: Any, **named: Any) -> Any:
        model_parameters, _, train, *_ = arguments
        start = time.perf_counter()
        model, history = train_members(*arguments, **named)
        seconds = time.perf_counter() - start
        images = len(train[0]) * len(history) * model_parameters.members
        append_record(Path(sys.argv[1]), "training", seconds=seconds, images=images)
        return model, history

    training.train_members = time_members
    stage.main()


if __name__ == "__main__":
    run(main)
