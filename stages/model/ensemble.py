"""TODO stages.model.ensemble."""

from typing import Any

import keras


def average_members(members: list[keras.Model]) -> keras.Model:
    """Return the network of the members' mean probabilities; of a single one, that itself."""
    if len(members) == 1:
        return members[0]
    inputs = keras.Input(members[0].input_shape[1:], name="images")
    return keras.Model(inputs, average_outputs([member(inputs) for member in members]))


def average_over_shifts(model: keras.Model) -> keras.Model:
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
    return keras.Model(inputs, average_outputs(outputs))


def average_outputs(outputs: list[Any]) -> Any:
    """Return the mean of what several calls of networks with the same outputs returned."""
    return keras.tree.map_structure(lambda *each: keras.layers.Average()(each), *outputs)
