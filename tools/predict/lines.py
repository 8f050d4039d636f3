"""Remove printed lines, such as those of ruled or squared paper, from the ink.

A line is followed from one edge of the photo to the other, and its profile is the median over its
length. Where the ink is as narrow as the line, the profile is subtracted; where it is wider, a
stroke crosses the line, and nothing changes. Staff lines are removed from scanned music in the same
way: C. Dalitz, M. Droettboom, B. Pranzas, I. Fujinaga, "A comparative study of staff removal
algorithms", IEEE Transactions on Pattern Analysis and Machine Intelligence 30 (5), 2008.
"""

import cv2
import numpy as np
import numpy.typing as npt

from stages.core.files import Floats

Values = npt.NDArray[np.float64]

SMALL = 320  # longer side in pixels at which lines are searched for
MIN_COVERAGE = 0.75  # of a line from edge to edge must be ink: strokes of a digit are shorter
MAX_TILT = 0.35  # sine of 20 degrees: lines turned more are strokes
MAX_LINES = 80  # of 1,500 candidates: a second for a photo of a texture
NEAR = 0.012  # of the photo's longer side: parallel lines that are closer are one
REACH = 0.02  # of the photo's longer side: maximum distance of ink from the middle of its line


def remove_lines(ink: Floats, threshold: float) -> Floats | None:
    """Return the ink without lines from edge to edge, or None if there are none.

    Lines have more ink than `threshold`.
    """
    lines = find_lines(ink, threshold)
    if not lines:
        return None
    cleaned = ink
    for angle, distance in lines:
        cleaned = subtract_line(cleaned, angle, distance, threshold)
    return np.maximum(cleaned, np.minimum(ink, 0))


def find_lines(ink: Floats, threshold: float) -> list[tuple[float, float]]:
    """Return the straight lines that go through the whole photo, strongest first.

    Each is the angle of its normal in radians, and its distance from the upper left corner.
    """
    scale = min(1.0, SMALL / max(ink.shape))
    size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
    marked = np.asarray(ink > threshold, np.uint8)
    if scale < 1:  # thin lines stay: a small pixel is ink if any of its pixels is
        marked = cv2.dilate(marked, np.ones((2, 2)))
    small = cv2.resize(marked, size, interpolation=cv2.INTER_NEAREST)
    thick = cv2.dilate(cv2.morphologyEx(small, cv2.MORPH_OPEN, np.ones((9, 9))), np.ones((3, 3)))
    candidates = cv2.HoughLines(small & ~thick, 1, np.pi / 720, round(0.3 * min(size)))
    near = cv2.dilate(small, np.ones((3, 3)))
    found: list[tuple[float, float]] = []
    for distance, angle in [] if candidates is None else candidates[:1500, 0].tolist():
        if min(abs(np.cos(angle)), abs(np.sin(angle))) > MAX_TILT or len(found) == MAX_LINES:
            continue
        x, y = walk(angle, distance, small.shape)
        if (
            len(x) < 0.5 * min(size)
            or near[y.round().astype(int), x.round().astype(int)].mean() < MIN_COVERAGE
        ):
            continue
        if not any(
            abs(np.cos(angle - other)) > 0.95
            and np.abs(x * np.cos(other) + y * np.sin(other) - at).min() < NEAR * max(size)
            for other, at in found
        ):
            found.append((angle, distance))
    return [(angle, distance / scale) for angle, distance in found]


def walk(angle: float, distance: float, shape: tuple[int, ...]) -> tuple[Values, Values]:
    """Return x and y of points on a line, one pixel apart, inside an array of this shape."""
    at = np.arange(-sum(shape), sum(shape) + 1.0)
    x = np.cos(angle) * distance - np.sin(angle) * at
    y = np.sin(angle) * distance + np.cos(angle) * at
    inside = (x >= 0) & (y >= 0) & (x <= shape[1] - 1) & (y <= shape[0] - 1)
    return x[inside], y[inside]


def subtract_line(ink: Floats, angle: float, distance: float, threshold: float) -> Floats:
    """Return the ink without this line, except where strokes cross it."""
    x, y = walk(angle, distance, ink.shape)
    reach = max(3, round(REACH * max(ink.shape)))
    if len(x) < 20:
        return ink
    # A strip of the photo: the line goes from left to right, in the middle of 4 * reach + 1 rows.
    a, b = np.cos(angle), np.sin(angle)
    to_photo = np.array([[-b, a, x[0] - 2 * reach * a], [a, b, y[0] - 2 * reach * b]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = len(x), 4 * reach + 1
    strip = cv2.warpAffine(ink, to_photo, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    # Follow the line's middle, which may bend a little.
    window = 2 * (len(x) // 20) + 1, 1
    even = cv2.blur(np.minimum(strip, 2 * threshold), window)[reach:-reach]
    middle = cv2.medianBlur(even.argmax(axis=0).astype(np.float32)[None], 5)
    first = cv2.blur(middle, window).round().astype(int)
    rows = first + np.arange(2 * reach + 1)[:, None]
    straight = np.take_along_axis(strip, rows, axis=0)
    profile = np.median(straight, axis=1).astype(np.float32).clip(0, None)
    top = float(profile.max())
    width = (profile > 0.35 * top).sum()
    crossed = (straight > max(threshold, 0.5 * top)).sum(axis=0) > width + 2
    wide = cv2.dilate(crossed.astype(np.float32)[None], np.ones((1, 3)))
    shape = 1.15 * cv2.dilate(profile[:, None], np.ones((3, 1)))
    line = np.zeros_like(strip)
    np.put_along_axis(line, rows, shape * (1 - cv2.blur(wide, (3, 1))), axis=0)
    return np.asarray(ink - cv2.warpAffine(line, to_photo, ink.shape[::-1]), np.float32)
