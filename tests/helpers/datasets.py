"""Small custom datasets: PNG files in the folders that datasets/README.md describes.

Run `python -m tests.helpers.datasets KIND FOLDER` to write one with 240 training images.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float64]
Random = np.random.Generator

FIGURES = ("cross", "house", "ring", "wave")
TEXTURES = ("checks", "dots", "level", "upright")


def draw_figure(name: str, shape: tuple[int, int], random: Random) -> Floats:
    """Return a figure of random size, angle, place and pen: 1 on its strokes, 0 elsewhere."""
    height, width = 4 * shape[0], 4 * shape[1]
    side, pen = random.uniform(0.4, 0.65) * min(height, width), int(random.integers(6, 13))
    page = Image.new("L", (width, height))
    draw = ImageDraw.Draw(page)
    left, top = (width - side) / 2, (height - side) / 2
    right, bottom = left + side, top + side
    if name == "cross":
        draw.line([(left, top), (right, bottom)], 255, pen)
        draw.line([(left, bottom), (right, top)], 255, pen)
    elif name == "house":
        roof = top + random.uniform(0.3, 0.5) * side
        draw.rectangle([left, roof, right, bottom], None, 255, pen)
        draw.line([(left, roof), (width / 2, top), (right, roof)], 255, pen)
    elif name == "ring":
        draw.ellipse([left, top, right, bottom], None, 255, pen)
    else:
        x = np.linspace(0, 1, 40)
        y = 0.5 + 0.35 * np.sin(2 * np.pi * (random.uniform(1, 2) * x + random.random()))
        draw.line(list(zip(left + side * x, top + side * y, strict=True)), 255, pen)
    move = random.uniform(-0.1, 0.1, 2) * (width, height)
    page = page.rotate(random.uniform(-20, 20), Image.Resampling.BICUBIC, translate=tuple(move))
    return np.asarray(page.resize(shape[::-1], Image.Resampling.BOX), float) / 255


def draw_photo(name: str, random: Random) -> Floats:
    """Return a coloured figure, lighter or darker than its uneven, grainy background."""
    shape = (36, 48)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    slope = random.uniform(-0.15, 0.15, 2)
    light = 0.5 + slope[0] * x + slope[1] * y + random.normal(0, 0.04, shape)
    colour = random.uniform(0.2, 0.45, 3) * random.choice([-1, 1])
    return light[:, :, None] + draw_figure(name, shape, random)[:, :, None] * colour


def draw_thing(name: str, random: Random) -> Floats:
    """Return a coloured figure on a light background. One in four is not 96x64 pixels large.

    The red and the green rings have the same grey level.
    """
    sizes = [(64, 96)] * 12 + [(80, 120), (64, 80), (96, 64), (50, 75)]
    shape = sizes[random.integers(len(sizes))]
    fixed = {"green ring": (0.1, 0.49, 0.1), "red ring": (0.75, 0.15, 0.15)}
    colour = fixed.get(name) or random.uniform(0, 0.5, 3)
    figure = draw_figure(name.split()[-1], shape, random)[:, :, None]
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    slope = random.uniform(-0.1, 0.1, 2)
    light = random.uniform(0.75, 0.85, 3) + (slope[0] * x + slope[1] * y)[:, :, None]
    return light * (1 - figure) + colour * figure + random.normal(0, 0.03, (*shape, 3))


def draw_texture(name: str, random: Random) -> Floats:
    """Return a light texture without any background, with grain."""
    shape = (24, 32)
    y, x = np.mgrid[: shape[0], : shape[1]] / random.uniform(5, 8) + random.random()
    level, upright = np.sin(2 * np.pi * y), np.sin(2 * np.pi * x)
    waves = {
        "checks": np.sign(level * upright),
        "dots": 2.0 * (level + upright > 1) - 1,
        "level": level,
        "upright": upright,
    }
    contrast = random.uniform(0.1, 0.25)
    return 0.7 + contrast * waves[name] + random.normal(0, 0.05, shape)


# By kind: the names of the classes, and the function that draws an image of one, in [0, 1].
KINDS: dict[str, tuple[tuple[str, ...], Callable[[str, Random], Floats]]] = {
    "light drawings": (FIGURES, lambda name, random: draw_figure(name, (28, 28), random)),
    "dark drawings": (FIGURES, lambda name, random: 1 - draw_figure(name, (40, 32), random)),
    "photos": (FIGURES, draw_photo),
    "things": (("cross", "green ring", "house", "red ring", "wave"), draw_thing),
    "textures": (TEXTURES, draw_texture),
}


def write_dataset(kind: str, folder: Path, train: int, test: int) -> None:
    """Write `train` training and `test` test images of each class."""
    random = np.random.default_rng(1)
    classes, draw = KINDS[kind]
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                levels = 255 * draw(name, random).clip(0, 1)
                image = Image.fromarray(levels.round().astype(np.uint8))
                image.save(folder / part / name / f"{number:03}.png")


if __name__ == "__main__":
    write_dataset(sys.argv[1], Path(sys.argv[2]), 60, 40)
