import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import idx
from stages.catalogue import TEST_IMAGES
from tools import picture
from tools.picture import PictureError

MNIST = ((28, 28), "mnist")


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
    return picture.prepare(picture.read(saved(with_seven(canvas()))), *MNIST)


def seen(content):
    return picture.prepare(picture.read(content), *MNIST)


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


@pytest.mark.parametrize("other", ["digits", "fashion_mnist", "custom"])
def test_shape_and_box_are_the_datasets(other):
    content = saved(with_seven(canvas()))
    found = picture.prepare(picture.read(content), (40, 64), other)
    assert (found.shape, found.dtype) == ((40, 64), np.float32)
    rows = np.ptp(np.nonzero(found.any(axis=1))[0]) + 1
    if other == "digits":
        assert rows == round(40 * 24 / 28)
    elif other == "fashion_mnist":  # negated, as a whole
        assert (found[0].max(), found.max()) == (0, 1)
    else:  # as it is
        assert (found[0].min(), found.min()) == (1, 0)
        assert found[:, :7].min() == 1  # 200x160 becomes 50x40, and paper beside it


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
        (bomb(60_000), "is a damaged picture: .* exceeds limit"),
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


@settings(max_examples=200)
@given(small_pictures(), st.sampled_from(["mnist", "digits", "fashion_mnist"]))
def test_any_colours_give_an_image_or_the_one_error(colours, dataset):
    try:
        image = picture.prepare(colours, (20, 28), dataset)
    except PictureError:
        return
    assert (image.shape, image.dtype) == ((20, 28), np.float32)
    assert image.min() >= 0
    assert image.max() <= 1
