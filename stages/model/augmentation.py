"""Rotate, zoom and shift training images at random."""

import math

import tensorflow as tf

from stages.model import arithmetic
from stages.model.settings import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Return `images` (n, height, width[, 3]), each rotated, zoomed and shifted by random amounts.

    Each amount is uniform between minus and plus the value in `augmentation`; the two axes are
    zoomed independently. The amounts depend only on `seed`, which is two int64. Images are
    transformed around their centre with bilinear interpolation; pixels from outside the image are
    0.
    """
    count, height, width = tf.unstack(tf.shape(images)[:3])
    amounts = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
    angle = amounts[0] * math.radians(augmentation.rotation)
    zoom_y, zoom_x = tf.unstack(1.0 + amounts[1:3] * augmentation.zoom)
    shift_y, shift_x = tf.unstack(amounts[3:5] * augmentation.shift)
    cosine, sine = (tf.cast(f(angle), tf.float32) for f in (arithmetic.cos, arithmetic.sin))
    centre_y, centre_x = (tf.cast(side - 1, tf.float32) / 2 for side in (height, width))
    columns = tf.range(tf.cast(width, tf.float32)) - centre_x
    rows = tf.range(tf.cast(height, tf.float32))[:, tf.newaxis] - centre_y

    # Pixel (x, y) of the new image comes from (from_x, from_y) of the old one. Around that is a
    # border of zeros. TensorFlow's own transformation rounds differently on some processors.
    def spread(amounts: tf.Tensor) -> tf.Tensor:
        return amounts[:, tf.newaxis, tf.newaxis]

    from_x = spread(cosine * zoom_x) * columns - spread(sine * zoom_y) * rows
    from_y = spread(sine * zoom_x) * columns + spread(cosine * zoom_y) * rows
    from_x = tf.clip_by_value(from_x + spread(centre_x + shift_x), -1.0, 2 * centre_x + 1) + 1.0
    from_y = tf.clip_by_value(from_y + spread(centre_y + shift_y), -1.0, 2 * centre_y + 1) + 1.0
    left, top = tf.floor(from_x), tf.floor(from_y)
    right_part, lower_part = from_x - left, from_y - top
    if coloured := len(images.shape) == 4:
        right_part, lower_part = right_part[..., tf.newaxis], lower_part[..., tf.newaxis]
    padded = tf.pad(images, [[0, 0], [1, 2], [1, 2], [0, 0]][: len(images.shape)])
    pixels = tf.reshape(padded, (-1, images.shape[3]) if coloured else (-1,))
    first = spread(tf.range(count)) * (height + 3) + tf.cast(top, tf.int32)
    place = first * (width + 3) + tf.cast(left, tf.int32)
    upper, lower = (
        tf.gather(pixels, start) * (1.0 - right_part) + tf.gather(pixels, start + 1) * right_part
        for start in (place, place + width + 3)
    )
    return tf.ensure_shape(upper * (1.0 - lower_part) + lower * lower_part, images.shape)
