"""Read an image file and prepare it as the images that the network was trained on.

MNIST was made from black-and-white scans. Each digit was scaled into a box of 20x20 pixels, with
its proportions and with the grey levels of anti-aliasing, and placed in 28x28 pixels so that its
centre of mass is in the middle (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied
to document recognition", 1998; http://yann.lecun.com/exdb/mnist). Yadav and Bottou found out the
details: each pixel is weighted by the area it covers, the darkest ink becomes full black, and how
the centre is rounded ("Cold case: the lost MNIST digits", 2019).

In this module, a photo is what the user gives: a photo, scan or drawing from an image file, as an
array (height, width, 3). An image is what the network takes.
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
from stages.core.files import Floats
from stages.sources.catalogue import DIGITS

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000  # the camera of a large phone; half a gigabyte of memory at most
WORKING_SIZE = 256  # longer side in pixels at which strokes are searched for

BACKGROUND_TOLERANCE = 0.1  # of the way from black to white: still background
MIN_CONTRAST = 0.06  # of the way from black to white: minimum contrast of ink
MIN_CONTRAST_TO_NOISE = 4  # minimum ratio of ink contrast to paper noise
EDGE_FRACTION = 0.05  # of the ink's contrast: fainter pixels are not part of a stroke
SPECK_FRACTION = 0.08  # of the largest part's size: smaller parts are dirt
SECOND_DIGIT_FRACTION = 0.5  # of the tallest part's height: a taller part beside it is a digit too
MAX_WIDTH_RATIO = 2.2  # width divided by height: no digit is wider

BLANK = "is blank: nothing stands out from the background"


class ImageFileError(StageError):
    """An image file that cannot be classified; the message is the rest of a sentence about it."""


@dataclass(frozen=True)
class ImageStyle:
    """How the images of a dataset look, so that a photo can be prepared in the same way."""

    shape: tuple[int, int]  # height and width
    background: float | None = None  # its level, 0 to 1; None if the edges have no common level
    box: tuple[int, int] | None = None  # size limit of strokes; None if images are not drawings
    digits: bool = False  # the classes are digits, so a photo may show only one of them

    @classmethod
    def measure(cls, images: Bytes, classes: Iterable[str]) -> Self:
        """Return the style of `images` (n, height, width), which should be many."""
        levels = images / np.float32(255)
        edges = [levels[:, [0, -1]], levels[:, :, [0, -1]]]
        around = np.concatenate([edge.reshape(len(levels), -1) for edge in edges], axis=1)
        background = float(np.median(around))
        empty = np.abs(around - background) < BACKGROUND_TOLERANCE
        if empty.mean() < 0.5:
            return cls(levels.shape[1:])
        strokes = (np.abs(levels - background) >= BACKGROUND_TOLERANCE).astype(np.uint8)
        sizes = [get_size(ndimage.find_objects(mask)[0]) for mask in strokes if mask.any()]
        if empty.all(axis=1).mean() < 0.9 or not sizes:
            return cls(levels.shape[1:], background)
        height, width = np.quantile(sizes, 0.99, axis=0, method="nearest").tolist()
        if height == levels.shape[1] or width == levels.shape[2]:
            return cls(levels.shape[1:], background)
        digits = all(name in DIGITS for name in classes)
        return cls(levels.shape[1:], background, (height, width), digits)


def read_image_file(content: bytes) -> Floats:
    """Return the photo in an image file: its colours (height, width, 3) in [0, 1].

    The photo is turned upright as the camera noted and shrunk to WORKING_SIZE. If it is
    transparent, it gets a background that contrasts with it. Raises ImageFileError if the content
    cannot be read or is too large.
    """
    if not content:
        raise ImageFileError("is empty")
    if len(content) > MAX_BYTES:
        raise ImageFileError(f"is larger than {MAX_BYTES // 2**20} MB")
    array = np.asarray(decode(content), np.float32) / np.float32(255)
    colours, alpha = array[:, :, :3], array[:, :, 3:]
    if alpha.size == 0:
        return colours
    dark = (colours * alpha).mean() < alpha.mean() / 2
    return colours * alpha + (1 - alpha if dark else 0)


def decode(content: bytes) -> Image.Image:
    """Return the photo in an image file as RGB or RGBA; check the number of pixels first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and sizes that are refused below
            with Image.open(io.BytesIO(content), formats=FORMATS) as photo:
                if photo.width * photo.height > MAX_PIXELS:
                    size = f"{photo.width}x{photo.height}"
                    raise ImageFileError(f"has {size} pixels; at most {MAX_PIXELS:,} are allowed")
                photo.draft("RGB", (WORKING_SIZE, WORKING_SIZE))  # JPEG can skip detail
                return convert_and_shrink(photo)
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageFileError(f"is not an image file in a known format ({formats})") from None
    except Image.DecompressionBombError:
        raise ImageFileError(f"has too many pixels; at most {MAX_PIXELS:,} are allowed") from None
    except ImageFileError:
        raise
    except Exception as error:  # Pillow raises many types of errors for damaged files
        raise ImageFileError(f"is a damaged image file: {error}") from error


def convert_and_shrink(photo: Image.Image) -> Image.Image:
    """Return a photo of any mode as RGB or RGBA, upright and no larger than WORKING_SIZE."""
    ImageOps.exif_transpose(photo, in_place=True)
    size = (WORKING_SIZE, WORKING_SIZE)
    if photo.mode[0] in "IF":  # 16 or 32 bits in each pixel, in a range that no format states
        photo = photo.convert("F")
        photo.thumbnail(size, Image.Resampling.BOX)
        levels = np.nan_to_num(np.asarray(photo, np.float64), posinf=0, neginf=0)
        low, high = levels.min(), levels.max()
        photo = Image.fromarray(np.uint8((levels - low) * (255 / max(high - low, 1e-30))))
    mode = "RGBA" if photo.has_transparency_data else "RGB"
    if photo.mode != mode:
        photo = photo.convert(mode)
    photo.thumbnail(size, Image.Resampling.BOX)
    return photo


def prepare(photo: Floats, style: ImageStyle) -> Floats:
    """Return the photo (height, width, 3) as an image in the dataset's style, in [0, 1].

    Raises ImageFileError if the dataset's images are drawings and the photo is blank or shows
    several digits.
    """
    if style.box is None:
        return scale_whole(photo, style)
    ink = measure_ink(photo)
    mask = find_strokes(ink, style.digits)
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    strokes = scale_strokes(np.where(mask, ink, 0)[rows, columns], style.box)
    image = place_in_centre(strokes, style.shape)
    return 1 - image if is_light(style.background) else image


def is_own_image(image: Floats, style: ImageStyle) -> bool:
    """Return whether an image looks like those of the dataset, so that it needs no preparation.

    It has their size. If they are drawings, its edges also have their background.
    """
    if image.shape != style.shape or style.box is None or style.background is None:
        return image.shape == style.shape
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return bool(abs(np.median(edges) - style.background) < BACKGROUND_TOLERANCE)


def is_light(level: float | None) -> bool:
    """Return whether a level is closer to white than to black."""
    return level is not None and level > 0.5


def scale_whole(photo: Floats, style: ImageStyle) -> Floats:
    """Return the brightness of the whole photo, scaled to the style's shape with its proportions.

    The space beside it gets the brightness of the photo's edges. The result is inverted if that
    brings the edges clearly closer to the dataset's background: light to dark, or dark to light.
    """
    level = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    around = np.median(edges)
    if style.background is not None:
        distance, inverted = (abs(style.background - to) for to in (around, 1 - around))
        if distance - inverted > BACKGROUND_TOLERANCE:
            level, around = 1 - level, 1 - around
    scale, size = find_scale(level.shape, style.shape)
    small = resize(level, size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    image = np.full(style.shape, around, np.float32)
    top, left = ((to - length) // 2 for to, length in zip(style.shape, size, strict=True))
    image[top : top + size[0], left : left + size[1]] = small
    limited: Floats = image.clip(0, 1)
    return limited


def find_scale(shape: tuple[int, ...], box: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return the factor that scales `shape` (height, width) to `box`, and the size after that."""
    scale = min(to / length for to, length in zip(box, shape, strict=True))
    height, width = (max(1, round(length * scale)) for length in shape)
    return scale, (height, width)


def measure_ink(photo: Floats) -> Floats:
    """Return the amount of ink in each pixel (height, width): about 0 on paper, more on strokes.

    Paper and ink may have any colours. The amount is the difference from the paper along the
    direction in colour space in which the pixels differ most.
    """
    difference = photo - estimate_paper(photo)
    pixels = difference.reshape(-1, 3).astype(np.float64)
    _, directions = np.linalg.eigh(pixels.T @ pixels)
    ink = difference @ directions[:, -1].astype(np.float32)
    return ink if (ink**3).sum() > 0 else -ink


def estimate_paper(photo: Floats) -> Floats:
    """Return the photo (height, width, 3) as it would be without the strokes.

    Light is uneven, so the paper is a quadratic surface, fitted by reweighted least squares: first
    to the edges of the photo, then to all pixels. In each round, pixels that differ from the
    surface, such as ink, get less weight.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in photo.shape[:2]), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    few = np.ix_(*(np.linspace(0, side - 1, min(side, 32)).astype(int) for side in x.shape))
    points, colours = terms[few].reshape(-1, 6), photo[few].reshape(-1, 3)
    edges = (np.abs(points[:, 1:3]).max(axis=1) == 1).astype(float)
    weights = edges
    for candidates in [edges] * 5 + [np.ones_like(edges)] * 5:
        root = np.sqrt(weights)[:, None]
        surface = np.linalg.lstsq(points * root, colours * root, rcond=None)[0]
        weights = candidates / (((colours - points @ surface) ** 2).sum(axis=1) + 1e-6)
    return np.asarray(terms @ surface, np.float32)


def find_strokes(ink: Floats, digits: bool) -> Mask:
    """Return the mask (height, width) of the pixels that belong to strokes.

    Raises ImageFileError if nothing stands out, and with `digits` also if there are several.
    """
    smooth = ndimage.gaussian_filter(ink, max(ink.shape) / 150)
    strong = smooth > find_otsu_threshold(smooth)
    if strong.all():
        raise ImageFileError(BLANK)
    typical = np.median(smooth[strong])
    noise = 1.4826 * np.median(np.abs(smooth[~strong]))  # a standard deviation without outliers
    if typical < max(MIN_CONTRAST, MIN_CONTRAST_TO_NOISE * noise):
        raise ImageFileError(BLANK)
    # Include the faint edges that anti-aliasing gives to strokes, but not the noise of the paper.
    faintest = max(MIN_CONTRAST_TO_NOISE * noise, EDGE_FRACTION * typical)
    labels, _ = ndimage.label(smooth >= faintest, np.ones((3, 3)))
    boxes = dict(enumerate(ndimage.find_objects(labels), 1))
    sizes = {
        part: max(get_size(boxes[part])) for part in np.unique(labels[strong]).tolist() if part
    }
    parts = [part for part, size in sizes.items() if size >= SPECK_FRACTION * max(sizes.values())]
    if digits:
        check_single_digit([boxes[part] for part in parts])
    mask: Mask = np.isin(labels, parts) & (ink >= faintest)
    if not mask.any():
        raise ImageFileError(BLANK)
    return mask


def get_size(box: tuple[slice, ...]) -> tuple[int, int]:
    """Return the height and width of a bounding box."""
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def check_single_digit(boxes: list[tuple[slice, ...]]) -> None:
    """Raise ImageFileError if parts with these bounding boxes are more than one digit.

    A part of a digit may be separate, such as the bar of a 5. Then it is less tall than the rest,
    or their rows and columns overlap.
    """
    first, *others = sorted(boxes, key=get_size, reverse=True)
    for box in others:
        apart = any(a.stop <= b.start or b.stop <= a.start for a, b in zip(first, box, strict=True))
        if apart and get_size(box)[0] >= SECOND_DIGIT_FRACTION * get_size(first)[0]:
            raise ImageFileError("shows several digits; only one at a time can be classified")
    rows, columns = (
        max(box[axis].stop for box in boxes) - min(box[axis].start for box in boxes)
        for axis in (0, 1)
    )
    if columns > MAX_WIDTH_RATIO * rows:
        raise ImageFileError(
            "shows something wider than a digit; only one digit at a time can be classified"
        )


def find_otsu_threshold(ink: Floats) -> float:
    """Return the threshold between paper and ink for which the two classes differ most.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    counts, bounds = np.histogram(ink, 256)
    centres = (bounds[:-1] + bounds[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, others = ink.size - below, counts @ centres - sums
    means = sums / np.maximum(below, 1), others / np.maximum(above, 1)
    variance = below * above * (means[0] - means[1]) ** 2
    return float(bounds[1 + variance.argmax()])


def scale_strokes(ink: Floats, box: tuple[int, int]) -> Floats:
    """Return the cropped strokes (height, width), scaled to `box`, with their darkest ink at 1.

    MNIST's scans were black and white, so all their grey comes from scaling. Grey in a photo comes
    from the camera or from earlier scaling. The larger the change of size, the more such grey there
    is, and the more the contrast is increased before scaling.
    """
    scale, (height, width) = find_scale(ink.shape, box)
    ink = ink / np.quantile(ink[ink > 0], 0.9)
    if scale > 1:
        ink = resize(ink, (4 * height, 4 * width), Image.Resampling.BICUBIC)
    steepness = max(scale, 1 / scale)
    ink = (0.5 + steepness * (ink - 0.5)).clip(0, 1)
    small = resize(ink, (height, width), Image.Resampling.BOX)
    return np.asarray(small / small.max(), np.float32)


def resize(ink: Floats, shape: tuple[int, int], method: Image.Resampling) -> Floats:
    """Return one channel in another shape; BOX weights each pixel by the area that it covers."""
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize(shape[::-1], method))


def place_in_centre(strokes: Floats, shape: tuple[int, int]) -> Floats:
    """Return an image of `shape` with the centre of mass of `strokes` in the middle.

    The strokes move by whole pixels, and no part of them leaves the image.
    """
    image = np.zeros(shape, np.float32)
    places = zip(shape, strokes.shape, ndimage.center_of_mass(strokes), strict=True)
    top, left = (min(max(0, round(to // 2 - at)), to - size) for to, size, at in places)
    image[top : top + strokes.shape[0], left : left + strokes.shape[1]] = strokes
    return image
