"""Average the probabilities of several networks, or of one network over shifted images."""

from typing import Any

import keras


def average_members(members: list[keras.Model]) -> keras.Model:
    """Return a network whose probabilities are the means of the members' probabilities.

    A single member is returned as it is.
    """
    if len(members) == 1:
        return members[0]
    inputs = keras.Input(members[0].input_shape[1:], name="images")
    return keras.Model(inputs, average_outputs([member(inputs) for member in members]))


def average_over_shifts(model: keras.Model) -> keras.Model:
    """Return a network that averages `model`'s probabilities over an image and four shifts of it.

    The shifts are one pixel up, down, left and right, filled with 0; all five have equal weight.
    This is test-time augmentation as in Krizhevsky, Sutskever and Hinton, "ImageNet classification
    with deep convolutional neural networks", 2012, section 4.1.
    """
    shape = model.input_shape[1:]
    inputs = keras.Input(shape, name="images")
    channels = inputs if len(shape) == 3 else keras.layers.Reshape((*shape, 1))(inputs)
    padded = keras.layers.ZeroPadding2D(1)(channels)
    outputs = []
    for y, x in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        view = keras.layers.Cropping2D(((1 - y, 1 + y), (1 - x, 1 + x)))(padded)
        outputs.append(model(view if len(shape) == 3 else keras.layers.Reshape(shape)(view)))
    return keras.Model(inputs, average_outputs(outputs))


def average_outputs(outputs: list[Any]) -> Any:
    """Return the mean of several networks' outputs, or two means if each has two outputs."""
    return keras.tree.map_structure(lambda *each: keras.layers.Average()(each), *outputs)
