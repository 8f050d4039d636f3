"""Find the sheet, note, box or table cell that holds the digit, and see it from straight above."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from stages.core.files import Bytes, Floats

Points = npt.NDArray[np.float32]

SMALL = 256  # longer side in pixels at which quadrilaterals are searched for
MIN_AREA = 0.03  # of the photo: smaller quadrilaterals are not a sheet
MIN_STEP = 14  # of 255: minimum change of colour at the sides
MAX_AREA = 0.97  # of the photo: larger ones are the photo itself
MIN_FILL = 0.92  # of the area of the convex hull: the outline of an 8 fills less of it
MIN_INK_HEIGHT = 0.12  # of the sheet's height: smaller parts are not a digit
INSET = 0.015  # of the sheet's size: this much of its edges is left out


def flatten_sheet(photo: Floats) -> Floats | None:
    """Return what is inside the largest quadrilateral with something on it, or None.

    The quadrilateral may be a sheet on a desk, a form's box or a cell of a table. It becomes a
    rectangle, turned by less than 45 degrees.
    """
    scale = min(1.0, SMALL / max(photo.shape[:2]))
    size = [max(1, round(side * scale)) for side in photo.shape[1::-1]]
    small = cv2.resize(
        np.asarray(255 * photo.clip(0, 1), np.uint8), size, interpolation=cv2.INTER_AREA
    )
    if min(size) < 32:
        return None
    found = sorted(find_quadrilaterals(small), key=lambda corners: -float(cv2.contourArea(corners)))
    for corners in found:
        if has_ink(warp(np.asarray(small / 255, np.float32), corners)):
            return warp(photo, np.asarray(corners / scale, np.float32))
    return None


def find_quadrilaterals(photo: Bytes) -> Iterator[Points]:
    """Yield the corners (4, 2) of regions with four straight sides."""
    area = photo.shape[0] * photo.shape[1]
    for mask in segment(photo):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:
            hull = cv2.convexHull(contour)
            size = cv2.contourArea(hull)
            if not MIN_AREA * area <= size <= MAX_AREA * area:
                continue
            if cv2.contourArea(contour) < MIN_FILL * size:
                continue
            corners = fit_quadrilateral(hull, photo.shape[:2])
            if corners is not None and has_edges(photo, corners):
                yield corners


def has_edges(photo: Bytes, corners: Points) -> bool:
    """Return whether the colour changes at the sides that are inside of the photo.

    At least two sides that meet must be inside, because a single one may be the edge of a shadow.
    """
    height, width = photo.shape[:2]
    inside = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        side = end - start
        normal = np.array([-side[1], side[0]]) / max(1e-6, float(np.hypot(*side)))
        points = start + np.linspace(0.08, 0.92, 40)[:, None] * side
        within = (points > 4).all(axis=1) & (points < (width - 5, height - 5)).all(axis=1)
        if within.sum() < 8:
            continue
        offsets = np.arange(-8, 9)[:, None, None]
        places = (points[within] + offsets * normal).round().astype(int)
        x, y = places[..., 0].clip(0, width - 1), places[..., 1].clip(0, height - 1)
        across = photo[y, x].astype(np.float32)  # (17, n, 3): colours on the way through the side
        steps = np.abs(across[4:] - across[:-4]).max(axis=(0, 2))
        if (steps > MIN_STEP).mean() < 0.8:
            return False
        inside.append(side)
    return len(inside) >= 3 or (
        len(inside) == 2 and abs(np.dot(*inside)) < 0.3 * np.prod(np.hypot(*np.transpose(inside)))
    )


def segment(photo: Bytes) -> Iterator[Bytes]:
    """Yield masks of regions: of similar colours, and between edges."""
    steps = np.zeros(photo.shape[:2], np.float32)
    for values in cv2.split(cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)):
        _, light = cv2.threshold(values, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        for mask in (light, 1 - light):
            closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3)))
            yield cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((5, 5)))
        smooth = cv2.GaussianBlur(values.astype(np.float32), (0, 0), 1)
        slopes = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        steps = np.maximum(steps, np.hypot(*slopes))
    limit = max(12.0, 4 * float(np.median(steps)))
    edges = cv2.dilate(np.asarray(steps > limit, np.uint8), np.ones((3, 3)))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - edges, connectivity=4)
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] >= 0.6 * MIN_AREA * edges.size:
            yield cv2.dilate(np.asarray(labels == label, np.uint8), np.ones((3, 3)))


def fit_quadrilateral(hull: Bytes, shape: tuple[int, ...]) -> Points | None:
    """Return four corners (x, y), clockwise from the top left, or None if the sides bend.

    A corner may be round, or outside of the photo: then the sides beside it are made longer.
    """
    height, width = shape
    corners = cv2.approxPolyN(hull, 4, ensure_convex=True).reshape(-1, 2).astype(np.float32)
    if len(corners) < 4:
        return None
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    seen, _ = cv2.intersectConvexConvex(corners, frame)
    if not 0.93 <= seen / cv2.contourArea(hull) <= 1.09:
        return None
    turn = np.arctan2(*(corners - corners.mean(axis=0)).T[::-1])
    corners = corners[np.argsort(turn)]  # clockwise, as y points down
    edges = np.roll(corners, -1, axis=0) - corners
    first = int(np.argmin(np.abs(np.arctan2(edges[:, 1], edges[:, 0]))))  # the top goes right
    return np.asarray(np.roll(corners, -first, axis=0))


def warp(photo: Floats, corners: Points) -> Floats:
    """Return the quadrilateral of the photo as a rectangle, without its edges."""
    sides = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
    width, height = (max(16, round(float(sides[i] + sides[i + 2]) / 2)) for i in (0, 1))
    inset = INSET * min(width, height) + 2
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - inset
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    size = max(8, round(width - 2 * inset)), max(8, round(height - 2 * inset))
    return np.asarray(
        cv2.warpPerspective(
            photo, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
        )
    )


def has_ink(page: Floats) -> bool:
    """Return whether a part away from the page's edges differs from the page."""
    background = cv2.medianBlur(
        np.asarray(255 * page.clip(0, 1), np.uint8), 2 * (min(page.shape[:2]) // 4) + 1
    )
    difference = np.abs(page - background.astype(np.float32) / 255).max(axis=2)
    noise = float(np.median(difference))
    mask = np.asarray(difference > max(0.08, 5 * noise), np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    height, width = page.shape[:2]
    found = False
    for left, top, wide, high, area in stats[1:count].tolist():
        tall = high >= MIN_INK_HEIGHT * min(height, width) and area > 8
        if left == 0 or top == 0 or left + wide == width or top + high == height:
            if max(high, wide) >= MIN_INK_HEIGHT * min(height, width) and min(high, wide) > 2:
                return False  # a digit that goes on outside
        elif tall:
            found = True
    return found
