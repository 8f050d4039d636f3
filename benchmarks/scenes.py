"""Draw photos of handwritten digits as people take them: paper, desk, lines, light and camera.

Each function in SCENES takes a hand, which is the ink of a digit as an array (height, width) in
[0, 1] without margins, and returns a photo (height, width, 3) as uint8. Geometry, colours, light
and noise are random.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Random = np.random.Generator
Colour = tuple[float, float, float]
Corners = npt.NDArray[np.float64]  # (4, 2): x and y
Line = tuple[tuple[float, float], tuple[float, float]]

PENS: list[Colour] = [(30, 34, 44), (28, 44, 120), (40, 40, 40), (20, 60, 50), (130, 30, 36)]
ZOOM = 1.4  # the page's size divided by the part that the photo shows
LINES: list[Colour] = [(150, 175, 215), (120, 120, 125), (90, 120, 180), (225, 150, 150)]
MARGINS: list[Colour] = [(215, 90, 90), (100, 130, 200), (60, 60, 60)]


def choose(random: Random, options: list[Colour]) -> Array:
    """Return one of the colours, slightly changed."""
    colour = np.asarray(options[int(random.integers(len(options)))]) + random.normal(0, 8, 3)
    return np.asarray(colour.clip(0, 255), np.float32)


def make_paper(shape: tuple[int, int], random: Random) -> Array:
    """Return a page (height, width, 3) of white or tinted paper with faint fibres."""
    tint = np.asarray(random.choice([235, 245, 225], 1) + random.uniform(-12, 8, 3), np.float32)
    fibres = cv2.GaussianBlur(random.normal(0, 1, shape).astype(np.float32), (0, 0), 1.5)
    return np.asarray(tint + 6 * fibres[:, :, None], np.float32)


def draw(page: Array, ink: Array, colour: Array, strength: float = 1.0) -> None:
    """Draw `ink` (height, width), 0 to 1, on the page in a colour."""
    share = (strength * ink.clip(0, 1))[:, :, None]
    page *= 1 - share
    page += share * colour


def place(hand: Array, shape: tuple[int, int], height: float, at: tuple[float, float]) -> Array:
    """Return the ink on a page of `shape`: `height` tall, with its centre at (y, x)."""
    scale = height / hand.shape[0]
    move = np.array(
        [
            [scale, 0, at[1] - scale * hand.shape[1] / 2],
            [0, scale, at[0] - scale * hand.shape[0] / 2],
        ]
    )
    small = cv2.GaussianBlur(hand, (0, 0), max(0.3, 0.4 / scale))
    return np.asarray(cv2.warpAffine(small, move, shape[::-1], flags=cv2.INTER_LINEAR))


def place_anywhere(
    hand: Array, shape: tuple[int, int], random: Random, margin: float, largest: float
) -> tuple[Array, float]:
    """Return the ink at a random place away from the page's edges, and its height.

    `margin` and the `largest` height are shares of the page.
    """
    height = random.uniform(0.2, largest) * min(shape)
    width = height * hand.shape[1] / hand.shape[0]
    free = np.maximum(np.array(shape) * (1 - 2 * margin) - (height, width), 0)
    at = (random.uniform(-0.5, 0.5, 2) * free + np.array(shape) / 2).tolist()
    return place(hand, shape, height, at), height


def draw_lines(page: Array, lines: list[Line], colour: Array, width: float) -> None:
    """Draw smooth lines, each between two points (x, y)."""
    ink = np.zeros(page.shape[:2], np.float32)
    for start, end in lines:
        ends = [tuple(round(16 * value) for value in point) for point in (start, end)]
        cv2.line(ink, ends[0], ends[1], 1.0, max(1, round(width)), cv2.LINE_AA, 4)
    draw(page, ink, colour, min(1, width))


def rule(page: Array, spacing: float, colour: Array, width: float, axis: int, start: float) -> None:
    """Draw parallel lines over the whole page: rows for axis 0, columns for axis 1."""
    height, length = page.shape[:2]
    places = np.arange(start, page.shape[axis], spacing).tolist()
    rows: list[Line] = [((0, at), (length, at)) for at in places]
    columns: list[Line] = [((at, 0), (at, height)) for at in places]
    draw_lines(page, columns if axis else rows, colour, width)


def turn_corners(shape: tuple[int, ...], angle: float, scale: float = 1) -> Corners:
    """Return the corners (4, 2) of a page around its middle, turned by an angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    half = scale * np.array([shape[1], shape[0]]) / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    return np.asarray(corners @ np.array([(cosine, sine), (-sine, cosine)]))


def warp(page: Array, corners: Corners, size: tuple[int, int]) -> Array:
    """Return a photo of `size` (width, height) that shows the page between these corners."""
    flat = turn_corners(page.shape, 0) + np.array([page.shape[1], page.shape[0]]) / 2
    matrix = cv2.getPerspectiveTransform(flat.astype(np.float32), corners.astype(np.float32))
    return np.asarray(cv2.warpPerspective(page, matrix, size, flags=cv2.INTER_AREA))


def view(page: Array, random: Random) -> Array:
    """Return what a camera sees of the page: turned up to 5 degrees, slanted, and cropped."""
    size = np.array(page.shape[1::-1])
    turned = turn_corners(page.shape, np.deg2rad(random.uniform(-5, 5)))
    turned += random.uniform(-0.04, 0.04, (4, 2)) * size
    width, height = np.round(size / ZOOM).astype(int).tolist()
    return warp(page, turned + np.array([width, height]) / 2, (width, height))


def get_grid(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return y and x of every pixel, from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return y.astype(np.float32), x.astype(np.float32)


def light(photo: Array, random: Random) -> Array:
    """Return the photo under uneven light from one side."""
    y, x = get_grid(photo.shape)
    angle, fall = random.uniform(0, 2 * np.pi), random.uniform(0, 0.2)
    level = 0.85 - fall * (x * np.cos(angle) + y * np.sin(angle)) - 0.06 * (x * x + y * y)
    colour = np.array([1, 1, 1]) + random.uniform(-0.06, 0.03, 3)
    return np.asarray(photo * level[:, :, None] * colour, np.float32)


def take(photo: Array, random: Random) -> Bytes:
    """Return the photo under uneven light, as a camera sees it."""
    return expose(light(photo, random), random)


def expose(photo: Array, random: Random) -> Bytes:
    """Return the photo with the camera's blur and noise."""
    blurred = cv2.GaussianBlur(photo, (0, 0), random.uniform(0.6, 1.6))
    grain = cv2.GaussianBlur(random.normal(0, 1, photo.shape).astype(np.float32), (0, 0), 0.8)
    noisy = blurred + random.uniform(2, 9) * grain
    return np.asarray(noisy.clip(0, 255), np.uint8)


def choose_shape(random: Random) -> tuple[int, int]:
    """Return the height and width of a photo, upright or wide."""
    return (720, 960) if random.random() < 0.5 else (960, 720)


def make_desk(shape: tuple[int, int], random: Random) -> Array:
    """Return a desk (height, width, 3) of any colour: plain, wood or cloth."""
    colour = random.uniform(20, 215, 3)
    if random.random() < 0.6:  # most desks are grey, black, white or brown
        level = random.uniform(15, 200)
        colour = level * np.array([1.0, random.uniform(0.75, 1), random.uniform(0.5, 1)])
    kind = random.integers(3)
    texture = random.normal(0, 1, shape).astype(np.float32)
    if kind == 0:
        texture = 3 * cv2.GaussianBlur(texture, (0, 0), 1)
    elif kind == 1:  # grain along x
        texture = 90 * cv2.GaussianBlur(texture, (0, 0), sigmaX=60, sigmaY=2)
    else:
        texture = 10 * cv2.GaussianBlur(texture, (0, 0), 1.2)
    if random.random() < 0.5:
        texture = texture.T if texture.T.shape == shape else texture[::-1]
    return np.asarray((colour + texture[:, :, None]).clip(4, 250), np.float32)


def lay_on_desk(page: Array, random: Random) -> Array:
    """Return a photo of a desk with the page on it, turned and slanted, whole or nearly."""
    shape = choose_shape(random)
    desk = make_desk(shape, random)
    while np.abs(desk.mean(axis=(0, 1)) - page.mean(axis=(0, 1))).max() < 35:
        desk = make_desk(shape, random)
    height, width = page.shape[:2]
    scale = np.sqrt(random.uniform(0.12, 0.6) * shape[0] * shape[1] / (height * width))
    scale = min(scale, 0.92 * shape[0] / height, 0.92 * shape[1] / width)
    angle = np.deg2rad(random.uniform(-25, 25) * (random.random() < 0.7))
    corners = turn_corners(page.shape, angle, scale)
    corners += random.uniform(-0.05, 0.05, (4, 2)) * scale * min(width, height)
    # The corners may leave the photo a little.
    space = np.array(shape[::-1]) - np.ptp(corners, axis=0)
    slack = 0.04 * np.array(shape[::-1])
    corners += random.uniform(-slack, np.maximum(space + slack, -slack + 1)) - corners.min(axis=0)
    size = shape[1], shape[0]
    sheet = warp(page, corners, size)
    inside = warp(np.ones((height, width), np.float32), corners, size)
    offset = random.uniform(-6, 6, 2)
    cast = cv2.warpAffine(inside, np.array([[1, 0, offset[0]], [0, 1, offset[1]]]), size)
    desk *= 1 - 0.35 * cv2.GaussianBlur(cast, (0, 0), 5)[:, :, None]
    return np.asarray(desk * (1 - inside[:, :, None]) + sheet * inside[:, :, None], np.float32)


def make_sheet(random: Random) -> Array:
    """Return a sheet, a card or a square note (height, width, 3)."""
    ratio = [1.414, 1.29, 1.0, 1.6][int(random.integers(4))]
    shape = (900, round(900 / ratio))
    return make_paper(shape if random.random() < 0.6 else shape[::-1], random)


def on_desk(hand: Array, random: Random) -> Bytes:
    """Photograph a sheet, card or note on a desk of any colour; it may be turned or in a corner."""
    page = make_sheet(random)
    if random.random() < 0.3:  # a coloured note
        page *= np.asarray(random.uniform([0.9, 0.75, 0.4], [1, 1, 1]), np.float32)
    ink, _ = place_anywhere(hand, page.shape[:2], random, 0.06, 0.6)
    draw(page, ink, choose(random, PENS), 0.9)
    return take(lay_on_desk(page, random), random)


def start(hand: Array, random: Random, largest: float = 0.42) -> tuple[Array, Array, float]:
    """Return a page, the ink at a place of it, and the ink's height."""
    height, width = choose_shape(random)
    page = make_paper((round(ZOOM * height), round(ZOOM * width)), random)
    ink, tall = place_anywhere(hand, page.shape[:2], random, 0.2, largest)
    return page, ink, tall


def write(page: Array, ink: Array, random: Random, strength: float = 0.92) -> Array:
    """Draw the ink on the page, and return the pen's colour."""
    pen = choose(random, PENS)
    draw(page, ink, pen, strength)
    return pen


def finish(page: Array, ink: Array, random: Random, strength: float = 0.92) -> Bytes:
    """Return a photo of the page with the ink in a pen's colour on it."""
    write(page, ink, random, strength)
    return take(view(page, random), random)


def draw_dot(ink: Array, at: tuple[float, float], radius: float) -> None:
    """Draw a filled circle around a point (x, y) on the ink."""
    centre = round(16 * at[0]), round(16 * at[1])
    cv2.circle(ink, centre, round(16 * radius), 1, -1, cv2.LINE_AA, 4)


def choose_line_ink(random: Random) -> tuple[Array, float]:
    """Return the colour of printed lines, most often pale, and their width in pixels."""
    colours = LINES if random.random() < 0.75 else PENS
    return choose(random, colours), random.uniform(0.8, 3)


def lined(hand: Array, random: Random) -> Bytes:
    """Photograph lined paper, with lines in any colour."""
    page, ink, height = start(hand, random)
    colour, width = choose_line_ink(random)
    spacing = height * random.uniform(0.35, 1.3)
    rule(page, spacing, colour, width, 0, random.uniform(0, spacing))
    if random.random() < 0.3:
        at = page.shape[1] * random.uniform(0.2, 0.35)
        rule(page, 9999, choose(random, MARGINS), width, 1, at)
    return finish(page, ink, random)


def squared(hand: Array, random: Random) -> Bytes:
    """Photograph squared paper, with lines in any colour."""
    page, ink, height = start(hand, random)
    colour, width = choose_line_ink(random)
    spacing = height * random.uniform(0.2, 1.0)
    for axis in (0, 1):
        rule(page, spacing, colour, min(width, spacing / 12), axis, random.uniform(0, spacing))
    return finish(page, ink, random)


def dotted(hand: Array, random: Random) -> Bytes:
    """Photograph paper with a grid of dots."""
    page, ink, height = start(hand, random)
    spacing, dots = height * random.uniform(0.15, 0.6), np.zeros(ink.shape, np.float32)
    radius = max(1.2, spacing * random.uniform(0.03, 0.07))
    for y in np.arange(random.uniform(0, spacing), ink.shape[0], spacing):
        for x in np.arange(random.uniform(0, 2), ink.shape[1], spacing):
            draw_dot(dots, (x, y), radius)
    draw(page, dots, choose_line_ink(random)[0])
    return finish(page, ink, random)


def margin(hand: Array, random: Random) -> Bytes:
    """Photograph a margin line beside or through the digit."""
    page, ink, height = start(hand, random)
    where = np.nonzero(ink.max(axis=0) > 0.5)[0]
    at = random.choice([where[0] - 0.15 * height, where[0] + 0.1 * height, page.shape[1] * 0.2])
    colour, width = choose(random, MARGINS), random.uniform(1, 3.5)
    for offset in [0, 6] if random.random() < 0.2 else [0]:
        rule(page, 9999, colour, width, 1, max(2, at + offset))
    return finish(page, ink, random)


def shadowed(hand: Array, random: Random, softness: tuple[float, float]) -> Bytes:
    """Photograph a shadow with a straight or curved edge, often through the digit."""
    page, ink, _ = start(hand, random)
    write(page, ink, random)
    photo = view(page, random)
    y, x = np.nonzero(ink > 0.5)
    through = ZOOM * (2 * y.mean() / ink.shape[0] - 1), ZOOM * (2 * x.mean() / ink.shape[1] - 1)
    if random.random() < 0.4:
        through = random.uniform(-0.6, 0.6), random.uniform(-0.6, 0.6)
    angle, bend = random.uniform(0, 2 * np.pi), random.uniform(-0.5, 0.5)
    y, x = (values - at for values, at in zip(get_grid(photo.shape), through, strict=True))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    blur, depth = random.uniform(*softness), random.uniform(0.25, 0.65)
    lit = 1 - np.float32(depth) * (across + bend * along**2 > 0)
    lit = cv2.GaussianBlur(lit, (0, 0), blur) if blur > 0 else lit
    return take(np.asarray(photo * lit[:, :, None], np.float32), random)


def get_extent(ink: Array) -> tuple[int, int, int, int]:
    """Return the top, bottom, left and right of the ink."""
    y, x = np.nonzero(ink > 0.5)
    return int(y.min()), int(y.max()), int(x.min()), int(x.max())


def boxed(hand: Array, random: Random) -> Bytes:
    """Photograph a form's box around the digit."""
    page, ink, height = start(hand, random)
    top, bottom, left, right = get_extent(ink)
    gaps = height * random.uniform(0.06, 0.5, 4)
    colour, width = choose(random, LINES + PENS), random.uniform(1.2, 6)
    left, top, right, bottom = np.array([left, top, right, bottom]) + gaps * (-1, -1, 1, 1)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    draw_lines(page, list(pairwise(corners)), colour, width)
    return finish(page, ink, random)


def in_table(hand: Array, random: Random) -> Bytes:
    """Photograph a cell of a table, whose lines reach the photo's edges."""
    page, ink, height = start(hand, random)
    top, bottom, left, right = get_extent(ink)
    gaps = height * random.uniform(0.06, 0.4, 4)
    colour, width = choose(random, LINES + PENS), random.uniform(1, 4)
    tall, wide = bottom - top + gaps[1] + gaps[3], right - left + gaps[0] + gaps[2]
    rule(page, tall, colour, width, 0, (top - gaps[1]) % tall)
    rule(page, wide, colour, width, 1, (left - gaps[0]) % wide)
    return finish(page, ink, random)


def edge_line(hand: Array, random: Random) -> Bytes:
    """Photograph a line or a bar along one or two of the photo's edges."""
    page, ink, _ = start(hand, random)
    write(page, ink, random)
    photo = view(page, random)
    height, width = photo.shape[:2]
    for side in random.choice(4, int(random.integers(1, 3)), replace=False):
        depth, tilt = random.uniform(2, 0.05 * min(height, width), 2)
        ends = [((0, depth), (width, tilt)), ((0, height - depth), (width, height - tilt))]
        ends += [((depth, 0), (tilt, height)), ((width - depth, 0), (width - tilt, height))]
        draw_lines(photo, [ends[side]], choose(random, PENS), random.uniform(2, 12))
    return take(photo, random)


def thin_ink(hand: Array, random: Random) -> Array:
    """Return the ink as a ballpoint draws it: thin, uneven and interrupted."""
    core = (hand > 0.5).astype(np.uint8)
    inside = cv2.distanceTransform(np.pad(core, 2), cv2.DIST_L2, 5)[2:-2, 2:-2]
    ridge = cv2.dilate(inside, np.ones((5, 5), np.uint8))
    skeleton = ((inside >= ridge - 0.8) & (core > 0)).astype(np.uint8)
    width = max(2, round(hand.shape[0] * random.uniform(0.012, 0.035)))
    line = cv2.dilate(skeleton, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    noise = cv2.GaussianBlur(
        random.normal(0, 1, hand.shape).astype(np.float32), (0, 0), 0.02 * hand.shape[0]
    )
    noise /= noise.std()
    gaps = (noise < 1.9).astype(np.float32)
    flow = (0.85 + 0.12 * noise).clip(0.35, 1)
    return np.asarray(line * cv2.GaussianBlur(gaps, (0, 0), 1.5) * flow, np.float32)


def ballpoint(hand: Array, random: Random) -> Bytes:
    """Photograph a thin and interrupted ballpoint."""
    page, ink, _ = start(thin_ink(hand, random), random)
    return finish(page, ink, random, random.uniform(0.65, 1))


def glare(hand: Array, random: Random) -> Bytes:
    """Photograph a bright reflection, which makes ink and paper paler."""
    page, ink, _ = start(hand, random)
    write(page, ink, random)
    photo = light(view(page, random), random)
    y, x = get_grid(photo.shape)
    spot = random.uniform(-0.8, 0.8, 2)
    size = random.uniform(0.15, 0.6, 2)
    bright = np.exp(-(((x - spot[0]) / size[0]) ** 2) - ((y - spot[1]) / size[1]) ** 2)
    return expose(photo + random.uniform(60, 150) * bright[:, :, None], random)


def underlined(hand: Array, random: Random) -> Bytes:
    """Photograph a digit with a line drawn below it by the same pen."""
    page, ink, height = start(hand, random)
    _, bottom, left, right = get_extent(ink)
    below, over = height * random.uniform(0.1, 0.3), height * random.uniform(0, 0.25, 2)
    pen = write(page, ink, random)
    y = bottom + below
    tilt = height * random.uniform(-0.05, 0.05)
    width = height * random.uniform(0.03, 0.09)
    draw_lines(page, [((left - over[0], y), (right + over[1], y + tilt))], pen, width)
    return take(view(page, random), random)


def circled(hand: Array, random: Random) -> Bytes:
    """Photograph a digit in a circle drawn by the same pen."""
    page, ink, height = start(hand, random, 0.28)
    top, bottom, left, right = get_extent(ink)
    at = (top + bottom) / 2, (left + right) / 2
    pen = write(page, ink, random)
    reach = 0.5 * np.hypot(height, height * hand.shape[1] / hand.shape[0])
    radii = reach * random.uniform(1.12, 1.5, 2)
    turn = np.linspace(0, 2 * np.pi * random.uniform(1.0, 1.06), 90)
    wave = 1 + 0.03 * np.sin(2 * turn + random.uniform(0, 6))
    points = np.stack(
        [at[1] + radii[0] * wave * np.cos(turn), at[0] + radii[1] * wave * np.sin(turn)], 1
    )
    line = np.zeros(ink.shape, np.float32)
    width = max(2, round(height * random.uniform(0.03, 0.08)))
    cv2.polylines(line, [np.int32(16 * points)], False, 1, width, cv2.LINE_AA, 4)
    draw(page, line, pen, 0.92)
    return take(view(page, random), random)


def with_full_stop(hand: Array, random: Random) -> Bytes:
    """Photograph a digit with a full stop after it."""
    page, ink, height = start(hand, random)
    _, bottom, _, right = get_extent(ink)
    radius, dot = height * random.uniform(0.035, 0.08), np.zeros(ink.shape, np.float32)
    x, y = right + height * random.uniform(0.12, 0.35), bottom - radius
    draw_dot(dot, (x, y), radius)
    return finish(page, np.maximum(ink, dot), random)


def plain(hand: Array, random: Random) -> Bytes:
    """Photograph clean paper."""
    page, ink, _ = start(hand, random)
    return finish(page, ink, random)


def chalk(hand: Array, random: Random) -> Bytes:
    """Photograph chalk on a board."""
    page, ink, _ = start(hand, random)
    page *= np.float32(random.uniform(0.1, 0.3))
    draw(page, ink, choose(random, [(230, 230, 225), (235, 225, 140)]), 0.85)
    return take(view(page, random), random)


def empty_page(random: Random) -> Bytes:
    """Photograph an empty table, or an empty sheet on a desk."""
    if random.random() < 0.5:
        return take(lay_on_desk(make_sheet(random), random), random)
    height, width = choose_shape(random)
    page = make_paper((round(ZOOM * height), round(ZOOM * width)), random)
    colour, thickness = choose_line_ink(random)
    for axis in (0, 1)[: int(random.integers(1, 3))]:
        rule(page, random.uniform(50, 500), colour, thickness, axis, random.uniform(0, 100))
    return take(view(page, random), random)


def texture(random: Random) -> Bytes:
    """Photograph a plain desk, or a pattern of smooth noise."""
    if random.random() < 0.5:
        return take(make_desk((480, 640), random), random)
    noise = random.normal(0, 1, (480, 640)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), random.uniform(1, 40), sigmaY=random.uniform(1, 40))
    levels = 128 + random.uniform(5, 60) * smooth / smooth.std()
    return np.asarray(levels.clip(0, 255)[:, :, None].repeat(3, axis=2), np.uint8)


SCENES: dict[str, Callable[[Array, Random], Bytes]] = {
    "clean paper": plain,
    "chalk on a board": chalk,
    "a sheet on a desk": on_desk,
    "lined paper": lined,
    "squared paper": squared,
    "dotted paper": dotted,
    "a margin line": margin,
    "a hard shadow": partial(shadowed, softness=(0, 2)),
    "a soft shadow": partial(shadowed, softness=(8, 60)),
    "a form's box": boxed,
    "a table's cell": in_table,
    "a line along the edge": edge_line,
    "thin, interrupted ballpoint": ballpoint,
    "glare": glare,
    "underlined": underlined,
    "circled": circled,
    "with a full stop": with_full_stop,
}
