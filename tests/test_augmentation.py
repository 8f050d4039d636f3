import numpy as np
import pytest
from scipy.ndimage import affine_transform

from stages.model.augmentation import augment
from stages.model.settings import Augmentation

pytestmark = pytest.mark.usefixtures("tensorflow")


def augmented(images, seed=(1, 2), **amounts):
    zero = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0}
    return augment(images, seed, Augmentation.check(zero | amounts)).numpy()


@pytest.fixture
def blocks():
    """200 images of 32x28 pixels with a block of 4x8 pixels near the middle."""
    images = np.zeros((200, 32, 28), np.float32)
    images[:, 12:16, 9:17] = 1
    return images


def test_zero_amounts_change_nothing(blocks):
    assert augmented(blocks).tobytes() == blocks.tobytes()


def test_images_are_transformed_as_by_scipy(blocks):
    """Each by its own amounts: the angle, the zoom of y and x, the shift of y and x."""
    import tensorflow as tf

    amounts = tf.random.stateless_uniform((5, len(blocks)), (1, 2), -1.0, 1.0).numpy()
    assert (amounts.min(axis=1) < -0.95).all()
    assert (amounts.max(axis=1) > 0.95).all()
    found = augmented(blocks, rotation=40.0, zoom=0.25, shift=3.0)
    centre = np.array([15.5, 13.5])
    for image, new, (turn, *zoom_and_shift) in zip(blocks, found, amounts.T, strict=True):
        cosine, sine = np.cos(np.radians(40 * turn)), np.sin(np.radians(40 * turn))
        zoom, shift = 1 + 0.25 * np.array(zoom_and_shift[:2]), 3 * np.array(zoom_and_shift[2:])
        matrix = np.array([[cosine, sine], [-sine, cosine]]) * zoom
        expected = affine_transform(image, matrix, centre - matrix @ centre + shift, order=1)
        np.testing.assert_allclose(new, expected, atol=1e-4)


def test_all_colours_of_an_image_change_alike(blocks):
    amounts = {"shift": 3.0, "rotation": 20.0, "zoom": 0.2}
    grey = augmented(blocks, **amounts)
    colours = augmented(np.stack([blocks, blocks / 2, 0 * blocks], axis=-1), **amounts)
    assert colours.shape == (*blocks.shape, 3)
    np.testing.assert_array_equal(colours[..., 0], grey)
    np.testing.assert_allclose(colours[..., 1], grey / 2, atol=1e-6)
    assert not colours[..., 2].any()


def test_amounts_depend_on_the_seed(blocks):
    assert augmented(blocks, shift=1.0).tobytes() == augmented(blocks, shift=1.0).tobytes()
    assert augmented(blocks, shift=1.0).tobytes() != augmented(blocks, (1, 3), shift=1.0).tobytes()
