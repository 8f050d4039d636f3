"""Run one of two published scripts, to compare the pipeline with.

page           the script of the course page: one hidden layer of 128 units, batches of 32, 5 epochs
mnist_convnet  https://keras.io/examples/vision/mnist_convnet/: two convolutions, batches of 128,
               15 epochs

Both scripts use the published hyperparameters and a fixed seed. TensorFlow chooses its threads and
kernels. An import of `stages` would fix the threads and kernels, so this script does not import it
and reads the IDX files itself. It records the seconds of `fit`, the number of images seen in all
epochs, and the accuracy on the test set.

    python -m benchmarks.references {page,mnist_convnet} RAW SEED
"""

import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timers import append_record


def load(raw: Path) -> list[tuple[Any, Any]]:
    """Return the training and the test set in `raw`, in the form of Keras's `mnist.load_data()`.

    Each is a pair of images (n, height, width), float32 from 0 to 1, and one-hot labels (n, 10).
    """
    from keras.utils import to_categorical

    found = []
    for name in ("train", "t10k"):
        content = np.fromfile(raw / f"{name}-images-idx3-ubyte", np.uint8)
        labels = np.fromfile(raw / f"{name}-labels-idx1-ubyte", np.uint8)
        images = content[16:].reshape(content[4:16].view(">i4")).astype("float32") / 255
        found.append((images, to_categorical(labels[8:], 10)))
    return found


def fit(model: Any, train: tuple[Any, Any], test: tuple[Any, Any], **options: Any) -> Any:
    """Train a model, record how long it took and how accurate it is, and return its history."""
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(*train, **options)
    seconds = time.perf_counter() - start
    # Keras holds out a part for validation itself, if it is asked to.
    images = options["epochs"] * int(len(train[0]) * (1 - options.get("validation_split", 0)))
    _, accuracy = model.evaluate(*test, verbose=0)
    append_record("training", seconds=seconds, images=images)
    append_record("metrics", test={"accuracy": accuracy})  # as in metrics.json
    return history.history


def run_page(raw: Path) -> None:
    """Run the course page's script; its curves are saved to memory, not shown on the screen."""
    import keras
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from keras.layers import Dense, Flatten
    from sklearn.model_selection import train_test_split

    (images, labels), test = load(raw)
    train_images, val_images, train_labels, val_labels = train_test_split(
        images, labels, test_size=0.2, random_state=42
    )
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            Flatten(),
            Dense(128, activation="relu"),
            Dense(10, activation="softmax"),
        ]
    )
    held_out = (val_images, val_labels)
    train = (train_images, train_labels)
    history = fit(model, train, test, validation_data=held_out, epochs=5, batch_size=32)
    plt.plot(history["accuracy"], label="Train Accuracy")
    plt.plot(history["val_accuracy"], label="Validation Accuracy")
    plt.xlabel("Epochs")
    plt.ylabel("Accuracy")
    plt.legend()
    plt.title("Training and Validation Accuracy")
    plt.savefig(io.BytesIO())


def run_mnist_convnet(raw: Path) -> None:
    """Run keras-io's script."""
    import keras
    from keras import layers

    (images, labels), (test_images, test_labels) = load(raw)
    images, test_images = images[..., np.newaxis], test_images[..., np.newaxis]
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    test = (test_images, test_labels)
    fit(model, (images, labels), test, batch_size=128, epochs=15, validation_split=0.1)


REFERENCES = {"page": run_page, "mnist_convnet": run_mnist_convnet}


def main() -> None:
    """Run the named script."""
    import keras

    name, raw, seed = sys.argv[1:]
    keras.utils.set_random_seed(int(seed))
    REFERENCES[name](Path(raw))


if __name__ == "__main__":
    main()
