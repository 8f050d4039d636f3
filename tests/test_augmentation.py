import numpy as np
import pytest

from stages.model.augmentation import augment
from stages.model.settings import Augmentation

pytestmark = pytest.mark.usefixtures("tensorflow")


def augmented(images, seed=(1, 2), **amounts):
    zero = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0}
    return augment(images, seed, Augmentation.check(zero | amounts)).numpy()


def centres(images):
    """Return the centre of mass of each image: (n, 2), y and x."""
    ink = images / images.sum(axis=(1, 2), keepdims=True)
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    return np.stack([(ink * y).sum(axis=(1, 2)), (ink * x).sum(axis=(1, 2))], axis=1)


@pytest.fixture
def blocks():
    """500 images of 32x28 pixels with a block of 4x8 pixels in the middle."""
    images = np.zeros((500, 32, 28), np.float32)
    images[:, 14:18, 10:18] = 1
    return images


def test_zero_amounts_change_nothing(blocks):
    assert augmented(blocks).tobytes() == blocks.tobytes()


def test_shift_moves_by_up_to_its_pixels(blocks):
    shifts = centres(augmented(blocks, shift=3.0)) - centres(blocks)
    for axis in (0, 1):
        assert -3 <= shifts[:, axis].min() < -2.8
        assert 2.8 < shifts[:, axis].max() <= 3
        assert abs(shifts[:, axis].mean()) < 0.3
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.2  # the axes are independent


def test_rotation_turns_around_the_centre(blocks):
    turned = augmented(blocks, rotation=90.0)
    assert centres(turned) == pytest.approx(centres(blocks), abs=0.05)
    assert turned.sum(axis=(1, 2)) == pytest.approx(np.full(500, 32), rel=0.05)
    y, x = np.mgrid[:32, :28]
    lean = (turned * (y - 15.5) * (x - 13.5)).sum(axis=(1, 2))
    assert lean.min() < -50  # -64 at 45 degrees: 32 pixels times (64 - 16) / 12 / 2
    assert lean.max() > 50


def test_zoom_scales_by_up_to_its_fraction(blocks):
    areas = augmented(blocks, zoom=0.25).sum(axis=(1, 2)) / 32
    assert 1 / 1.25**2 - 0.02 <= areas.min() < 0.75
    assert 1.6 < areas.max() <= 1 / 0.75**2 + 0.02


def test_amounts_depend_on_the_seed(blocks):
    assert augmented(blocks, shift=1.0).tobytes() == augmented(blocks, shift=1.0).tobytes()
    assert augmented(blocks, shift=1.0).tobytes() != augmented(blocks, (1, 3), shift=1.0).tobytes()
