"""What is measured inside a process of its own, in a copy of the project.

    python -m tools.benchmark.pieces RECORD train [like|free]   the stage `train`, its fit timed
    python -m tools.benchmark.pieces RECORD fit                 `fit` and a bare loop in turns
    python -m tools.benchmark.pieces RECORD step                one step, and the processor's peak
    python -m tools.benchmark.pieces RECORD grow FACTOR         make FACTOR times the raw digits

Appends what it finds to RECORD, a line of JSON each.
"""

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.environment import PINS
from stages.core.errors import run
from stages.core.paths import DATASET, PROCESSED, RAW
from stages.core.prepared import read_classes, read_split
from stages.model.settings import ModelParameters, TrainParameters
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES, TRAIN_LABELS

TURNS = 4  # of `fit` and the bare loop: the fastest of each, which other work disturbed least
STEPS, REPEATS = 20, 9  # of one step: the median of so many runs of so many steps
SIDE = 2048  # of the matrices that show the peak


def append(record: Path, name: str, **values: Any) -> None:
    """Append one finding."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **values}) + "\n")


def train(record: Path, pins: str = "pinned") -> None:
    """Run the stage, and append the seconds of `trained` and the images that it saw.

    `pins` is what of the project's determinism stays. pinned: all. like: nothing but the shares,
    the threads and the kernels' instruction set, so that what differs is the price of determinism
    and not a faster instruction set or more cores. free: nothing but the shares.
    """
    if pins != "pinned":
        kept = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA") if pins == "like" else ()
        for name in PINS.keys() - set(kept):
            del os.environ[name]

    # All that takes seconds to load, before the clock runs.
    import tensorflow as tf

    from stages import train as stage
    from stages.model import portable, runtime
    from stages.model.training import Split

    def settle(threads: int) -> None:
        if pins == "like":
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(threads)

    if pins != "pinned":
        portable.make_portable_layer = lambda layer: type(layer).from_config(layer.get_config())
        runtime.configure_tensorflow = settle
    trained = stage.trained

    def timed(
        model_parameters: ModelParameters,
        parameters: TrainParameters,
        train: Split,
        validation: Split,
    ) -> Any:
        count, handed = len(train[0]), [train]
        del train  # the stage frees what it is handed
        start = time.perf_counter()
        model, history = trained(model_parameters, parameters, handed.pop(), validation)
        seconds = time.perf_counter() - start
        seen = count * len(history) * model_parameters.members
        append(record, "fit", seconds=seconds, images=seen)
        return model, history

    stage.trained = timed
    stage.main()


def training_step(model: Any) -> Callable[[Any, Any], None]:
    """Return a function that takes one step of a compiled `model` on images and labels."""
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)

    def step(images: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=labels, y_pred=model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    return step


def fit(record: Path) -> None:
    """Append the seconds of `stages.fit.fit`, and of a loop with nothing to spare, in turns.

    The loop has the same twin network, batches, augmentation, loss, optimizer and schedule; a
    tf.function runs over an epoch of training digits, another over the validation digits.
    """
    import tensorflow as tf

    from stages.model import architectures, portable, runtime
    from stages.model.training import Split, compile_model, make_batches
    from stages.model.training import fit as whole

    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    runtime.configure_tensorflow(parameters.replicas)
    train = read_split(PROCESSED / "train.npz")
    validation = read_split(PROCESSED / "validation.npz")

    def bare(model: Any, train: Split, validation: Split, parameters: TrainParameters) -> None:
        two = architectures.has_two_outputs(model.network)
        training = make_batches(train, parameters, two)
        compile_model(model, parameters, int(training.cardinality()))
        step = training_step(model)

        def epoch(dataset: Any) -> None:
            for images, labels in dataset:
                step(images, labels)

        def loss(dataset: Any) -> Any:
            total = 0.0
            for images, labels in dataset:
                total += model.compute_loss(y=labels, y_pred=model(images, training=False))
            return total

        watching = make_batches(validation, parameters, two, training=False)
        compiled_epoch, compiled_loss = tf.function(epoch), tf.function(loss)
        for _ in range(parameters.epochs):
            compiled_epoch(training)
            float(compiled_loss(watching))

    seconds: dict[str, list[float]] = {"fit": [], "bare": []}
    for _ in range(TURNS):
        for name, function in (("fit", whole), ("bare", bare)):
            images, labels = train
            model = architectures.build(model_parameters, images.shape[1:], labels.shape[1])
            twin = portable.make_portable(model, parameters.replicas)
            start = time.perf_counter()
            function(twin, train, validation, parameters)
            seconds[name].append(time.perf_counter() - start)
    for name, of_turns in seconds.items():
        append(record, name, seconds=min(of_turns))


def step(record: Path) -> None:
    """Append images a second of the twin's step with Adam on one batch, and what it takes.

    operations: floating-point operations of a step for each image; peak: those a second that
    products of large matrices reach here, one on each thread; and what PyTorch needs for the same.
    """
    import keras
    import tensorflow as tf

    from stages.model import architectures, portable, runtime
    from stages.preprocess import normalise, one_hot

    model_parameters, parameters = ModelParameters.read(), TrainParameters.read()
    runtime.configure_tensorflow(parameters.replicas)
    count, classes = parameters.batch_size, len(read_classes(DATASET))
    images = normalise(idx.read(RAW / TRAIN_IMAGES, 3, count))
    labels = one_hot(idx.read(RAW / TRAIN_LABELS, 1, count), classes)
    model = architectures.build(model_parameters, images.shape[1:], classes)
    twin = portable.make_portable(model, parameters.replicas)
    rate = parameters.learning_rate
    twin.compile(keras.optimizers.Adam(rate), "categorical_crossentropy")
    one_step = training_step(twin)

    def steps(images: Any, labels: Any) -> None:
        for _ in tf.range(STEPS):
            one_step(images, labels)

    compiled = tf.function(steps)

    def seconds(function: Callable[..., Any], *tensors: Any) -> float:
        start = time.perf_counter()
        function(*tensors)
        return time.perf_counter() - start

    batch = tf.constant(images), tf.constant(labels)
    compiled(*batch)  # traces
    median = statistics.median(seconds(compiled, *batch) for _ in range(REPEATS))
    # An operation has one thread, so as many products as threads, side by side.
    matrices = tf.random.stateless_normal((parameters.replicas, SIDE, SIDE), (0, 0))
    products = tf.function(lambda *each: [tf.matmul(matrix, matrix) for matrix in each])
    products(*tf.unstack(matrices))  # traces
    fastest = min(seconds(products, *tf.unstack(matrices)) for _ in range(REPEATS))
    append(
        record,
        "step",
        images_a_second=len(images) * STEPS / median,
        operations=operations(model),
        peak=parameters.replicas * 2 * SIDE**3 / fastest,
        trainable=sum(math.prod(weights.shape) for weights in model.trainable_variables),
        layers=[described(layer) for layer in model.layers],
        shape=images.shape[1:],
        classes=classes,
        batch_size=len(images),
        learning_rate=rate,
        threads=parameters.replicas,
        steps=STEPS,
        repeats=REPEATS,
    )


def operations(model: Any) -> int:
    """Return the floating-point operations of the matrix products in a training step, an image.

    A multiplication and an addition each for the output, the gradient of the weights and that of
    the input; nothing asks for the gradient of the picture.
    """
    forward: list[int] = []
    for layer in model.layers:
        if (kernel := getattr(layer, "kernel", None)) is not None:
            positions = math.prod(layer.output.shape[1:-1])  # one for a dense layer
            forward.append(2 * math.prod(kernel.shape) * positions)
    return 3 * sum(forward) - forward[0]


def described(layer: Any) -> dict[str, Any]:
    """Return a layer's kind and what of its configuration PyTorch needs."""
    config = layer.get_config()
    found = {"kind": type(layer).__name__}
    for ours, theirs in (
        ("filters", "filters"),
        ("units", "units"),
        ("rate", "rate"),
        ("epsilon", "epsilon"),
        ("momentum", "momentum"),
        ("padding", "padding"),
        ("use_bias", "bias"),
        ("kernel_size", "width"),
        ("pool_size", "width"),
        ("strides", "stride"),
        ("cropping", "crop"),
    ):
        if ours in config:
            found[theirs] = config[ours]
    return found


def grow(record: Path, factor: str) -> None:
    """Make the raw training digits `factor` times as many, by copies that are moved at random."""
    import tensorflow as tf

    from stages.model.augmentation import augment

    augmentation = TrainParameters.read().augmentation
    images, labels = idx.read(RAW / TRAIN_IMAGES, 3), idx.read(RAW / TRAIN_LABELS, 1)
    parts = [images]
    for copy in range(1, int(factor)):
        for start in range(0, len(images), 10_000):
            pixels = tf.constant(images[start : start + 10_000], tf.float32)
            moved = augment(pixels, tf.constant([copy, start], tf.int64), augmentation)
            parts.append(np.rint(moved).astype(np.uint8))
    grown = np.concatenate(parts)
    (RAW / TRAIN_IMAGES).write_bytes(idx.dump(grown))
    (RAW / TRAIN_LABELS).write_bytes(idx.dump(np.tile(labels, int(factor))))
    append(record, "grow", images=len(grown))


def main() -> None:
    """Measure the piece that is named."""
    record, name, *arguments = sys.argv[1:]
    pieces: dict[str, Callable[..., None]] = {f.__name__: f for f in (train, fit, step, grow)}
    pieces[name](Path(record), *arguments)


if __name__ == "__main__":
    run(main)
