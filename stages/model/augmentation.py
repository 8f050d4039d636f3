"""Move pictures at random, so that a network sees each digit a little differently every time."""

import math

import tensorflow as tf

from stages.model.settings import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Return `images` (n, height, width), each turned, zoomed and shifted by its own amounts.

    The amounts are uniform between minus and plus those of `augmentation`, the zoom of each axis
    by itself, and follow from `seed`, two int64. Around the centre, between pixels by bilinear
    interpolation, with 0 beyond the edge.
    """
    count, height, width = tf.unstack(tf.shape(images))
    amounts = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
    angle = amounts[0] * math.radians(augmentation.rotation)
    zoom_y, zoom_x = tf.unstack(1.0 + amounts[1:3] * augmentation.zoom)
    shift_y, shift_x = tf.unstack(amounts[3:5] * augmentation.shift)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    centre_y, centre_x = (tf.cast(side - 1, tf.float32) / 2 for side in (height, width))

    # The new picture's pixel (x, y) comes from the old one's (a x + b y + c, d x + e y + f).
    a, b, d, e = cosine * zoom_x, -sine * zoom_y, sine * zoom_x, cosine * zoom_y
    c = centre_x - a * centre_x - b * centre_y + shift_x
    f = centre_y - d * centre_x - e * centre_y + shift_y
    none = tf.zeros_like(angle)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images[..., tf.newaxis],
        transforms=tf.stack([a, b, c, d, e, f, none, none], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[..., 0]
