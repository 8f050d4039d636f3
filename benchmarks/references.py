"""Run one of two published scripts, to compare the pipeline with.

page           the script of the course page: one hidden layer of 128 units, batches of 32, 5 epochs
mnist_convnet  https://keras.io/examples/vision/mnist_convnet/: two convolutions, batches of 128,
               15 epochs

Both scripts use the published hyperparameters and a fixed seed. TensorFlow chooses its threads and
kernels. An import of `stages` would fix the threads and kernels, so this script does not import it
and reads the IDX files itself. It appends the seconds of `fit`, the number of images seen in all
epochs, and the accuracy on the test set to RECORD, a file of JSON lines.

    python benchmarks/references.py {page,mnist_convnet} RAW SEED RECORD
"""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]


def load(raw: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the training and the test set in `raw`, in the form of Keras's `mnist.load_data()`.

    Each is a pair of images (n, height, width) and labels (n,), uint8.
    """

    def read_pair(name: str) -> tuple[Any, Any]:
        images = np.fromfile(raw / f"{name}-images-idx3-ubyte", np.uint8)
        labels = np.fromfile(raw / f"{name}-labels-idx1-ubyte", np.uint8)
        return images[16:].reshape(images[4:16].view(">i4")), labels[8:]

    return read_pair("train"), read_pair("t10k")


def run_page(raw: Path, seed: int) -> Result:
    """Run the course page's script; its curves are saved to memory, not shown on the screen."""
    import keras
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from keras.layers import Dense, Flatten
    from keras.utils import to_categorical
    from sklearn.model_selection import train_test_split

    keras.utils.set_random_seed(seed)
    (train_images, train_labels), (test_images, test_labels) = load(raw)
    train_images = train_images.astype("float32") / 255.0
    test_images = test_images.astype("float32") / 255.0
    train_labels = to_categorical(train_labels, 10)
    test_labels = to_categorical(test_labels, 10)
    train_images, val_images, train_labels, val_labels = train_test_split(
        train_images, train_labels, test_size=0.2, random_state=42
    )
    model = keras.Sequential(
        [
            keras.Input(train_images.shape[1:]),
            Flatten(),
            Dense(128, activation="relu"),
            Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(
        train_images,
        train_labels,
        validation_data=(val_images, val_labels),
        epochs=5,
        batch_size=32,
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(test_images, test_labels, verbose=0)
    plt.plot(history.history["accuracy"], label="Train Accuracy")
    plt.plot(history.history["val_accuracy"], label="Validation Accuracy")
    plt.xlabel("Epochs")
    plt.ylabel("Accuracy")
    plt.legend()
    plt.title("Training and Validation Accuracy")
    plt.savefig(io.BytesIO())
    return {"seconds": seconds, "images": 5 * len(train_images), "accuracy": accuracy}


def run_mnist_convnet(raw: Path, seed: int) -> Result:
    """Run keras-io's script."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = load(raw)
    x_train = np.expand_dims(x_train.astype("float32") / 255, -1)
    x_test = np.expand_dims(x_test.astype("float32") / 255, -1)
    y_train = keras.utils.to_categorical(y_train, 10)
    y_test = keras.utils.to_categorical(y_test, 10)
    model = keras.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(x_train, y_train, batch_size=128, epochs=15, validation_split=0.1)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    # Keras holds out the other 10 % for validation.
    return {"seconds": seconds, "images": 15 * int(len(x_train) * 0.9), "accuracy": accuracy}


REFERENCES: dict[str, Callable[[Path, int], Result]] = {
    "page": run_page,
    "mnist_convnet": run_mnist_convnet,
}


def main() -> None:
    """Run the named script."""
    name, raw, seed, record = sys.argv[1:]
    result = {"name": "training", **REFERENCES[name](Path(raw), int(seed))}
    with Path(record).open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
