"""Turn a picture of any kind into what the network was trained on.

MNIST was made from black-and-white scans: each digit was scaled into a box of 20x20 pixels, its
proportions kept, with the grey levels that anti-aliasing gives, and moved within 28x28 until its
centre of mass was in the middle (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning
applied to document recognition", 1998; http://yann.lecun.com/exdb/mnist). That the anti-aliasing
weighs each pixel by the area it covers, that the blackest is made full black, and where exactly the
middle is, Yadav and Bottou found out ("Cold case: the lost MNIST digits", 2019).
"""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from stages.core.errors import StageError
from stages.sources.catalogue import DIGITS

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000  # a large phone's camera; half a gigabyte of memory at most
WORKING_SIZE = 256  # pixels of the longer side, in which the digit is looked for

NEAR = 0.1  # of black from white: what differs less from a dataset's ground belongs to it
CONTRAST = 0.06  # least difference of ink from paper, if black from white is 1
UNEVENNESS = 4  # least ratio of that difference to what paper differs from itself
FAINT = 0.05  # of the ink's difference: what is fainter is no edge of the ink
SPECK = 0.08  # of the largest part's size: what is smaller is dirt
TALL = 0.5  # of the tallest part's height: what is as tall and stands apart is another digit
WIDE = 2.2  # of the height: no digit is as wide

BLANK = "is blank: nothing stands out in it"


class PictureError(StageError):
    """Why a picture cannot be judged."""


@dataclass(frozen=True)
class Look:
    """How the images of a dataset look, which is how the network has to be shown a picture."""

    shape: tuple[int, int]  # height and width
    ground: float | None = None  # the level around what they show, 0 to 1, where they have one
    box: tuple[int, int] | None = (
        None  # the most that a drawing takes of the shape; no drawings: None
    )
    digits: bool = False  # of which one picture may show several

    @classmethod
    def of(cls, images: Bytes, classes: Iterable[str]) -> Self:
        """Return how `images` (n, height, width) look, of which many should be given."""
        levels = images / np.float32(255)
        edges = [levels[:, [0, -1]], levels[:, :, [0, -1]]]
        around = np.concatenate([edge.reshape(len(levels), -1) for edge in edges], axis=1)
        ground = float(np.median(around))
        empty = np.abs(around - ground) < NEAR
        if empty.mean() < 0.5:
            return cls(levels.shape[1:])
        drawn = (np.abs(levels - ground) >= NEAR).astype(np.uint8)
        extents = [extent(ndimage.find_objects(mask)[0]) for mask in drawn if mask.any()]
        if empty.all(axis=1).mean() < 0.9 or not extents:
            return cls(levels.shape[1:], ground)
        height, width = np.quantile(extents, 0.99, axis=0, method="nearest").tolist()
        return cls(
            levels.shape[1:], ground, (height, width), all(name in DIGITS for name in classes)
        )


def read(content: bytes) -> Floats:
    """Return the colours in an image file as (height, width, 3) in [0, 1].

    The picture is turned the way its camera noted, made no larger than WORKING_SIZE, and laid on
    what contrasts with it where it is transparent. Raises PictureError where it is no picture.
    """
    if not content:
        raise PictureError("is empty")
    if len(content) > MAX_BYTES:
        raise PictureError(f"is larger than {MAX_BYTES // 2**20} MB")
    array = np.asarray(decoded(content), np.float32) / np.float32(255)
    opaque, alpha = array[:, :, :3], array[:, :, 3:]
    if alpha.size == 0:
        return opaque
    dark = (opaque * alpha).mean() < alpha.mean() / 2
    return opaque * alpha + (1 - alpha if dark else 0)


def decoded(content: bytes) -> Image.Image:
    """Return an image file's picture, RGB or RGBA, as `read` does; its size is bounded first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are refused below
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    size = f"{picture.width}x{picture.height}"
                    raise PictureError(f"has {size} pixels, of which {MAX_PIXELS:,} are allowed")
                picture.draft("RGB", (WORKING_SIZE, WORKING_SIZE))  # JPEG can skip detail
                return shrunk(picture)
    except UnidentifiedImageError:
        raise PictureError(f"is not a picture of a known kind ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"has more than the {MAX_PIXELS:,} pixels that are allowed") from None
    except PictureError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage makes of them
        raise PictureError(f"is a damaged picture: {error}") from error


def shrunk(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB or RGBA, upright and no larger than WORKING_SIZE."""
    ImageOps.exif_transpose(picture, in_place=True)
    size = (WORKING_SIZE, WORKING_SIZE)
    if picture.mode[0] in "IF":  # 16 or 32 bits a pixel, of which only the picture knows the range
        picture = picture.convert("F")
        picture.thumbnail(size, Image.Resampling.BOX)
        levels = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
        low, high = levels.min(), levels.max()
        picture = Image.fromarray(np.uint8((levels - low) * (255 / max(high - low, 1e-30))))
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    picture.thumbnail(size, Image.Resampling.BOX)
    return picture


def prepare(picture: Floats, look: Look) -> Floats:
    """Return a picture (height, width, 3) as the images of a dataset are: its shape, in [0, 1].

    Raises PictureError where a drawing is expected and there is none, or where there are several
    digits.
    """
    if look.box is None:
        return scaled(picture, look)
    level = ink(picture)
    mask = drawing(level, look.digits)
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    image = centred(fit(np.where(mask, level, 0)[rows, columns], look.box), look.shape)
    return 1 - image if light(look.ground) else image


def light(level: float | None) -> bool:
    """Return whether a level is nearer to white than to black."""
    return level is not None and level > 0.5


def scaled(picture: Floats, look: Look) -> Floats:
    """Return the picture's brightness in the look's shape, negated where its edges call for it.

    A picture of other proportions keeps them, on the brightness of its edges.
    """
    level = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    around = np.median(edges)
    if look.ground is not None and light(look.ground) != light(around):
        level, around = 1 - level, 1 - around
    scale, size = fitting(level.shape, look.shape)
    small = resized(level, size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    image = np.full(look.shape, around, np.float32)
    top, left = ((to - length) // 2 for to, length in zip(look.shape, size, strict=True))
    image[top : top + size[0], left : left + size[1]] = small
    limited: Floats = image.clip(0, 1)
    return limited


def fitting(shape: tuple[int, ...], box: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return by what to scale `shape` (height, width) into `box`, and the size it then has."""
    scale = min(to / length for to, length in zip(box, shape, strict=True))
    height, width = (max(1, round(length * scale)) for length in shape)
    return scale, (height, width)


def ink(picture: Floats) -> Floats:
    """Return how much each pixel (height, width) differs from the paper: 0 there, more on ink.

    Paper and ink may have any colours. The difference is measured along that direction in the space
    of colours in which pixels differ most.
    """
    difference = picture - paper(picture)
    pixels = difference.reshape(-1, 3).astype(np.float64)
    _, directions = np.linalg.eigh(pixels.T @ pixels)
    level = difference @ directions[:, -1].astype(np.float32)
    return level if (level**3).sum() > 0 else -level


def paper(picture: Floats) -> Floats:
    """Return the picture (height, width, 3) without what is written on it.

    A surface of second degree, since light is uneven, through the edges of the picture, and then
    through all that is like it: reweighted least squares, in which what is unlike, the ink, counts
    less in each round.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in picture.shape[:2]), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    few = np.ix_(*(np.linspace(0, side - 1, min(side, 32)).astype(int) for side in x.shape))
    points, found = terms[few].reshape(-1, 6), picture[few].reshape(-1, 3)
    edges = (np.abs(points[:, 1:3]).max(axis=1) == 1).astype(float)
    weights = edges
    for candidates in [edges] * 5 + [np.ones_like(edges)] * 5:
        root = np.sqrt(weights)[:, None]
        surface = np.linalg.lstsq(points * root, found * root, rcond=None)[0]
        weights = candidates / (((found - points @ surface) ** 2).sum(axis=1) + 1e-6)
    return np.asarray(terms @ surface, np.float32)


def drawing(level: Floats, digits: bool) -> Mask:
    """Return which pixels (height, width) are drawn on, given how far each is from paper.

    Raises PictureError where nothing stands out, and, of `digits`, where there are several.
    """
    smooth = ndimage.gaussian_filter(level, max(level.shape) / 150)
    strong = smooth > otsu(smooth)
    if strong.all():
        raise PictureError(BLANK)
    typical = np.median(smooth[strong])
    uneven = 1.4826 * np.median(np.abs(smooth[~strong]))  # a standard deviation, less the outliers
    if typical < max(CONTRAST, UNEVENNESS * uneven):
        raise PictureError(BLANK)
    # The ink, with the faint edges that anti-aliasing gives, but without what paper has.
    least = max(UNEVENNESS * uneven, FAINT * typical)
    labels, _ = ndimage.label(smooth >= least, np.ones((3, 3)))
    boxes = dict(enumerate(ndimage.find_objects(labels), 1))
    sizes = {part: max(extent(boxes[part])) for part in np.unique(labels[strong]).tolist() if part}
    parts = [part for part, size in sizes.items() if size >= SPECK * max(sizes.values())]
    if digits:
        check_single([boxes[part] for part in parts])
    mask: Mask = np.isin(labels, parts) & (level >= least)
    if not mask.any():
        raise PictureError(BLANK)
    return mask


def extent(box: tuple[slice, ...]) -> tuple[int, int]:
    """Return the height and width of a bounding box."""
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def check_single(boxes: list[tuple[slice, ...]]) -> None:
    """Raise PictureError where parts with these bounding boxes are more than one digit.

    A stroke may be apart from the rest, as the bar of a 5 often is; but then it is less tall, or
    the two reach past each other.
    """
    first, *others = sorted(boxes, key=extent, reverse=True)
    for box in others:
        apart = any(a.stop <= b.start or b.stop <= a.start for a, b in zip(first, box, strict=True))
        if apart and extent(box)[0] >= TALL * extent(first)[0]:
            raise PictureError("shows several digits: one at a time")
    rows, columns = (
        max(box[axis].stop for box in boxes) - min(box[axis].start for box in boxes)
        for axis in (0, 1)
    )
    if columns > WIDE * rows:
        raise PictureError("shows something wider than a digit: one at a time")


def otsu(level: Floats) -> float:
    """Return the level that parts paper from ink, such that the two differ most.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    counts, bounds = np.histogram(level, 256)
    middles = (bounds[:-1] + bounds[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    above, others = level.size - below, counts @ middles - sums
    means = sums / np.maximum(below, 1), others / np.maximum(above, 1)
    between = below * above * (means[0] - means[1]) ** 2
    return float(bounds[1 + between.argmax()])


def fit(level: Floats, box: tuple[int, int]) -> Floats:
    """Return the cut-out drawing (height, width) as large as `box` allows, its darkest ink 1.

    The further its size is from that, the nearer it is brought to black and white first, as the
    scans were: blurred edges and uneven ink come from a camera or an earlier scaling, grey is to
    come from this one.
    """
    scale, (height, width) = fitting(level.shape, box)
    level = level / np.quantile(level[level > 0], 0.9)
    if scale > 1:
        level = resized(level, (4 * height, 4 * width), Image.Resampling.BICUBIC)
    steepness = max(scale, 1 / scale)
    level = (0.5 + steepness * (level - 0.5)).clip(0, 1)
    small = resized(level, (height, width), Image.Resampling.BOX)
    return np.asarray(small / small.max(), np.float32)


def resized(level: Floats, shape: tuple[int, int], method: Image.Resampling) -> Floats:
    """Return one channel in another shape; Pillow's BOX weighs each pixel by the area it covers."""
    return np.asarray(Image.fromarray(level.astype(np.float32)).resize(shape[::-1], method))


def centred(cut: Floats, shape: tuple[int, int]) -> Floats:
    """Return the digit in an image of `shape`, moved by whole pixels: its mass in the middle.

    None of it is moved out of the image, for which the margins of MNIST leave room.
    """
    image = np.zeros(shape, np.float32)
    places = zip(shape, cut.shape, ndimage.center_of_mass(cut), strict=True)
    top, left = (min(max(0, round(to // 2 - at)), to - size) for to, size, at in places)
    image[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return image
