"""Rotate, zoom and shift training images at random."""

import math

import tensorflow as tf

from stages.model.settings import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Return `images` (n, height, width[, 3]), each rotated, zoomed and shifted by random amounts.

    Each amount is uniform between minus and plus the value in `augmentation`; the two axes are
    zoomed independently. The amounts depend only on `seed`, which is two int64. Images are
    transformed around their centre with bilinear interpolation; pixels from outside the image are
    0.
    """
    coloured = len(images.shape) == 4
    count, height, width = tf.unstack(tf.shape(images)[:3])
    amounts = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
    angle = amounts[0] * math.radians(augmentation.rotation)
    zoom_y, zoom_x = tf.unstack(1.0 + amounts[1:3] * augmentation.zoom)
    shift_y, shift_x = tf.unstack(amounts[3:5] * augmentation.shift)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    centre_y, centre_x = (tf.cast(side - 1, tf.float32) / 2 for side in (height, width))

    # Pixel (x, y) of the new image comes from (a x + b y + c, d x + e y + f) of the old one.
    a, b, d, e = cosine * zoom_x, -sine * zoom_y, sine * zoom_x, cosine * zoom_y
    c = centre_x - a * centre_x - b * centre_y + shift_x
    f = centre_y - d * centre_x - e * centre_y + shift_y
    zeros = tf.zeros_like(angle)
    changed = tf.raw_ops.ImageProjectiveTransformV3(
        images=images if coloured else images[..., tf.newaxis],
        transforms=tf.stack([a, b, c, d, e, f, zeros, zeros], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(changed if coloured else changed[..., 0], images.shape)
