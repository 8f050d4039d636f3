import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.sources import idx
from stages.sources.catalogue import DIGITS, TEST_IMAGES, TRAIN_IMAGES
from tools.predict.__main__ import picture
from tools.predict.picture import Look, PictureError

MNIST = Look((28, 28), 0.0, (20, 20), digits=True)


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def canvas(mode="L", size=(200, 160), background=255):
    return Image.new(mode, size, background)


def with_seven(image, ink=0, left=60, top=30):
    """The picture with a 7 of 80x100 pixels drawn on it."""
    pixels = image.load()
    for y in range(100):
        for x in range(80):
            if y < 14 or abs(x - (73 - 0.5 * y)) < 7:
                pixels[left + x, top + y] = ink
    return image


@pytest.fixture
def seven():
    return picture.prepare(picture.read(saved(with_seven(canvas()))), MNIST)


def seen(content):
    return picture.prepare(picture.read(content), MNIST)


def test_digit_fills_a_box_of_20_and_has_its_mass_in_the_middle(seven):
    assert (seven.shape, seven.dtype, seven.max()) == ((28, 28), np.float32, 1)
    rows, columns = np.nonzero(seven.any(axis=1))[0], np.nonzero(seven.any(axis=0))[0]
    assert np.ptp(rows) + 1 == 20
    assert np.ptp(columns) + 1 == 16  # 80 of 100 pixels, its proportions kept
    y, x = np.mgrid[:28, :28]
    for at in (x, y):
        assert abs((at * seven).sum() / seven.sum() - 14) <= 0.5


def test_grey_comes_from_the_area_that_ink_covers():
    # 48 pixels high, so that 2.4 of them are one; a bar of 6 covers 2.5 rows of the 20.
    image = canvas(size=(100, 100))
    image.paste(0, (40, 20, 50, 68))
    image.paste(0, (20, 20, 40, 26))
    found = seen(saved(image))
    column = found[:, np.nonzero(found.any(axis=0))[0][2]]
    np.testing.assert_allclose(column[column > 0], [1, 1, 0.5], atol=0.01)


def test_mnists_own_digits_come_through_as_they_are(mnist):
    digits = idx.read(mnist / TEST_IMAGES, 3, 200)
    found = np.stack([seen(saved(Image.fromarray(digit))) for digit in digits])
    off = np.abs(found - digits / 255).max(axis=(1, 2))
    # What is fainter than a twentieth of the ink is taken for paper; the few digits of which that
    # is a whole row become a little larger.
    assert (off < 0.05).mean() > 0.98


@pytest.mark.parametrize(
    "content",
    {
        "light on dark": saved(with_seven(canvas(background=0), 255)),
        "elsewhere": saved(with_seven(canvas(size=(256, 200)), left=170, top=95)),
        "grey on grey": saved(with_seven(canvas(background=120), 150)),
        "red on equally bright green": saved(
            with_seven(canvas("RGB", background=(60, 142, 60)), (220, 60, 60))
        ),
        "black on transparent": saved(
            with_seven(canvas("RGBA", background=(0,) * 4), (0, 0, 0, 255))
        ),
        "white on transparent": saved(with_seven(canvas("LA", background=(255, 0)), (255, 255))),
        "palette": saved(with_seven(canvas()).convert("P"), "GIF"),
        "one bit": saved(with_seven(canvas()).convert("1"), "BMP"),
        "16 bits": saved(Image.fromarray(np.uint16(np.asarray(with_seven(canvas()))) * 9)),
        "floats": saved(Image.fromarray(np.float32(np.asarray(with_seven(canvas()))) / 7), "TIFF"),
        "CMYK": saved(with_seven(canvas()).convert("CMYK"), "JPEG", quality=95),
        "lossless": saved(with_seven(canvas()), "WEBP", lossless=True),
        "sideways, as a camera notes": saved(
            with_seven(canvas()).transpose(Image.Transpose.ROTATE_90),
            "PNG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_any_kind_of_picture_of_the_same_digit_is_seen_alike(seven, content):
    np.testing.assert_allclose(seen(content[1]), seven, atol=0.08)


def test_large_and_uneven_photo_is_seen_alike(seven):
    rng = np.random.default_rng(0)
    page = np.asarray(with_seven(canvas(size=(200, 160))).resize((3000, 2400)), float)
    light = np.linspace(1, 0.5, 3000) * np.linspace(0.8, 1, 2400)[:, None]
    levels = (40 + 0.7 * page) * light + rng.normal(0, 8, page.shape)
    photo = Image.fromarray(np.uint8(levels.clip(0, 255)))
    found = seen(saved(photo, "JPEG", quality=60))
    np.testing.assert_allclose(found, seven, atol=0.4)  # the edges' grey, by a third of a pixel
    assert np.abs(found - seven).mean() < 0.01


@pytest.mark.parametrize(
    "image",
    {
        "white": canvas(),
        "one pixel": canvas(size=(1, 1)),
        "transparent": canvas("RGBA", background=(0,) * 4),
        "a shade": Image.linear_gradient("L"),
        "noise": Image.fromarray(
            np.random.default_rng(0).normal(128, 9, (99, 99)).astype(np.uint8)
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_blank_picture_is_said_to_be_blank(image):
    with pytest.raises(PictureError, match="is blank"):
        seen(saved(image[1]))


def test_several_digits_are_said_to_be_several():
    two = with_seven(with_seven(canvas(size=(300, 300)), left=20), left=160)
    above = with_seven(with_seven(canvas(size=(300, 300)), top=20), top=160)
    for image in (two, above):
        with pytest.raises(PictureError, match="several digits"):
            seen(saved(image))
    line = canvas(size=(300, 100))
    line.paste(0, (20, 40, 280, 60))
    with pytest.raises(PictureError, match="wider than a digit"):
        seen(saved(line))


def test_a_bar_apart_and_dirt_make_no_second_digit():
    image = with_seven(canvas())
    image.paste(255, (60, 46, 140, 50))  # cuts the bar of the 7 off
    image.paste(0, (5, 5, 9, 9))
    found = seen(saved(image))
    assert np.ptp(np.nonzero(found.any(axis=1))[0]) + 1 == 20  # the bar is part, the dirt is not


def test_a_datasets_look_is_measured(mnist):
    assert Look.of(idx.read(mnist / TRAIN_IMAGES, 3, 1000), DIGITS) == MNIST

    drawings = np.full((50, 20, 24), 255, np.uint8)  # black on white, at most 14 high and 10 wide
    for number, image in enumerate(drawings):
        image[3 : 3 + 5 + number % 10, 6 : 6 + 6 + number % 5] = 0
    drawings[0] = 255  # one is blank
    expected = Look((20, 24), 1.0, (14, 10), digits=False)
    assert Look.of(drawings, ["ga", "na", "da"]) == expected
    assert Look.of(drawings, ["3", "8"]).digits
    assert Look.of(np.zeros((5, 9, 9), np.uint8), DIGITS) == Look((9, 9), 0.0)

    # Things before a dark wall reach its edges, of a landscape the edges are anything.
    things = np.zeros((50, 20, 24), np.uint8)
    things[:, :, 8:14] = 200
    assert Look.of(things, ["ga", "na"]) == Look((20, 24), 0.0)
    landscapes = np.random.default_rng(0).integers(0, 256, (50, 20, 24), np.uint8)
    assert Look.of(landscapes, ["ga", "na"]) == Look((20, 24))


def test_a_drawing_is_fitted_into_the_datasets_box_on_its_ground():
    found = picture.prepare(
        picture.read(saved(with_seven(canvas()))), Look((40, 64), 1.0, (30, 18))
    )
    assert (found.shape, found.dtype, found.min(), found.max()) == ((40, 64), np.float32, 0, 1)
    height, width = (np.ptp(np.nonzero((found < 1).any(axis=axis))[0]) + 1 for axis in (1, 0))
    assert (height, width) == (22, 18)  # 100 x 80 pixels: the width decides


@pytest.mark.parametrize("ground", [0.0, 1.0, None])
def test_a_thing_is_scaled_as_a_whole_onto_the_datasets_ground(ground):
    found = picture.prepare(picture.read(saved(with_seven(canvas()))), Look((40, 64), ground))
    around = 1 if ground is None else ground  # none: as the picture is
    assert (found.shape, found.dtype) == ((40, 64), np.float32)
    assert (found[:, :7] == around).all()  # 200 x 160 becomes 50 x 40, and paper beside it
    rows, columns = np.nonzero(np.abs(found - around) > 0.5)
    assert (rows.min(), rows.max()) == (8, 32 - 1)  # 30 to 130 of 160, and Pillow's soft edges
    assert (columns.min(), columns.max()) == (22, 42 - 1)


def test_what_is_no_digit_may_have_parts():
    two = picture.read(saved(with_seven(with_seven(canvas(size=(300, 300)), left=20), left=160)))
    found = picture.prepare(two, Look((28, 28), 0.0, (20, 20)))
    assert np.ptp(np.nonzero(found.any(axis=0))[0]) + 1 == 20


def bomb(side):
    """A PNG of side x side pixels in a few bytes."""

    def chunk(name, content):
        code = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + code

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\0" * (picture.MAX_BYTES + 1), "is larger than 32 MB"),
        (b"<!doctype html><title>404</title>", "is not a picture of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (saved(with_seven(canvas()))[:200], "is a damaged picture"),
        (bomb(9_000), "has 9000x9000 pixels, of which 64,000,000 are allowed"),
        (bomb(12_000), "has 12000x12000 pixels"),
        (bomb(60_000), "has more than the 64,000,000 pixels that are allowed"),
    ],
)
def test_what_is_no_picture_is_named_in_one_line(content, message):
    with pytest.raises(PictureError, match=message) as caught:
        picture.read(content)
    assert "\n" not in str(caught.value)


KINDS = [
    saved(with_seven(canvas(size=(160, 140))).resize((40, 35)).convert(mode), kind)
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("BMP", "1"),
        ("JPEG", "L"),
        ("TIFF", "F"),
        ("WEBP", "RGB"),
    ]
]


@st.composite
def damaged(draw):
    """A real picture of any kind with some bytes changed, and perhaps cut short."""
    content = bytearray(draw(st.sampled_from(KINDS)))
    changes = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in draw(st.lists(changes, max_size=8)):
        content[at] = value
    return bytes(content[: draw(st.integers(1, len(content)))] if draw(st.booleans()) else content)


@settings(max_examples=400)
@given(damaged() | st.binary(max_size=200))
@example(KINDS[0])
def test_any_bytes_give_colours_or_the_one_error(content):
    try:
        colours = picture.read(content)
    except PictureError:
        return
    assert colours.dtype == np.float32
    assert (colours.ndim, colours.shape[2]) == (3, 3)
    assert max(colours.shape) <= picture.WORKING_SIZE
    assert colours.min() >= 0
    assert colours.max() <= 1


@st.composite
def small_pictures(draw):
    height, width, levels = (draw(st.integers(1, high)) for high in (12, 12, 4))
    values = st.sampled_from(np.linspace(0, 1, levels).tolist())
    pixels = draw(st.lists(values, min_size=height * width, max_size=height * width))
    return np.array(pixels, np.float32).reshape(height, width, 1).repeat(3, axis=2)


LOOKS = [
    Look((20, 28), ground, box, digits)
    for ground in (0.0, 1.0)
    for box, digits in (((20, 20), True), ((1, 9), False), (None, False))
]


@settings(max_examples=200)
@given(small_pictures(), st.sampled_from(LOOKS))
def test_any_colours_give_an_image_or_the_one_error(colours, look):
    try:
        image = picture.prepare(colours, look)
    except PictureError:
        return
    assert (image.shape, image.dtype) == ((20, 28), np.float32)
    assert image.min() >= 0
    assert image.max() <= 1
