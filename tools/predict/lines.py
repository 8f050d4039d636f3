"""Remove printed lines, such as those of ruled or squared paper, from the ink.

A line is followed from one edge of the photo to the other, and what it looks like is the median
over its length. Where only that is found, it is subtracted; where more ink crosses it, nothing
changes. Staff lines are removed from scanned music in the same way: C. Dalitz, M. Droettboom,
B. Pranzas, I. Fujinaga, "A comparative study of staff removal algorithms", IEEE Transactions on
Pattern Analysis and Machine Intelligence 30 (5), 2008.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stages.core.files import Floats

Values = npt.NDArray[np.float64]
Path = tuple[Values, Values]  # x and y of points on a line

SMALL = 320  # longer side in pixels at which lines are searched for
MIN_COVERAGE = 0.75  # of a line from edge to edge must be ink
MAX_LINES = 80
REACH = 0.02  # of the photo's longer side: maximum distance of ink from the middle of its line


@dataclass(frozen=True)
class Line:
    """The line of points p with normal . p = distance, for p = (x, y)."""

    normal: tuple[float, float]
    distance: float


def remove_lines(ink: Floats, threshold: float) -> Floats | None:
    """Return the ink without lines from edge to edge, or None if there are none.

    Lines have more ink than half of `threshold`.
    """
    lines = find_lines(ink, 0.5 * threshold)
    return subtract_lines(ink, lines, 0.5 * threshold) if lines else None


def find_lines(ink: Floats, threshold: float) -> list[Line]:
    """Return the straight lines that go through the whole photo, strongest first."""
    scale = min(1.0, SMALL / max(ink.shape))
    marked = np.asarray(ink > threshold, np.uint8)
    size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
    reach = 2 * round(0.5 / scale) + 1
    if scale < 1:  # thin lines stay: a small pixel is ink if any of its pixels is
        marked = cv2.dilate(marked, np.ones((reach - reach // 3, reach - reach // 3)))
    small = cv2.resize(marked, size, interpolation=cv2.INTER_NEAREST)
    thick = cv2.morphologyEx(small, cv2.MORPH_OPEN, np.ones((9, 9)))
    thin = small & ~cv2.dilate(thick, np.ones((3, 3)))
    found = cv2.HoughLines(thin, 1, np.pi / 720, round(0.3 * min(size)))
    lines: dict[Line, Path] = {}
    near = cv2.dilate(small, np.ones((3, 3)))
    tried = 0
    for rho, theta in [] if found is None else found[:1500, 0].tolist():
        normal = float(np.cos(theta)), float(np.sin(theta))
        if min(abs(normal[0]), abs(normal[1])) > 0.35:  # turned more than 20 degrees
            continue
        line = Line(normal, rho / scale)
        limit = 0.012 * max(ink.shape)
        if any(is_near(line, other, path, limit) for other, path in lines.items()):
            continue
        tried += 1
        x, y = walk(Line(normal, rho), small.shape)
        if len(x) < 0.5 * min(small.shape):
            continue
        if near[y.round().astype(int), x.round().astype(int)].mean() >= MIN_COVERAGE:
            lines[line] = walk(line, ink.shape)
        if len(lines) == MAX_LINES or tried > 400:
            break
    return list(lines)


def walk(line: Line, shape: tuple[int, ...]) -> Path:
    """Return x and y of points on the line, one pixel apart, inside an array of this shape."""
    a, b = line.normal
    length = sum(shape)
    at = np.arange(-length, length + 1.0)
    x, y = a * line.distance - b * at, b * line.distance + a * at
    inside = (x >= 0) & (y >= 0) & (x <= shape[1] - 1) & (y <= shape[0] - 1)
    return x[inside], y[inside]


def is_near(line: Line, other: Line, path: Path, limit: float) -> bool:
    """Return whether two lines have about one direction and come closer than `limit`.

    `path` is what `walk` returned for the other line.
    """
    if abs(np.dot(line.normal, other.normal)) < 0.95:
        return False
    x, y = path
    if len(x) == 0:
        return True
    distances = np.abs(line.normal[0] * x + line.normal[1] * y - line.distance)
    return bool(distances.min() < limit)


def subtract_lines(ink: Floats, lines: list[Line], threshold: float) -> Floats:
    """Return the ink without these lines, except where strokes cross them."""
    cleaned = ink.copy()
    reach = max(3, round(REACH * max(ink.shape)))
    for line in lines:
        x, y = walk(line, ink.shape)
        if len(x) < 20:
            continue
        offsets = np.arange(-2 * reach, 2 * reach + 1.0)
        a, b = line.normal
        strip = cv2.remap(
            cleaned,
            np.asarray(x[None] + a * offsets[:, None], np.float32),
            np.asarray(y[None] + b * offsets[:, None], np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        length = strip.shape[1]
        # Follow the line's middle, which may bend a little.
        window = min(length, 2 * (length // 20) + 1)
        even = cv2.blur(np.minimum(strip, 2 * threshold), (window, 1))[reach:-reach]
        middle = np.argmax(even, axis=0).astype(np.float32) - reach
        middle = cv2.medianBlur(middle[None], 5)[0] if length > 5 else middle
        middle = cv2.blur(middle[None], (window, 1))[0]
        rows = np.arange(-reach, reach + 1.0, dtype=np.float32)
        straight = cv2.remap(
            strip,
            np.asarray(np.arange(length)[None] + 0 * rows[:, None], np.float32),
            np.asarray(rows[:, None] + middle[None] + 2 * reach, np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        profile = np.median(straight, axis=1).clip(0, None)
        top = float(profile.max())
        if top < 0.5 * threshold:
            continue
        width = int((profile > 0.35 * top).sum())
        # Where the ink is wider than the line, a stroke crosses it.
        wide = (straight > max(threshold, 0.5 * top)).sum(axis=0) > width + 2
        crossing = cv2.dilate(np.asarray(wide, np.uint8)[None], np.ones((1, 3)))[0].astype(
            np.float32
        )
        keep = cv2.blur(crossing[None], (3, 1))[0]
        # Subtract at the pixels near the line.
        band = np.zeros(ink.shape, np.uint8)
        ends = [(round(x[i]), round(y[i])) for i in (0, -1)]
        cv2.line(band, ends[0], ends[1], 1, 4 * reach + 1)
        at_y, at_x = np.nonzero(band)
        along = (at_x - x[0]) * (x[-1] - x[0]) + (at_y - y[0]) * (y[-1] - y[0])
        along = along / max(1e-9, np.hypot(x[-1] - x[0], y[-1] - y[0]))
        across = a * at_x + b * at_y - line.distance
        step = np.arange(length)
        across = across - np.interp(along, step, middle)
        shape = cv2.dilate(profile[:, None].astype(np.float32), np.ones((3, 1)))[:, 0] * 1.15
        shape[shape < 0.1 * top] = 0
        share = 1 - np.interp(along, step, keep)
        cleaned[at_y, at_x] -= np.asarray(np.interp(across, rows, shape, 0, 0) * share, np.float32)
    low = np.minimum(ink, 0)
    return np.asarray(np.maximum(cleaned, low), np.float32)
