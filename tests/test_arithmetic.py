"""Arithmetic is right, and rounds as recorded on every processor."""

import numpy as np
import pytest
from helpers.cases import EVERY_OPTION, make_sections

from stages.core.files import read_json

pytestmark = pytest.mark.usefixtures("tensorflow")


def multiply_in_order(left, right):
    """The product as a chain of fused multiply-adds, in the order of the inner dimension."""
    total = np.zeros((len(left), right.shape[1]), np.float32)
    for column, row in zip(left.T.astype(np.float64), right.astype(np.float64), strict=True):
        total = (total + column[:, None] * row).astype(np.float32)
    return total


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("columns", [1, 10, 24, 64])
def test_product_is_a_chain_of_fused_operations(draw, rows, columns):
    from stages.model import arithmetic

    left, right = draw(rows, 192), draw(192, columns)
    np.testing.assert_array_equal(arithmetic.multiply(left, right), multiply_in_order(left, right))
    left, right = draw(96, rows), draw(96, columns)
    found = arithmetic.multiply_rows(left, right)
    np.testing.assert_array_equal(found, multiply_in_order(left.T, right))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("channels", "filters"), [(1, 24), (3, 16), (20, 10)])
def test_convolution_is_a_chain_of_fused_operations(draw, count, channels, filters):
    from stages.model import arithmetic

    images, kernel = draw(count, 8, 9, channels), draw(3, 3, channels, filters)
    places = [images[:, i : i + 6, j : j + 7] for i in range(3) for j in range(3)]
    expected = multiply_in_order(
        np.concatenate(places, 3).reshape(-1, 9 * channels), kernel.reshape(-1, filters)
    )
    found = arithmetic.convolve(images, kernel)
    np.testing.assert_array_equal(found, expected.reshape(count, 6, 7, filters))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (8, 2), (24, 16)])
def test_gradient_of_images_is_a_chain_of_fused_operations(draw, count, channels, filters):
    from stages.model import arithmetic

    outer, kernel = draw(count, 6, 7, filters), draw(3, 3, channels, filters)
    wide = np.pad(outer, [(0, 0), (2, 2), (2, 2), (0, 0)])
    places = [wide[:, i : i + 8, j : j + 9] for i in range(3) for j in range(3)]
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, channels)
    expected = multiply_in_order(np.concatenate(places, 3).reshape(-1, 9 * filters), turned)
    found = arithmetic.convolve_transposed(outer, kernel)
    np.testing.assert_array_equal(found, expected.reshape(count, 8, 9, channels))


@pytest.mark.parametrize(
    ("images", "kernel"),
    [
        ((5, 9, 9, 1), (5, 5, 1, 24)),
        ((3, 8, 7, 24), (3, 3, 24, 48)),
        ((2, 6, 6, 200), (3, 3, 200, 10)),
        ((260, 5, 5, 8), (5, 5, 8, 10)),
        ((1, 6, 6, 100), (3, 3, 100, 16)),
    ],
)
def test_convolution_and_its_gradients_are_tensorflows(draw, images, kernel):
    import tensorflow as tf

    from stages.model import arithmetic

    inputs = [tf.constant(draw(*images)), tf.constant(draw(*kernel))]

    def differentiate(function):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs)
            loss = tf.reduce_sum(outputs * outputs)
        return outputs, *tape.gradient(loss, inputs)

    theirs = differentiate(lambda x, w: tf.nn.conv2d(x, w, 1, "VALID"))
    for a, b in zip(differentiate(arithmetic.convolve), theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("exp", np.linspace(-80, 80, 1001), np.exp),
        ("log", np.exp(np.linspace(-300, 300, 1001)), np.log),
        ("cos", np.linspace(-np.pi, np.pi, 1001), np.cos),
        ("sin", np.linspace(-np.pi, np.pi, 1001), np.sin),
    ],
)
def test_functions_are_numpys(name, values, expected):
    from stages.model import arithmetic

    found = getattr(arithmetic, name)(values)
    np.testing.assert_allclose(found, expected(values), rtol=2e-14, atol=1e-15)


# Keras and TensorFlow round these differently on some processors.
DIFFERENT = {"Conv2DBackpropFilter", "Conv2DBackpropInput", "Cos", "Exp", "FusedBatchNormV3"}
DIFFERENT |= {"ImageProjectiveTransformV3", "Log", "LogSoftmax", "Pow", "Rsqrt", "RsqrtGrad", "Sin"}
DIFFERENT |= {"Softmax", "SoftmaxCrossEntropyWithLogits", "SqrtGrad", "Tanh", "Sigmoid"}


@pytest.mark.parametrize("values", EVERY_OPTION, ids=lambda values: values["train.optimizer"])
def test_steps_have_no_operation_that_rounds_differently(values):
    """A version of Keras that no longer uses what the layers and optimizers override fails here."""
    import tensorflow as tf

    from stages.model import architectures, augmentation, optimizer, parallel, training

    model_parameters, parameters = make_sections(values | {"train.replicas": 1})
    model = architectures.build(model_parameters, (28, 28), 10)
    network = parallel.DataParallel(model, 1)
    network.compile(
        optimizer.make_optimizer(parameters, 10), training.make_loss(parameters), [], 0.3
    )

    @tf.function(autograph=False)
    def step(images, labels):
        images = augmentation.augment(images, tf.zeros(2, tf.int64), parameters.augmentation)
        if architectures.has_two_outputs(model):
            labels = dict.fromkeys((architectures.MAIN, architectures.AUXILIARY), labels)
        network.train_step((images, labels))

    graph = step.get_concrete_function(tf.TensorSpec((None, 28, 28)), tf.TensorSpec((None, 10)))
    definition = graph.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assert not {node.op for node in nodes} & DIFFERENT


@pytest.mark.slow
def test_every_case_has_the_recorded_hash(capsys):
    """So does every processor that runs this test; `make verify-cpus` emulates others."""
    from benchmarks import cpus

    assert cpus.run_probe(None) == read_json(cpus.RECORDED)
