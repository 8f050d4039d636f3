"""Make the raw training set FACTOR times as large, by adding augmented copies of its images.

Appends the number of images to RECORD, a file of JSON lines.

    python -m tools.benchmark.grow RECORD FACTOR
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from stages.core.errors import run
from stages.core.paths import RAW
from stages.model.augmentation import augment
from stages.model.settings import TrainParameters
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES, TRAIN_LABELS
from tools.benchmark.time_command import append_record


def main() -> None:
    """Read the training set, augment, and write it back."""
    record, factor = Path(sys.argv[1]), int(sys.argv[2])
    augmentation = TrainParameters.read().augmentation
    images, labels = idx.read(RAW / TRAIN_IMAGES, 3), idx.read(RAW / TRAIN_LABELS, 1)
    parts = [images]
    for copy in range(1, factor):
        for start in range(0, len(images), 10_000):
            pixels = tf.constant(images[start : start + 10_000], tf.float32)
            augmented = augment(pixels, tf.constant([copy, start], tf.int64), augmentation)
            parts.append(np.rint(augmented).astype(np.uint8))
    (RAW / TRAIN_IMAGES).write_bytes(idx.dump(np.concatenate(parts)))
    (RAW / TRAIN_LABELS).write_bytes(idx.dump(np.tile(labels, factor)))
    append_record(record, "grow", images=factor * len(images))


if __name__ == "__main__":
    run(main)
