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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from stages.core.errors import StageError
from stages.core.files import Bytes, Floats
from stages.sources.catalogue import DIGITS
from stages.sources.image_files import FORMATS, HEIC_BRANDS, MAX_PIXELS
from tools.predict.lines import remove_lines
from tools.predict.sheet import flatten_sheet

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.floating]
Boxes = npt.NDArray[np.integer]  # left, top, width, height and area of connected parts (n, 5)

MAX_BYTES = 32 * 2**20
WORKING_SIZE = 640  # longer side in pixels at which the digit is searched for

SMALL_PHOTO = 320  # longer side in pixels: smaller ones are crops or drawings, not from a camera
MAX_NESTED = 3  # sheets in each other: with one, a form's box on a sheet on a desk stays
PAPER_EDGES = 0.15  # of the ink's contrast: with smaller ones, the edges certainly show paper
LOCAL = 0.25  # of the photo's longer side: wider things, such as a shadow, are not ink
EVEN_LOCAL = 0.4  # the same without a shadow: with less, the hole of a thick digit is ink
SURROUNDINGS = 0.04  # of the photo's longer side: wider things, such as reflections, are not sharp
BACKGROUND_TOLERANCE = 0.1  # of the way from black to white: still background
MIN_CONTRAST = 0.06  # of the way from black to white: with less, fibres of blank paper are ink
MIN_CONTRAST_TO_NOISE = 4  # with less, the noise of blank paper is ink
EDGE_FRACTION = 0.05  # of the ink's contrast: fainter pixels are not part of a stroke
SPECK_FRACTION = 0.08  # of the largest part's size: smaller parts are dirt
DOT_FRACTION = 0.2  # of the largest part's size: many smaller parts are a pattern of dots
MIN_DOTS = 6  # with fewer, the pieces of an interrupted stroke are dots
SECOND_DIGIT_FRACTION = 0.5  # of the tallest part's height: a taller part beside it is a digit too
FAR = 0.25  # of the tallest part's height: small parts that are farther away are something else
SMALL_PART = 0.7  # of the tallest part's height: larger parts far from it are a second digit
MIN_GAP = 0.06  # of the tallest part's height: closer parts are one digit, drawn with a break
WIDE = 0.6  # width divided by height, of a digit that is made wider
MIN_STROKE = 1.6  # of MNIST's pixels: thinner strokes are made wider
THICK_STROKE = 3.5  # of MNIST's pixels: thicker than nine in ten of its digits
MAX_WIDTH_RATIO = 2.2  # width divided by height: no digit is wider

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
BLANK = "is blank: nothing stands out from the background"


class ImageFileError(StageError):
    """An image file that cannot be classified; the message is the rest of a sentence about it."""

    steps: Mapping[str, Floats] = MappingProxyType({})  # of the preparation, before the failure


@dataclass(frozen=True)
class ImageStyle:
    """How the images of a dataset look, so that a photo can be prepared in the same way."""

    shape: tuple[int, ...]  # height and width, and 3 in colour
    background: float | None = None  # its level, 0 to 1; None if the edges have no common level
    box: tuple[int, int] | None = None  # size limit of strokes; None if images are not drawings
    digits: bool = False  # the classes are digits, so a photo may show only one of them
    smallest: float = 0  # drawing, as a share of `box`
    farthest: float = np.inf  # distance of a centre of mass from the middle, in pixels

    @classmethod
    def measure(cls, images: Bytes, classes: Iterable[str]) -> Self:
        """Return the style of `images` (n, height, width[, 3]), which should be many.

        Images in colour are never drawings.
        """
        if images.ndim == 4:
            return cls(images.shape[1:])
        levels = images / np.float32(255)
        edges = [levels[:, [0, -1]], levels[:, :, [0, -1]]]
        around = np.concatenate([edge.reshape(len(levels), -1) for edge in edges], axis=1)
        background = float(np.median(around))
        empty = np.abs(around - background) < BACKGROUND_TOLERANCE
        if empty.mean() < 0.5:
            return cls(levels.shape[1:])
        places = [place for level in levels if (place := measure_place(level - background))]
        if empty.all(axis=1).mean() < 0.9 or not places:
            return cls(levels.shape[1:], background)
        sizes, distances = map(np.array, zip(*places, strict=True))
        box = np.quantile(sizes, 0.99, axis=0, method="nearest").tolist()
        if box[0] == levels.shape[1] or box[1] == levels.shape[2]:
            return cls(levels.shape[1:], background)
        digits = all(name in DIGITS for name in classes)
        smallest = float((sizes / box).max(axis=1).min())
        return cls(levels.shape[1:], background, tuple(box), digits, smallest, max(distances))


def read_image_file(content: bytes) -> Floats:
    """Return the photo in an image file: its colours (height, width, 3) in [0, 1].

    The photo is turned upright as the camera noted and shrunk to WORKING_SIZE. If it is
    transparent, it gets a background that contrasts with it. Raises ImageFileError if the content
    cannot be read or is too large.
    """
    array = np.asarray(decode(content), np.float32) / np.float32(255)
    colours, alpha = array[:, :, :3], array[:, :, 3:]
    if alpha.size == 0:
        return colours
    dark = (colours * alpha).mean() < alpha.mean() / 2
    return colours * alpha + (1 - alpha if dark else 0)


def check_length(content: bytes) -> None:
    """Raise ImageFileError if an image file is empty or too large."""
    if not content:
        raise ImageFileError("is empty")
    if len(content) > MAX_BYTES:
        raise ImageFileError(f"is larger than {MAX_BYTES // 2**20} MB")


def decode(content: bytes) -> Image.Image:
    """Return the photo in an image file as RGB or RGBA; check the number of pixels first."""
    check_length(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and sizes, which are checked
            with Image.open(io.BytesIO(content), formats=FORMATS) as photo:
                if photo.width * photo.height > MAX_PIXELS:
                    size = f"{photo.width}x{photo.height}"
                    raise ImageFileError(f"has {size} pixels; at most {MAX_PIXELS:,} are allowed")
                photo.draft("RGB", (WORKING_SIZE, WORKING_SIZE))  # JPEG can skip detail
                return convert_and_shrink(photo)
    except ImageFileError:
        raise
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
            raise ImageFileError("is a HEIC file; save or export it as JPEG first") from None
        formats = ", ".join(FORMATS)
        raise ImageFileError(f"is not an image file in a known format ({formats})") from None
    except Image.DecompressionBombError:
        raise ImageFileError(f"has too many pixels; at most {MAX_PIXELS:,} are allowed") from None
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


def is_from_camera(photo: Floats) -> bool:
    """Return whether a photo is large enough to be from a camera, with other things in it."""
    return bool(max(photo.shape) > SMALL_PHOTO)


def list_steps(photo: Floats, style: ImageStyle, way: str = "") -> dict[str, Floats]:
    """Return what is made of the photo (height, width, 3) step by step, by the steps' names.

    Each is (height, width) or (height, width, 3) in [0, 1]. A step that changes nothing is left
    out. The last one is an image in the dataset's style. Raises ImageFileError if the dataset's
    images are drawings and the photo is blank or shows several digits. For drawings, `way` says
    what is done differently:

    - "widen": a digit narrower than WIDE gets this width.
    - "thin": strokes become thinner if they are thicker than most of MNIST's.
    - "camera": a small photo is prepared like one from a camera.
    - "padded", for a camera: what touches the photo's edge is paper.
    - "inverted", for a camera: ink and paper change places, unless the photo's edges show which is
      which.
    - "unflattened", for a camera: no sheet is searched for.
    """
    steps = {"photo": photo}
    if style.box is None:
        return steps | {"network input": scale_whole(photo, style)}
    camera = way == "camera" or is_from_camera(photo)
    if not camera:
        ink, _ = measure_ink(photo)
        steps["ink"] = show_ink(ink)
    else:
        for _ in range(0 if way == "unflattened" else MAX_NESTED):
            sheet = flatten_sheet(photo)
            if sheet is None:
                break
            steps["sheet"] = photo = sheet
        ink = measure_local_ink(photo, way)
        steps["ink"] = show_ink(ink)
        cleaned = remove_lines(ink, 0.5 * find_otsu_threshold(ndimage.gaussian_filter(ink, 1)))
        if cleaned is not None:
            ink = cleaned
            steps["lines removed"] = show_ink(ink)
    try:
        mask = find_strokes(ink, style.digits, camera)
    except ImageFileError as error:
        error.steps = steps
        raise
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    found = np.where(mask, ink, 0)[rows, columns]
    if way == "widen":
        height, width = found.shape
        found = resize(found, (height, max(width, round(WIDE * height))), Image.Resampling.BICUBIC)
    strokes = scale_strokes(found, style.box, camera, way == "thin")
    image = place_in_centre(strokes, style.shape)
    steps["strokes"] = mask.astype(np.float32)
    return steps | {"network input": 1 - image if (style.background or 0) > 0.5 else image}


def show_ink(ink: Floats) -> Floats:
    """Return the ink as an image in [0, 1], for people to look at."""
    return np.asarray((ink / max(1e-6, float(np.quantile(ink, 0.998)))).clip(0, 1), np.float32)


def measure_place(strokes: Floats) -> tuple[tuple[int, int], float] | None:
    """Return the size of a drawing and how far its centre of mass is from the image's middle.

    `strokes` is an image (height, width) minus its background. Returns None if it is blank.
    """
    ink = np.abs(strokes)
    _, _, width, height = cv2.boundingRect(np.asarray(ink >= BACKGROUND_TOLERANCE, np.uint8))
    if not height:
        return None
    centre = np.array(ndimage.center_of_mass(ink))
    return (height, width), float(np.hypot(*(centre - np.array(ink.shape) // 2)))


def is_own_image(image: Floats, style: ImageStyle) -> bool:
    """Return whether an image looks like those of the dataset, so that it needs no preparation.

    It has their size. If they are drawings, its edges also have their background. If they are
    digits, its digit is also as large as theirs, and in the middle if theirs are. An image that is
    filled from edge to edge shows something else, such as the clothes of Fashion-MNIST.
    """
    if image.shape != style.shape or style.box is None or style.background is None:
        return image.shape == style.shape
    if abs(np.median(get_edges(image)) - style.background) >= BACKGROUND_TOLERANCE:
        return False
    place = measure_place(image - style.background)
    if place is None:
        raise ImageFileError(BLANK)
    size, distance = np.array(place[0]) / style.box, place[1]
    usual = 0.9 * style.smallest <= size.max() <= 1.1 and distance <= 1.1 * style.farthest
    fills = any(side >= full - 1 for side, full in zip(place[0], image.shape, strict=True))
    return bool(usual or fills) or not style.digits


def get_edges(level: Floats) -> Floats:
    """Return the pixels at the four edges of an image or photo (height, width)."""
    return np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])


def scale_whole(photo: Floats, style: ImageStyle) -> Floats:
    """Return the brightness of the whole photo, scaled to the style's shape with its proportions.

    The space beside it gets the brightness of the photo's edges. The result is inverted if that
    brings the edges clearly closer to the dataset's background: light to dark, or dark to light.
    """
    level = photo @ LUMINANCE
    around = np.median(get_edges(level))
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


def find_scale(shape: tuple[int, ...], box: tuple[int, ...]) -> tuple[float, tuple[int, int]]:
    """Return the factor that scales `shape` (height, width) to `box`, and the size after that."""
    scale = min(to / length for to, length in zip(box, shape, strict=True))
    height, width = (max(1, round(length * scale)) for length in shape)
    return scale, (height, width)


def measure_ink(photo: Floats) -> tuple[Floats, Floats]:
    """Return the ink in each pixel (height, width), and the photo's level along the same direction.

    Paper and ink may have any colours. The ink is the difference from the paper along the direction
    in colour space in which the pixels differ most: about 0 on paper, more on strokes.
    """
    difference = photo - estimate_paper(photo)
    pixels = difference.reshape(-1, 3)
    _, directions = np.linalg.eigh((pixels.T @ pixels).astype(np.float64))
    direction = directions[:, -1].astype(np.float32)
    ink = np.asarray(difference @ direction, np.float32)
    level = np.asarray(photo @ direction, np.float32)
    return (ink, level) if (ink * ink * ink).sum() > 0 else (-ink, -level)


def measure_local_ink(photo: Floats, way: str = "") -> Floats:
    """Return the ink relative to the paper beside it, so that shadows do not count as ink.

    A morphological opening fills strokes with the paper beside them, and keeps steps of brightness.
    """
    difference, level = measure_ink(photo)
    even = measure_edges(difference) < PAPER_EDGES
    # `measure_ink` chose the sign by what is rare. A reflection is rare too, but not sharp.
    sharp = difference - cv2.GaussianBlur(difference, (0, 0), SURROUNDINGS * max(level.shape))
    sign = 1 if measure_skewness(difference) + measure_skewness(sharp) > 0 else -1
    if way == "inverted" and not even:
        sign = -sign
    side = 2 * round((EVEN_LOCAL if even else LOCAL) * max(level.shape) / 2) + 1
    hats = []
    for values in (sign * difference, sign * level):
        hat = values - cv2.GaussianBlur(
            open_wide(smoothen(values), side, way == "padded"), (0, 0), 1
        )
        hats.append(hat - np.median(hat))
    # Use the paper that leaves less ink.
    hat = min(hats, key=lambda hat: float(np.abs(hat).mean()))
    bright = photo @ LUMINANCE
    if float(((bright - bright.mean()) * (hat - hat.mean())).sum()) < 0:
        # Dark ink differs less from paper that gets less light.
        paper = -open_wide(-smoothen(bright), side)
        hat = hat / np.maximum(cv2.GaussianBlur(paper, (0, 0), 1), 0.1)
    return np.asarray(hat, np.float32)


def measure_skewness(difference: Floats) -> float:
    """Return the skewness of differences from the paper: positive if what is rare is positive."""
    squares = np.square(difference, dtype=np.float64)
    return float((squares * difference).mean() / max(1e-12, squares.mean()) ** 1.5)


def measure_edges(difference: Floats) -> float:
    """Return how much the photo's edges differ from the paper, compared with the ink, 0 to 1."""
    smooth = np.abs(smoothen(difference))
    return float(np.quantile(get_edges(smooth), 0.9) / max(1e-6, float(smooth.max())))


def smoothen(values: Floats) -> Floats:
    """Return the values, smoothed more in larger photos."""
    longest = max(values.shape)
    if longest > 100:
        values = cv2.medianBlur(values, 5 if longest > 400 else 3)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), longest / 250), np.float32)


def open_wide(values: Floats, side: int, padded: bool = False) -> Floats:
    """Return the morphological opening with a square.

    With `padded`, the square may leave the photo, so what touches the photo's edge stays.
    """
    margin = side // 2 if padded else 0
    wide = np.pad(values, margin, constant_values=values.max())
    opened = cv2.morphologyEx(wide, cv2.MORPH_OPEN, np.ones((side, side)))
    height, width = values.shape
    return np.asarray(opened[margin : margin + height, margin : margin + width])


def estimate_paper(photo: Floats) -> Floats:
    """Return the photo (height, width, 3) as it would be without the strokes.

    Light is uneven, so the paper is a quadratic surface, fitted by reweighted least squares: first
    to the edges of the photo, then to all pixels. In each round, pixels that differ from the
    surface, such as ink, get less weight.
    """
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in photo.shape[:2]), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2).astype(np.float32)
    few = np.ix_(*(np.linspace(0, side - 1, min(side, 32)).astype(int) for side in photo.shape[:2]))
    points, colours = terms[few].reshape(-1, 6).astype(float), photo[few].reshape(-1, 3)
    edges = (np.abs(points[:, 1:3]).max(axis=1) == 1).astype(float)
    weights = edges
    for candidates in [edges] * 5 + [np.ones_like(edges)] * 5:
        root = np.sqrt(weights)[:, None]
        surface = np.linalg.lstsq(points * root, colours * root, rcond=None)[0]
        weights = candidates / (((colours - points @ surface) ** 2).sum(axis=1) + 1e-6)
    return np.asarray(terms @ surface.astype(np.float32), np.float32)


def find_strokes(ink: Floats, digits: bool, camera: bool) -> Mask:
    """Return the mask (height, width) of the pixels that belong to strokes.

    A photo of a `camera` may show other things too: they are at its edges, or paler.

    Raises ImageFileError if nothing stands out, and with `digits` also if there are several.
    """
    smooth = ndimage.gaussian_filter(ink, min(1.6, max(ink.shape) / 150))
    strong = smooth > find_otsu_threshold(smooth)
    if strong.all() or not strong.any():
        raise ImageFileError(BLANK)
    typical = np.median(smooth[strong])
    noise = 1.4826 * np.median(np.abs(smooth[~strong]))  # a standard deviation without outliers
    if typical < max(MIN_CONTRAST, MIN_CONTRAST_TO_NOISE * noise):
        raise ImageFileError(BLANK)
    # Include the faint edges that anti-aliasing gives to strokes, but neither the noise of the
    # paper nor pale lines on it.
    faintest = max(MIN_CONTRAST_TO_NOISE * noise, EDGE_FRACTION * typical)
    visible = smooth >= faintest
    if camera:
        reach = 2 * max(1, round(max(ink.shape) / 120)) + 1
        visible &= cv2.dilate(np.asarray(strong, np.uint8), np.ones((reach, reach))) > 0
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(np.asarray(visible, np.uint8))
    chosen = np.isin(np.arange(len(boxes)), labels[strong & visible])
    if chosen.any():
        chosen = choose_parts(labels, boxes, chosen, digits, camera)
    if digits and chosen.any():
        check_single_digit(boxes[chosen])
    mask: Mask = chosen[labels] & (ink >= faintest)
    if not mask.any():
        raise ImageFileError(BLANK)
    return mask


def choose_parts(labels: Boxes, boxes: Boxes, chosen: Mask, digits: bool, camera: bool) -> Mask:
    """Return which of the `chosen` connected parts are strokes of the drawing.

    Specks are not, nor are dots and parts at the edge of a camera's photo. With `digits`, neither
    are a ring around other parts, a line under the tallest part, a full stop after it, and small
    parts far from it in a camera's photo.
    """
    left, top, width, height, area = boxes.T
    bottom, right, size = top + height, left + width, np.maximum(width, height)
    inner = (top > 1) & (left > 1) & (bottom < labels.shape[0] - 1) & (right < labels.shape[1] - 1)
    large = max(0.1 * size[chosen].max(), 0.08 * max(labels.shape))
    if camera and (size[chosen & inner] >= large).any():
        chosen = chosen & inner
    shares = size / size[chosen].max()
    dots = (chosen & (shares >= SPECK_FRACTION) & (shares < DOT_FRACTION)).sum()
    chosen = chosen & (shares >= (DOT_FRACTION if camera and dots >= MIN_DOTS else SPECK_FRACTION))
    if not digits:
        return chosen
    for ring in np.flatnonzero(chosen)[np.argsort(-size[chosen])[:2]].tolist():
        filled = ndimage.binary_fill_holes(labels == ring)
        inside = chosen & (np.bincount(labels[filled], minlength=len(boxes)) > 0.95 * area)
        inside[ring] = False
        if (height[inside] >= 0.25 * height[ring]).any():
            chosen = inside
            break
    tallest = int((height * chosen).argmax())
    tall, wide = height[tallest], width[tallest]
    under = (width >= np.maximum(3 * height, 0.8 * wide)) & (top >= bottom[tallest])
    after = (left >= right[tallest]) & (top >= top[tallest] + 0.6 * tall)
    stop = after & (size < np.minimum(0.25 * tall, 2 * np.minimum(height, width)))
    chosen = chosen & ~under & ~stop
    if camera:
        far = (size < SMALL_PART * tall) & (measure_gaps(boxes, tallest) >= FAR * tall)
        chosen = chosen & ~far
    return chosen


def measure_gaps(boxes: Boxes, part: int) -> Boxes:
    """Return the distance of each box from the box of `part`, in rows or in columns; 0 if none."""
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]
    gaps: Boxes = np.maximum(start - end[part], start[part] - end).max(axis=1).clip(0)
    return gaps


def check_single_digit(boxes: Boxes) -> None:
    """Raise ImageFileError if parts with these bounding boxes are more than one digit.

    A part of a digit may be separate, such as the bar of a 5. Then it is less tall than the rest,
    or their rows and columns overlap.
    """
    left, top, width, height, _ = boxes.T
    tallest = int(height.argmax())
    beside = measure_gaps(boxes, tallest) >= max(1, MIN_GAP * height[tallest])
    if (beside & (height >= SECOND_DIGIT_FRACTION * height[tallest])).any():
        raise ImageFileError("shows several digits; only one at a time can be classified")
    if np.ptp([left, left + width]) > MAX_WIDTH_RATIO * np.ptp([top, top + height]):
        raise ImageFileError(
            "shows something wider than a digit; only one digit at a time can be classified"
        )


def find_otsu_threshold(ink: Floats) -> float:
    """Return the threshold between paper and ink for which the two classes differ most."""
    low, step = float(ink.min()), float(np.ptp(ink)) / 255
    levels = np.asarray((ink - low) / max(step, 1e-9), np.uint8)
    return low + step * (cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0] + 1)


def scale_strokes(ink: Floats, box: tuple[int, int], camera: bool, thin: bool = False) -> Floats:
    """Return the cropped strokes (height, width), scaled to `box`, with their darkest ink at 1.

    MNIST's scans were black and white, so all their grey comes from scaling. Grey in a photo comes
    from the camera or from earlier scaling. The larger the change of size, the more such grey there
    is, and the more the contrast is increased before scaling. In photos of a `camera`, strokes
    that would be too thin to see become wider. With `thin`, thick strokes become thinner.
    """
    scale, (height, width) = find_scale(ink.shape, box)
    ink = ink / np.quantile(ink[ink > 0], 0.9)
    if scale > 1:
        ink = resize(ink, (4 * height, 4 * width), Image.Resampling.BICUBIC)
    steepness = max(scale, 1 / scale)
    ink = (0.5 + steepness * (ink - 0.5)).clip(0, 1)
    pixel, stroke = max(ink.shape) / max(box), measure_stroke(ink)
    wider = round(MIN_STROKE * pixel - stroke)
    if camera and scale < 0.5 and wider >= 1:
        ink = cv2.dilate(ink, make_disc(wider + 1))
    elif thin and stroke >= THICK_STROKE * pixel:
        ink = cv2.erode(ink, make_disc(max(2, round(pixel) + 1)))
    small = resize(ink, (height, width), Image.Resampling.BOX)
    return np.asarray(small / small.max(), np.float32)


def make_disc(side: int) -> Bytes:
    """Return the structuring element that makes strokes wider or thinner by `side` - 1 pixels."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def measure_stroke(ink: Floats) -> float:
    """Return the median width of the strokes in pixels: twice the distance of ridges to paper."""
    inside = cv2.distanceTransform(np.pad(np.asarray(ink > 0.5, np.uint8), 1), cv2.DIST_L2, 5)
    ridges = (inside >= cv2.dilate(inside, np.ones((3, 3)))) & (inside > 0)
    return 2 * float(np.median(inside[ridges])) - 1 if ridges.any() else 0.0


def resize(ink: Floats, shape: tuple[int, int], method: Image.Resampling) -> Floats:
    """Return one channel in another shape; BOX weights each pixel by the area that it covers."""
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize(shape[::-1], method))


def place_in_centre(strokes: Floats, shape: tuple[int, ...]) -> Floats:
    """Return an image of `shape` with the centre of mass of `strokes` in the middle.

    The strokes move by whole pixels, and no part of them leaves the image.
    """
    image = np.zeros(shape, np.float32)
    places = zip(shape, strokes.shape, ndimage.center_of_mass(strokes), strict=True)
    top, left = (min(max(0, round(to // 2 - at)), to - size) for to, size, at in places)
    image[top : top + strokes.shape[0], left : left + strokes.shape[1]] = strokes
    return image
