"""The networks that `model` in params.yaml describes, built from Keras's standard layers."""

import json
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from stages.artifacts import atomic, refuse_bombs, zip_member
from stages.hyperparameters import ModelParameters
from stages.parameters import StageError

Floats = npt.NDArray[np.float32]

Layers = list[keras.Layer]

MAIN, AUXILIARY = "main", "auxiliary"  # the outputs of the branched network

ROWS = 48  # a multiple of the rows that oneDNN's and Eigen's kernels take at a time

# What a model file holds, and the kinds of objects that its configuration may name: all that this
# module puts there. A new kind of layer is to be added here, or `load` refuses it.
MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
PARTS = {
    *("Functional", "Sequential", "InputLayer", "__keras_tensor__", "DTypePolicy", "SGD"),
    *("GlorotUniform", "Zeros", "Ones"),
    *("Reshape", "Cropping2D", "ZeroPadding2D", "Conv2D", "MaxPooling2D", "BatchNormalization"),
    *("ReLU", "Flatten", "Dense", "Dropout", "Concatenate", "GlobalAveragePooling2D", "Average"),
}


def build(parameters: ModelParameters, shape: tuple[int, int], classes: int) -> keras.Model:
    """Return an untrained network from images (n, *shape) in [0, 1] to probabilities (n, classes).

    The branched network returns a dictionary of two such outputs, `main` and `auxiliary`. Raises
    StageError where the pictures are too small for so many convolutions.
    """
    if parameters.architecture != "dense" and side_left(parameters, min(shape)) < 1:
        raise StageError(
            f"model.crop is {parameters.crop} and model.filters {parameters.filters}: of pictures "
            f"of {shape[0]}x{shape[1]} pixels nothing would be left; crop less, or take "
            "convolutions away"
        )
    keras.utils.set_random_seed(parameters.seed)
    inputs = keras.Input(shape, name="images")
    if parameters.architecture == "branched":
        return keras.Model(inputs, branched(parameters, shape, classes, inputs))
    if parameters.architecture == "dense":
        layers = [keras.layers.Flatten(), *dense(parameters), classifier(classes, MAIN)]
    else:
        layers = convolutional(parameters, shape, classes)
    if parameters.api == "sequential":
        return keras.Sequential([inputs, *layers])
    return keras.Model(inputs, chain(layers, inputs))


def side_left(parameters: ModelParameters, side: int) -> int:
    """Return what the convolutions leave of a picture's `side`, in pixels; less than 1 for nothing.

    Without zeros around it, a convolution takes its width less one; between groups, half remains.
    """
    first, *rest = parameters.filters
    side -= 2 * parameters.crop
    if parameters.architecture == "convolutional":
        side -= 4 + 2 * (len(first) - 1)
    for group in rest:
        side = side // 2 - 2 * len(group)
    return side


def has_two_outputs(model: keras.Model) -> bool:
    """Return whether `model` has an auxiliary output beside the main one."""
    return len(model.outputs) == 2


def picture(parameters: ModelParameters, shape: tuple[int, int]) -> Layers:
    """Return what makes of images (n, *shape) the pictures, of one channel, to convolve."""
    layers: Layers = [keras.layers.Reshape((*shape, 1))]
    if parameters.crop:
        layers.append(keras.layers.Cropping2D(parameters.crop))
    return layers


def convolutional(parameters: ModelParameters, shape: tuple[int, int], classes: int) -> Layers:
    """Return groups of convolutions, then dense layers."""
    return [
        *picture(parameters, shape),
        *groups(parameters.filters, parameters.batch_normalization, width=5),
        keras.layers.Flatten(),
        *dense(parameters),
        classifier(classes, MAIN),
    ]


def branched(
    parameters: ModelParameters, shape: tuple[int, int], classes: int, inputs: keras.KerasTensor
) -> dict[str, keras.KerasTensor]:
    """Return the outputs of a network that looks at two scales and is judged at two depths.

    The first group of convolutions exists twice, of different width; both see the same picture, and
    what they find is merged. An auxiliary classifier reads the merged features and gives the early
    layers a short path for their gradient, as in Szegedy et al., "Going deeper with convolutions",
    2015.
    """
    first, *rest = parameters.filters
    images = chain(picture(parameters, shape), inputs)
    # Zeros around the picture, so that both widths leave maps of the same size.
    branches = [
        chain(
            convolutions(first, parameters.batch_normalization, width, "same", bool(rest)), images
        )
        for width in (3, 5)
    ]
    merged = keras.layers.Concatenate()(branches)
    features = chain(groups(rest, parameters.batch_normalization), merged)
    trunk = [keras.layers.Flatten(), *dense(parameters), classifier(classes, MAIN)]
    side = [keras.layers.GlobalAveragePooling2D(), classifier(classes, AUXILIARY)]
    return {MAIN: chain(trunk, features), AUXILIARY: chain(side, merged)}


def groups(filters: list[list[int]], batch_normalization: bool, width: int = 3) -> Layers:
    """Return groups of convolutions, `width` that of the first of all; all but the last halve."""
    layers: Layers = []
    for position, group in enumerate(filters, start=1):
        halve = position < len(filters)
        layers += convolutions(group, batch_normalization, width, halve=halve)
        width = 3
    return layers


def convolutions(
    group: list[int],
    batch_normalization: bool,
    width: int = 3,
    padding: str = "valid",
    halve: bool = True,
) -> Layers:
    """Return one convolution after another, `width` that of the first; the last may halve.

    Pooling first leaves the normalisation and the activation a quarter of the work.
    """
    layers: Layers = []
    for position, filters in enumerate(group, start=1):
        layers.append(
            keras.layers.Conv2D(filters, width, padding=padding, use_bias=not batch_normalization)
        )
        if halve and position == len(group):
            layers.append(keras.layers.MaxPooling2D())
        if batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=0.9))
        layers.append(keras.layers.ReLU())
        width = 3
    return layers


def dense(parameters: ModelParameters) -> Layers:
    """Return the hidden dense layers, each normalised and followed by dropout where asked for."""
    layers: Layers = []
    for units in parameters.hidden_units:
        layers.append(keras.layers.Dense(units, use_bias=not parameters.batch_normalization))
        if parameters.batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=0.9))
        layers.append(keras.layers.ReLU())
        if parameters.dropout:
            layers.append(keras.layers.Dropout(parameters.dropout))
    return layers


def classifier(classes: int, name: str) -> keras.Layer:
    """Return the layer that ends in a probability for each class."""
    return keras.layers.Dense(classes, activation="softmax", name=name)


def chain(layers: Iterable[keras.Layer], tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Return what `layers`, one after another, make of `tensor`."""
    for layer in layers:
        tensor = layer(tensor)
    return tensor


def ensemble(members: list[keras.Model]) -> keras.Model:
    """Return the network of the members' mean probabilities; of a single one, that itself."""
    if len(members) == 1:
        return members[0]
    inputs = keras.Input(members[0].input_shape[1:], name="images")
    return keras.Model(inputs, mean([member(inputs) for member in members]))


def averaged_over_shifts(model: keras.Model) -> keras.Model:
    """Return the network of `model`'s mean probabilities of a picture and of its shifts by a pixel.

    Up, down, left and right, with 0 moved in, all five weighing the same: an average at test time
    as in Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural
    networks", 2012, section 4.1.
    """
    height, width = model.input_shape[1:]
    inputs = keras.Input((height, width), name="images")
    padded = keras.layers.ZeroPadding2D(1)(keras.layers.Reshape((height, width, 1))(inputs))
    outputs = []
    for y, x in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        view = keras.layers.Cropping2D(((1 - y, 1 + y), (1 - x, 1 + x)))(padded)
        outputs.append(model(keras.layers.Reshape((height, width))(view)))
    return keras.Model(inputs, mean(outputs))


def mean(outputs: list[Any]) -> Any:
    """Return the mean of what several calls of networks with the same outputs returned."""
    return keras.tree.map_structure(lambda *each: keras.layers.Average()(each), *outputs)


def portable(model: keras.Model, threads: int) -> "DataParallel":
    """Return a twin of `model`, same weights, whose arithmetic is the same on every processor.

    Train and predict with the twin, which uses `threads`; save the original, whose standard layers
    open anywhere.
    """
    twin = keras.models.clone_model(model, clone_function=portable_layer, recursive=True)
    twin.set_weights(model.get_weights())
    return DataParallel(twin, threads)


def portable_layer(layer: keras.Layer) -> keras.Layer:
    """Return a copy of `layer`, of the portable kind where there is one."""
    kinds: dict[Any, Any] = {
        keras.layers.BatchNormalization: PortableBatchNormalization,
        keras.layers.Dense: PortableDense,
    }
    kind = kinds.get(type(layer), type(layer))
    return kind.from_config(layer.get_config())


class DataParallel(keras.Model):
    """A network that computes equal shares of each batch side by side, one thread each.

    Faster than splitting each operation, for whose end threads wait after every layer. What is
    normalised over the batch is normalised over the share: Hoffer, Hubara and Soudry, "Train
    longer, generalize better", 2017, call it ghost batch normalization.
    """

    def __init__(self, network: keras.Model, threads: int) -> None:
        """Wrap `network`, whose weights become this model's."""
        super().__init__()
        self.network = network
        self.threads = threads
        # Traced once for any number of images, not again for a last batch that is smaller.
        self.main_output = tf.function(
            lambda images: self(images)[MAIN] if has_two_outputs(network) else self(images),
            input_signature=[tf.TensorSpec((None, *network.input_shape[1:]))],
            autograph=False,
        )

    def probabilities(self, images: Floats, batch_size: int) -> Floats:
        """Return the main output's probabilities (n, classes) float32 for `images`."""
        starts = range(0, len(images), batch_size)
        return np.concatenate([self.main_output(images[i : i + batch_size]) for i in starts])

    def call(self, images: tf.Tensor, training: bool = False) -> Any:
        """Return the network's outputs for `images` (n, height, width), in their order."""
        count = tf.shape(images)[0]
        # No share may be empty: oneDNN's pooling fails on that.
        padded = tf.pad(images, [[0, tf.maximum(self.threads - count, 0)], [0, 0], [0, 0]])
        bounds = [tf.shape(padded)[0] * i // self.threads for i in range(self.threads + 1)]
        shares = [self.network(padded[i:j], training=training) for i, j in pairwise(bounds)]
        return tf.nest.map_structure(lambda *each: joined(each, count), *shares)


def joined(shares: Sequence[tf.Tensor], count: tf.Tensor) -> tf.Tensor:
    """Return the first `count` probabilities of all shares, one after the other."""
    probabilities = tf.concat(shares, 0)[:count]
    if all(hasattr(share, "_keras_logits") for share in shares):
        # Where Keras's cross-entropy looks for what softmax was given: exact near 0 and 1.
        logits = tf.concat([share._keras_logits for share in shares], 0)
        probabilities._keras_logits = logits[:count]
    return probabilities


class PortableBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer with a square root and a division.

    Keras multiplies by a reciprocal square root, for which processors have a fast approximation
    that differs between makers.
    """

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        mask: None = None,  # noqa: ARG002  # Keras's signature
    ) -> tf.Tensor:
        """Return `inputs` normalised by the batch in training, else by the moving averages."""
        if training and self.trainable:
            mean, variance = keras.ops.moments(inputs, self._reduction_axes)
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma / keras.ops.sqrt(variance + self.epsilon)
        return inputs * scale + (self.beta - mean * scale)


class PortableDense(keras.layers.Dense):
    """Keras's layer with its matrices padded to round numbers of rows.

    The last rows of a product, where they are no whole block of the kernel's, are summed by another
    kernel, which rounds differently. Without such a rest, an output does not depend on what else
    is in the batch, nor the weights' gradient, whose rows are the input features, on the processor.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:  # noqa: ARG002  # Keras's signature
        """Return the activation of `inputs` (n, features) times the kernel plus the bias."""
        count, features = tf.shape(inputs)[0], inputs.shape[1]
        padded = tf.pad(inputs, [[0, -count % ROWS], [0, -features % ROWS]])
        kernel = tf.pad(self.kernel, [[0, -features % ROWS], [0, 0]])
        outputs = tf.matmul(padded, kernel)[:count]
        if self.use_bias:
            outputs += self.bias
        return self.activation(outputs)


def save(model: keras.Model, loss: str, path: Path) -> None:
    """Write `model` and the loss it was trained with as a `.keras` file, same bytes every time.

    Keras notes the date, in the archive and in its entries' time stamps, and memory addresses, by
    which it tells what layers share. The dates are left out, the addresses numbered.
    """
    addresses: dict[int, int] = {}

    def numbered(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("date_saved", None)
        if "shared_object_id" in entry:
            address = entry["shared_object_id"]
            entry["shared_object_id"] = addresses.setdefault(address, len(addresses) + 1)
        return entry

    two = has_two_outputs(model)
    # Plain SGD keeps no state, so the file holds the network and its loss and nothing else.
    model.compile("sgd", loss=dict.fromkeys((MAIN, AUXILIARY), loss) if two else loss)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / path.name)
        with zipfile.ZipFile(Path(scratch) / path.name) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
    for name in ("config.json", "metadata.json"):
        members[name] = json.dumps(json.loads(members[name], object_hook=numbered)).encode()
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, content in members.items():
            with zip_member(archive, name, len(content)) as stream:
                stream.write(content)


def load(path: Path) -> keras.Model:
    """Return the network in a `.keras` file that `save` wrote.

    Raises StageError where it is missing, damaged, or holds anything that `build` does not make:
    that is looked for before Keras makes objects of what the file names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(archive, path)
            found = sorted(archive.namelist())
            if found != MEMBERS:
                raise ValueError(f"expected {', '.join(MEMBERS)} in it, found {', '.join(found)}")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            json.loads(archive.read("config.json"), object_hook=refuse_strangers)
        return keras.models.load_model(path, safe_mode=True)
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to make it") from None
    except Exception as error:  # whatever zipfile, h5py and Keras stumble over in a damaged file
        cause = " ".join(str(error).split())
        raise StageError(
            f"{path}: not a readable model: {cause}; delete it, `dvc repro`"
        ) from error


def refuse_strangers(entry: dict[str, Any]) -> None:
    """Raise ValueError where an object in a model's configuration is none that `build` makes.

    Keras has layers that carry code (Lambda), unpickle it (TorchModuleWrapper) or read files, and
    imports what a configuration names; its safe mode is the second line of defence.
    """
    name, module = entry.get("class_name"), entry.get("module", "keras")
    if "class_name" in entry and (name not in PARTS or str(module).split(".")[0] != "keras"):
        raise ValueError(f"{module}.{name} is no part of the networks built here")


def predict(model: keras.Model, images: Floats, batch_size: int, threads: int) -> Floats:
    """Return the main output's probabilities (n, classes) float32 for `images`."""
    return portable(model, threads).probabilities(images, batch_size)


def mean_loss(model: keras.Model, labels: Floats, probabilities: Floats) -> float:
    """Return the mean loss of `probabilities`, both (n, classes), by the loss in the model's file.

    That is the one trained with, of the main output, without the smoothing of labels.
    """
    loss = model.loss[MAIN] if has_two_outputs(model) else model.loss
    losses = np.asarray(keras.losses.get(loss)(labels, probabilities))
    return float(losses.mean(dtype=np.float64))


def calibrate(twin: DataParallel, images: Floats, labels: Floats, batch_size: int) -> None:
    """Scale the main classifier's weights so that its probabilities fit `labels` best.

    Smoothed labels make a network less sure than it has reason to be. One factor for all undoes
    that and changes no prediction: Guo et al., "On calibration of modern neural networks", 2017.
    """
    found = twin.probabilities(images, batch_size)
    logits = np.log(np.maximum(found, 1e-30, dtype=np.float64))

    def cross_entropy(factor: float) -> float:
        return float(
            (logsumexp(factor * logits, axis=1) - (factor * logits * labels).sum(1)).mean()
        )

    best = minimize_scalar(cross_entropy, bounds=(0.1, 10), method="bounded").x
    factor = np.float32(round(best, 2))  # the last digits are the machine's
    classifier = twin.network.get_layer(MAIN)
    classifier.set_weights([factor * weights for weights in classifier.get_weights()])
