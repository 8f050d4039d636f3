"""Write a custom dataset with FACTOR times the raw training images, to the folder FOLDER.

The added images are copies, augmented as params.yaml says. The test set and the names of the
classes stay as they are. The images are written piece by piece, so their number is limited only by
the disk. It is recorded.

    python -m benchmarks.grow FOLDER FACTOR
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.timers import append_record
from stages.core.dataset import read_classes
from stages.core.errors import run
from stages.core.files import write_text
from stages.core.paths import DATASET, RAW
from stages.model.augmentation import augment
from stages.model.settings import TrainParameters
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

PIECE = 10_000  # images that are augmented at a time


def main() -> None:
    """Read the raw dataset, augment its training images, and write the custom dataset."""
    folder, factor = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    augmentation = TrainParameters.read().augmentation
    images, labels = idx.read(RAW / TRAIN_IMAGES, 3), idx.read(RAW / TRAIN_LABELS, 1)
    with (folder / TRAIN_IMAGES).open("wb") as file:
        file.write(idx.dump_header((factor * len(images), *images.shape[1:])))
        file.write(images.tobytes())
        for copy in range(1, factor):
            for start in range(0, len(images), PIECE):
                pixels = tf.constant(images[start : start + PIECE], tf.float32)
                augmented = augment(pixels, tf.constant([copy, start], tf.int64), augmentation)
                file.write(np.rint(augmented).astype(np.uint8).tobytes())
    (folder / TRAIN_LABELS).write_bytes(idx.dump(np.tile(labels, factor)))
    for name in (TEST_IMAGES, TEST_LABELS):
        shutil.copyfile(RAW / name, folder / name)
    append_record("grown", images=factor * len(images))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in read_classes(DATASET)))


if __name__ == "__main__":
    run(main)
