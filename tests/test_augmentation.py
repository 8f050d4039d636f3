import numpy as np
import pytest

from stages.model.augmentation import augment
from stages.model.settings import Augmentation

pytestmark = pytest.mark.usefixtures("settled")


def moved(images, seed=(1, 2), **amounts):
    zero = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0}
    return augment(images, seed, Augmentation.check(zero | amounts)).numpy()


def centres(images):
    """Return where the ink of each picture is on average: (n, 2), y and x."""
    ink = images / images.sum(axis=(1, 2), keepdims=True)
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    return np.stack([(ink * y).sum(axis=(1, 2)), (ink * x).sum(axis=(1, 2))], axis=1)


@pytest.fixture
def blocks():
    """500 pictures (32, 28), not square, of a block 4 high and 8 wide in the middle."""
    images = np.zeros((500, 32, 28), np.float32)
    images[:, 14:18, 10:18] = 1
    return images


def test_nothing_asked_for_changes_nothing(blocks):
    assert moved(blocks).tobytes() == blocks.tobytes()


def test_shift_moves_the_ink_by_up_to_that_many_pixels_in_either_direction(blocks):
    shifts = centres(moved(blocks, shift=3.0)) - centres(blocks)
    for axis in (0, 1):
        assert -3 <= shifts[:, axis].min() < -2.8
        assert 2.8 < shifts[:, axis].max() <= 3
        assert abs(shifts[:, axis].mean()) < 0.3
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.2  # each axis by itself


def test_rotation_turns_around_the_centre(blocks):
    turned = moved(blocks, rotation=90.0)
    assert centres(turned) == pytest.approx(centres(blocks), abs=0.05)
    assert turned.sum(axis=(1, 2)) == pytest.approx(np.full(500, 32), rel=0.05)
    y, x = np.mgrid[:32, :28]
    lean = (turned * (y - 15.5) * (x - 13.5)).sum(axis=(1, 2))
    assert lean.min() < -50  # -64 at 45 degrees: 32 pixels times (64 - 16) / 12 / 2
    assert lean.max() > 50


def test_zoom_scales_each_axis_by_up_to_that_share(blocks):
    shares = moved(blocks, zoom=0.25).sum(axis=(1, 2)) / 32
    assert 1 / 1.25**2 - 0.02 <= shares.min() < 0.75
    assert 1.6 < shares.max() <= 1 / 0.75**2 + 0.02


def test_amounts_follow_the_seed(blocks):
    assert moved(blocks, shift=1.0).tobytes() == moved(blocks, shift=1.0).tobytes()
    assert moved(blocks, shift=1.0).tobytes() != moved(blocks, (1, 3), shift=1.0).tobytes()
