"""Arithmetic that gives the same bits on every x86-64 processor with FMA and on every arm64.

TensorFlow's libraries choose their kernels by processor. Additions, multiplications, divisions,
square roots, comparisons and sums over all axes but the last round the same in all of them. So does
a product of matrices, as one chain of fused multiply-adds for each number, in the order of the
inner dimension, if that dimension is at most LONGEST and no kernel has rows or columns left over.
Everything here is made of these operations. TensorFlow's exponential, logarithm, sine, power,
softmax, gradients of convolutions, long products and sums over the last axis differ.
"""

import platform
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

LONGEST = 192  # the longest inner dimension that no kernel splits
CHUNK = 96  # the longest for a transposed left matrix
X86 = platform.machine() in ("x86_64", "AMD64")


def pad(tensor: tf.Tensor, axis: int, count: int | tf.Tensor) -> tf.Tensor:
    """Return `tensor` with `count` zeros added at the end of an axis. 0 of them cost nothing."""
    if isinstance(count, int) and not count:
        return tensor
    paddings: list[list[int | tf.Tensor]] = [[0, 0] for _ in tensor.shape]
    paddings[axis][1] = count
    padded = tf.pad(tensor, paddings)
    padded.set_shape([*tensor.shape[:axis], None, *tensor.shape[axis + 1 :]])
    return padded


def run_convolution(
    images: tf.Tensor, kernel: tf.Tensor, padding: tuple[int, int] = (0, 0)
) -> tf.Tensor:
    """Return TensorFlow's convolution, with shapes that leave no remainders.

    `padding` is how many rows of zeros are added above and below the images.
    On arm64, the kernels take 12 columns at a time, or 8. One image has code of its own, and so
    have fewer than 4 channels.
    """
    count, (_, _, channels, columns) = tf.shape(images)[0], kernel.shape
    extra = 0 if X86 else next(n for n in range(12) if (columns + n) % 12 in (0, 8))
    images, kernel = pad(images, 0, tf.maximum(2 - count, 0)), pad(kernel, 3, extra)
    images, kernel = pad(images, 3, max(4 - channels, 0)), pad(kernel, 2, max(4 - channels, 0))
    outputs = tf.nn.conv2d(images, kernel, 1, [(0, 0), padding, (0, 0), (0, 0)])[:count]
    return outputs[..., :columns] if extra else outputs


def multiply(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Return the product (m, n) of matrices (m, k) and (k, n), without a gradient."""
    rows, columns = left.shape[0] or tf.shape(left)[0], right.shape[1]
    left, right = pad(left, 0, -rows % 12), pad(right, 1, count_missing_columns(columns))
    sizes = [*split_length(right.shape[0])]
    parts = zip(tf.split(left, sizes, 1), tf.split(right, sizes), strict=True)
    return add_all(tf.matmul(*part) for part in parts)[:rows][:, :columns]


def split_length(length: int) -> Iterator[int]:
    """Yield the lengths of the parts of an inner dimension, each at most LONGEST."""
    for start in range(0, length, LONGEST):
        yield min(LONGEST, length - start)


def multiply_rows(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Return the product (m, n) of `left` (rows, m), transposed, and `right` (rows, n)."""
    m, n = left.shape[1], right.shape[1]
    rows = -tf.shape(left)[0] % CHUNK
    left, right = pad(left, 1, -m % 12), pad(right, 1, count_missing_columns(n))
    left, right = (
        tf.reshape(pad(matrix, 0, rows), (-1, CHUNK, matrix.shape[1])) for matrix in (left, right)
    )
    return tf.reduce_sum(tf.matmul(left, right, transpose_a=True), 0)[:m, :n]


def count_missing_columns(columns: int) -> int:
    """Return how many columns must be added so that no kernel of a batched product has some left.

    Kernels take 16 columns at a time on x86-64, and 12 or 8 on arm64.
    """
    extra = -columns % 16
    return extra + 16 if (columns + extra) % 48 == 16 else extra


def add_all(terms: Iterator[tf.Tensor]) -> tf.Tensor:
    """Return the sum of tensors of the same shape, added in their order."""
    first, *others = terms
    return tf.add_n([first, *others]) if others else first


@tf.custom_gradient
def multiply_dense(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return `inputs` (n, features) times `kernel` (features, units)."""

    def differentiate(outer: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return multiply(outer, tf.transpose(kernel)), multiply_rows(inputs, outer)

    return multiply(inputs, kernel), differentiate


@tf.custom_gradient
def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return the convolution of `images` (n, height, width, channels) without padding.

    `kernel` is (height, width, channels, filters).
    """
    height, width, channels, filters = kernel.shape
    taps = height * width * channels
    if channels < 4:
        # Kernels for a few channels add in another order. So the neighbours of a pixel become its
        # channels. A convolution with the identity copies them exactly.
        size = taps + count_missing_columns(taps)
        identity = tf.reshape(tf.eye(taps, size), (height, width, channels, size))
        patches = tf.nn.conv2d(images, identity, 1, "VALID")
        matrix = pad(tf.reshape(kernel, (taps, filters)), 0, size - taps)
        outputs = run_convolution(patches, matrix[None, None])
    else:
        patches = None
        down, right = images.shape[1] - height, images.shape[2] - width
        outputs = add_all(
            run_convolution(
                images[:, y.start : down + y.stop, x.start : right + x.stop, z], kernel[y, x, z]
            )
            for y, x, z in split_kernel(kernel)
        )

    def differentiate(outer: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if patches is None:
            change = correlate(images, outer, kernel.shape)
        else:
            rows = [tf.reshape(tensor, (-1, tensor.shape[3])) for tensor in (outer, patches)]
            change = tf.reshape(tf.transpose(multiply_rows(*rows))[:taps], kernel.shape)
        return convolve_transposed(outer, kernel), change

    return outputs, differentiate


def split_kernel(kernel: tf.Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the rows, columns and channels of the parts of a kernel.

    Each part has an inner dimension of at most LONGEST.
    """
    height, width, channels, _ = kernel.shape
    depth = min(channels, LONGEST)
    columns = min(width, LONGEST // depth)
    rows = max(1, LONGEST // (depth * columns)) if columns == width else 1
    for i in range(0, height, rows):
        for j in range(0, width, columns):
            for k in range(0, channels, depth):
                yield (
                    slice(i, min(i + rows, height)),
                    slice(j, min(j + columns, width)),
                    slice(k, k + depth),
                )


def convolve_transposed(outer: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return the gradient of a convolution's images from that of its outputs.

    It is a convolution, with padding, with the kernel turned around. TensorFlow pads the rows. With
    padded columns, its kernels add in another order.
    """
    height, width, _, _ = kernel.shape
    wide = tf.pad(outer, [(0, 0), (0, 0), (width - 1, width - 1), (0, 0)])
    right = wide.shape[2] - width
    turned = tf.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    return add_all(
        run_convolution(
            wide[:, :, x.start : right + x.stop, z],
            turned[y, x, z],
            (height - 1 - y.start, y.stop - 1),
        )
        for y, x, z in split_kernel(turned)
    )


def correlate(images: tf.Tensor, outer: tf.Tensor, kernel: tf.TensorShape) -> tf.Tensor:
    """Return the gradient of a convolution's kernel: the sum over all images and positions.

    There is a product for each position, whose inner dimension is the images; then the positions
    are added. More than LONGEST images are split into parts of the same size.
    """
    height, width, channels, filters = kernel
    (_, h, w, _), (_, oh, ow, _) = images.shape, outer.shape
    count = tf.shape(images)[0]
    parts = -(-count // LONGEST)
    size = -(-count // parts)
    images, outer = (pad(tensor, 0, parts * size - count) for tensor in (images, outer))
    # The rows come first, because TensorFlow takes some of them without a copy.
    left = tf.transpose(tf.reshape(images, (parts, size, h, w * channels)), (2, 0, 3, 1))
    right = tf.transpose(tf.reshape(outer, (parts, size, oh, ow, filters)), (2, 0, 3, 1, 4))
    neighbours = [[j + i for i in range(width)] for j in range(ow)]
    patches = tf.gather(tf.reshape(left, (h, parts, w, channels, size)), neighbours, axis=2)
    patches = tf.reshape(patches, (h, parts, ow, width * channels, size))
    patches = pad(patches, 3, -width * channels % 12)
    right = pad(right, 4, count_missing_columns(filters))
    products = (tf.matmul(patches[i : i + oh], right) for i in range(height))
    rows = [tf.reduce_sum(tf.reshape(each, (-1, *each.shape[3:])), 0) for each in products]
    return tf.reshape(tf.stack(rows)[:, : width * channels, :filters], kernel)


def add_rows(values: tf.Tensor) -> tf.Tensor:
    """Return the sum of `values` over all axes but the last.

    Kernels add several columns at a time, at most 8, and columns left over in another order.
    """
    columns = values.shape[-1] or tf.shape(values)[-1]
    flat = tf.reshape(values, (-1, columns))
    return tf.reduce_sum(pad(flat, 1, -columns % 8), 0)[:columns]


def add_columns(values: tf.Tensor) -> tf.Tensor:
    """Return the sum (n, 1) of each row of `values` (n, columns)."""
    return add_rows(tf.transpose(values))[:, None]


def add_up(values: tf.Tensor) -> tf.Tensor:
    """Return the sum of all numbers."""
    flat = tf.reshape(values, (-1,))
    sums = add_rows(tf.reshape(pad(flat, 0, -tf.size(flat) % 8), (-1, 8)))
    for half in (4, 2, 1):
        sums = sums[:half] + sums[half:]
    return sums[0]


def average_rows(values: tf.Tensor) -> tf.Tensor:
    """Return the mean of `values` over all axes but the last."""
    total = add_rows(values)
    return total / (tf.cast(tf.size(values) // tf.size(total), values.dtype))


@tf.custom_gradient
def add_bias(values: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return `values` (..., n) plus `bias` (n,)."""
    return values + bias, lambda outer: (outer, add_rows(outer))


@tf.custom_gradient
def normalize(
    values: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tuple[tf.Tensor, ...], Callable[..., object]]:
    """Return `values` (..., n), normalised over all axes but the last, their mean and variance.

    The mean and the variance have no gradient.
    """
    mean = average_rows(values)
    centred = values - mean
    variance = average_rows(centred * centred)
    deviation = tf.sqrt(variance + epsilon)
    factors = gamma / deviation

    def differentiate(outer: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        product = add_rows(outer * centred) / deviation
        total = add_rows(outer)
        count = tf.cast(tf.size(outer) // tf.size(total), outer.dtype)
        change = (outer - centred * (product / deviation / count) - total / count) * factors
        return change, product, total, None

    return (centred * factors + beta, mean, variance), differentiate


def exp(values: tf.Tensor) -> tf.Tensor:
    """Return e to the power of `values`, float64; below -700 it is that of -700."""
    values = tf.maximum(tf.cast(values, tf.float64), -700.0)
    exponent = tf.round(values * 1.4426950408889634)
    rest = values - exponent * 0.6931471805599453
    power = tf.cast((tf.cast(exponent, tf.int64) + 1023) * 2**52, tf.int64)
    return add_series(rest, [1 / n for n in range(1, 14)]) * tf.bitcast(power, tf.float64)


def add_series(values: tf.Tensor, ratios: list[float]) -> tf.Tensor:
    """Return 1 + values * ratios[0] * (1 + values * ratios[1] * (1 + ...)) by Horner's method."""
    total = tf.ones_like(values)
    for ratio in reversed(ratios):
        total = total * (values * ratio) + 1.0
    return total


def log(values: tf.Tensor) -> tf.Tensor:
    """Return the natural logarithm of positive `values`, float64."""
    bits = tf.bitcast(tf.cast(values, tf.float64), tf.int64)
    exponent = bits // 2**52 - 1023
    mantissa = tf.bitcast(bits % 2**52 + 1023 * 2**52, tf.float64)
    large = mantissa > 1.4142135623730951
    mantissa = tf.where(large, mantissa / 2, mantissa)
    exponent = tf.cast(exponent + tf.cast(large, tf.int64), tf.float64)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    ratios = [(2 * n - 1) / (2 * n + 1) for n in range(1, 12)]
    series = add_series(ratio * ratio, ratios)
    return exponent * 0.6931471805599453 + 2.0 * ratio * series


def cos(values: tf.Tensor) -> tf.Tensor:
    """Return the cosine of `values` between -pi and pi, float64."""
    values = tf.cast(values, tf.float64)
    return add_series(values * values, [-1 / (2 * n * (2 * n - 1)) for n in range(1, 15)])


def sin(values: tf.Tensor) -> tf.Tensor:
    """Return the sine of `values` between -pi and pi, float64."""
    values = tf.cast(values, tf.float64)
    ratios = [-1 / (2 * n * (2 * n + 1)) for n in range(1, 15)]
    return values * add_series(values * values, ratios)


def power(base: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """Return a positive `base` to the power of `exponent`, in the type of `exponent`."""
    exponent = tf.convert_to_tensor(exponent)
    logarithm = log(base)
    return tf.cast(exp(tf.cast(exponent, tf.float64) * logarithm), exponent.dtype)


@tf.custom_gradient
def softmax(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return the probabilities (n, classes) of `logits` (n, classes)."""
    powers = exp(logits - tf.reduce_max(logits, 1, keepdims=True))
    probabilities = tf.cast(powers / add_columns(powers), logits.dtype)

    def differentiate(outer: tf.Tensor) -> tf.Tensor:
        return probabilities * (outer - add_columns(probabilities * outer))

    return probabilities, differentiate


@tf.custom_gradient
def compute_cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor
) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return the mean cross-entropy of the softmax of `logits` for `labels`, both (n, classes)."""
    count = tf.cast(tf.shape(logits)[0], tf.float32)
    shifted = logits - tf.reduce_max(logits, 1, keepdims=True)
    powers = exp(shifted)
    total = add_columns(powers)
    losses = tf.cast(log(total), tf.float32) - add_columns(labels * shifted)

    def differentiate(outer: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = tf.cast(powers / total, tf.float32)
        return tf.zeros_like(labels), (probabilities - labels) * (outer / count)

    return add_up(losses) / count, differentiate


@tf.custom_gradient
def compute_squared_error(
    labels: tf.Tensor, probabilities: tf.Tensor
) -> tuple[tf.Tensor, Callable[..., object]]:
    """Return the mean squared difference of `labels` and `probabilities`, both (n, classes)."""
    count = tf.cast(tf.size(labels), tf.float32)
    differences = probabilities - labels

    def differentiate(outer: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros_like(labels), differences * (2.0 * outer / count)

    return add_up(differences * differences) / count, differentiate


class CategoricalCrossentropy(keras.losses.Loss):
    """Keras's loss with label smoothing, for probabilities that come from softmax."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Spread the fraction `label_smoothing` of each label over all classes."""
        super().__init__(name="categorical_crossentropy")
        self.label_smoothing = label_smoothing

    def __call__(self, labels: tf.Tensor, outputs: tf.Tensor, _: None = None) -> tf.Tensor:
        """Return the mean loss of `labels` and `outputs`, both (n, classes)."""
        smoothing = self.label_smoothing
        labels = labels * (1.0 - smoothing) + smoothing / labels.shape[1]
        return compute_cross_entropy(labels, outputs.logits)


class MeanSquaredError(keras.losses.Loss):
    """Keras's loss."""

    def __call__(self, labels: tf.Tensor, outputs: tf.Tensor, _: None = None) -> tf.Tensor:
        """Return the mean loss of `labels` and `outputs`, both (n, classes)."""
        return compute_squared_error(labels, outputs)
