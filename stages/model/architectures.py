"""Build the networks that `model` in params.yaml describes, from Keras's standard layers."""

from collections.abc import Iterable

import keras

from stages.core.errors import StageError
from stages.model.settings import ModelParameters

Layers = list[keras.Layer]
Shape = tuple[int, ...]

MAIN, AUXILIARY = "main", "auxiliary"  # names of the outputs of the branched network


def build(parameters: ModelParameters, shape: Shape, classes: int) -> keras.Model:
    """Return an untrained network from images (n, *shape) in [0, 1] to probabilities (n, classes).

    `shape` is (height, width) or, in colour, (height, width, 3). The branched network returns a
    dictionary with two such outputs, `main` and `auxiliary`. Raises StageError if the images are
    too small for the convolutions.
    """
    side = compute_remaining_side(parameters, min(shape[:2]))
    if parameters.architecture != "dense" and side < 1:
        raise StageError(
            f"model.crop is {parameters.crop} and model.filters {parameters.filters}: images of "
            f"{shape[0]}x{shape[1]} pixels are too small for this; crop less or use fewer "
            "convolutions"
        )
    keras.utils.set_random_seed(parameters.seed)
    inputs = keras.Input(shape, name="images")
    if parameters.architecture == "branched":
        return keras.Model(inputs, make_branched_outputs(parameters, shape, classes, inputs))
    if parameters.architecture == "dense":
        layers = [
            keras.layers.Flatten(),
            *make_dense_layers(parameters),
            make_classifier_layer(classes, MAIN),
        ]
    else:
        layers = make_convolutional_layers(parameters, shape, classes)
    if parameters.api == "sequential":
        return keras.Sequential([inputs, *layers])
    return keras.Model(inputs, apply_layers(layers, inputs))


def compute_remaining_side(parameters: ModelParameters, side: int) -> int:
    """Return the width of an image after all convolutions; before them, it is `side` pixels wide.

    A result below 1 means that the image is too small. A convolution without padding reduces the
    width by its kernel size minus 1. Pooling between two groups halves the width.
    """
    first, *rest = parameters.filters
    side -= 2 * parameters.crop
    if parameters.architecture == "convolutional":
        side -= 4 + 2 * (len(first) - 1)
    for group in rest:
        side = side // 2 - 2 * len(group)
    return side


def has_two_outputs(model: keras.Model) -> bool:
    """Return whether `model` has an auxiliary output as well as the main one."""
    return len(model.outputs) == 2


def make_input_layers(parameters: ModelParameters, shape: Shape) -> Layers:
    """Return the input layers: add a channel axis to grey images (n, *shape), then crop."""
    layers: Layers = [] if len(shape) == 3 else [keras.layers.Reshape((*shape, 1))]
    if parameters.crop:
        layers.append(keras.layers.Cropping2D(parameters.crop))
    return layers


def make_convolutional_layers(parameters: ModelParameters, shape: Shape, classes: int) -> Layers:
    """Return groups of convolutions followed by dense layers."""
    return [
        *make_input_layers(parameters, shape),
        *make_convolution_groups(parameters.filters, parameters.batch_normalization, width=5),
        keras.layers.Flatten(),
        *make_dense_layers(parameters),
        make_classifier_layer(classes, MAIN),
    ]


def make_branched_outputs(
    parameters: ModelParameters, shape: Shape, classes: int, inputs: keras.KerasTensor
) -> dict[str, keras.KerasTensor]:
    """Return the main and the auxiliary output of a network with two branches.

    The first group of convolutions exists twice, with kernel sizes 3 and 5. Both see the same
    image, and their features are concatenated. An auxiliary classifier reads these features, so the
    gradient has a short path to the early layers: Szegedy et al., "Going deeper with convolutions",
    2015.
    """
    first, *rest = parameters.filters
    images = apply_layers(make_input_layers(parameters, shape), inputs)
    # With padding, both kernel sizes return feature maps of the same size.
    branches = [
        apply_layers(
            make_convolution_group(
                first, parameters.batch_normalization, width, "same", bool(rest)
            ),
            images,
        )
        for width in (3, 5)
    ]
    merged = keras.layers.Concatenate()(branches)
    features = apply_layers(make_convolution_groups(rest, parameters.batch_normalization), merged)
    trunk = [
        keras.layers.Flatten(),
        *make_dense_layers(parameters),
        make_classifier_layer(classes, MAIN),
    ]
    side = [keras.layers.GlobalAveragePooling2D(), make_classifier_layer(classes, AUXILIARY)]
    return {MAIN: apply_layers(trunk, features), AUXILIARY: apply_layers(side, merged)}


def make_convolution_groups(
    filters: list[list[int]], batch_normalization: bool, width: int = 3
) -> Layers:
    """Return groups of convolutions with pooling between them.

    `width` is the kernel size of the very first convolution; all others have kernel size 3.
    """
    layers: Layers = []
    for position, group in enumerate(filters, start=1):
        pool = position < len(filters)
        layers += make_convolution_group(group, batch_normalization, width, pool=pool)
        width = 3
    return layers


def make_convolution_group(
    group: list[int],
    batch_normalization: bool,
    width: int = 3,
    padding: str = "valid",
    pool: bool = True,
) -> Layers:
    """Return a group of convolutions; the last may be followed by pooling.

    `group` holds the number of filters of each convolution, and `width` is the kernel size of the
    first one. Pooling comes before normalisation and activation, so that these compute only a
    quarter of the values.
    """
    layers: Layers = []
    for position, filters in enumerate(group, start=1):
        layers.append(
            keras.layers.Conv2D(filters, width, padding=padding, use_bias=not batch_normalization)
        )
        if pool and position == len(group):
            layers.append(keras.layers.MaxPooling2D())
        if batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=0.9))
        layers.append(keras.layers.ReLU())
        width = 3
    return layers


def make_dense_layers(parameters: ModelParameters) -> Layers:
    """Return the hidden dense layers, with batch normalisation and dropout if they are on."""
    layers: Layers = []
    for units in parameters.hidden_units:
        layers.append(keras.layers.Dense(units, use_bias=not parameters.batch_normalization))
        if parameters.batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=0.9))
        layers.append(keras.layers.ReLU())
        if parameters.dropout:
            layers.append(keras.layers.Dropout(parameters.dropout))
    return layers


def make_classifier_layer(classes: int, name: str) -> keras.Layer:
    """Return the last layer: one probability for each class."""
    return keras.layers.Dense(classes, activation="softmax", name=name)


def apply_layers(layers: Iterable[keras.Layer], tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Return the output of `layers`, applied to `tensor` one after another."""
    for layer in layers:
        tensor = layer(tensor)
    return tensor
