"""Measure how the model does on pictures made in many ways, and write it into docs/predict.md.

Most sets are MNIST's test digits, changed as a camera, a scanner, another pen or a drawing program
would. The others have nothing to do with MNIST: fonts, the digits that scikit-learn ships, and
strokes of a pen.

    python -m tools.benchmark.picture_sets
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from stages.core.errors import StageError, run
from stages.core.files import write_text
from stages.evaluate import accuracy_interval
from stages.sources import idx
from stages.sources.catalogue import TEST_IMAGES, TEST_LABELS
from tools.predict.classifier import Classifier, load_classifier
from tools.predict.picture import PictureError, read

COUNT = 500  # pictures a set of MNIST's digits
PAGE = Path("docs/predict.md")
MARKS = "<!-- measured by tools/picture_sets.py -->\n", "<!-- end -->\n"

Bytes = npt.NDArray[np.uint8]
Random = np.random.Generator
Picture = Image.Image
Labelled = Iterator[tuple[bytes, int]]  # image files, and the digits they show

# The digits as a hand draws them, each stroke a line through points: x and y from 0 to 1.
STROKES = {
    0: [[(0.5, 0.05), (0.2, 0.3), (0.2, 0.7), (0.5, 0.95), (0.8, 0.7), (0.8, 0.3), (0.5, 0.05)]],
    1: [[(0.35, 0.2), (0.55, 0.05), (0.55, 0.95)]],
    2: [[(0.2, 0.25), (0.45, 0.05), (0.75, 0.25), (0.6, 0.55), (0.2, 0.95), (0.85, 0.93)]],
    3: [
        [(0.2, 0.12), (0.55, 0.05), (0.75, 0.25), (0.45, 0.47)],
        [(0.45, 0.47), (0.8, 0.68), (0.55, 0.95), (0.18, 0.85)],
    ],
    4: [[(0.45, 0.05), (0.15, 0.6), (0.85, 0.6)], [(0.65, 0.3), (0.62, 0.95)]],
    5: [
        [(0.25, 0.08), (0.25, 0.45), (0.6, 0.42), (0.78, 0.68), (0.5, 0.95), (0.2, 0.85)],
        [(0.25, 0.08), (0.8, 0.06)],
    ],
    6: [
        [(0.65, 0.05), (0.3, 0.4), (0.22, 0.72), (0.5, 0.95), (0.78, 0.75), (0.55, 0.52)],
        [(0.55, 0.52), (0.25, 0.7)],
    ],
    7: [[(0.18, 0.08), (0.82, 0.08), (0.42, 0.95)]],
    8: [
        [(0.5, 0.5), (0.22, 0.27), (0.5, 0.05), (0.76, 0.27), (0.5, 0.5)],
        [(0.5, 0.5), (0.18, 0.75), (0.5, 0.95), (0.82, 0.75), (0.5, 0.5)],
    ],
    9: [[(0.75, 0.25), (0.5, 0.05), (0.25, 0.25), (0.45, 0.48), (0.75, 0.25), (0.65, 0.95)]],
}


# Another hand's way with some of them: a 1 with a foot, a looped 2, a closed 4, a crossed 7 and a 9
# with a hook.
HANDS = [
    STROKES,
    STROKES
    | {
        1: [[(0.3, 0.25), (0.5, 0.05), (0.5, 0.95)], [(0.25, 0.95), (0.75, 0.95)]],
        2: [
            [(0.2, 0.25), (0.5, 0.05), (0.75, 0.25), (0.3, 0.9), (0.18, 0.75), (0.4, 0.78)],
            [(0.4, 0.78), (0.6, 0.92), (0.85, 0.85)],
        ],
        4: [[(0.6, 0.95), (0.6, 0.05), (0.15, 0.65), (0.85, 0.65)]],
        7: [[(0.18, 0.08), (0.82, 0.08), (0.42, 0.95)], [(0.35, 0.5), (0.75, 0.5)]],
        9: [
            [(0.75, 0.25), (0.5, 0.05), (0.25, 0.25), (0.45, 0.48), (0.75, 0.25)],
            [(0.75, 0.25), (0.72, 0.75), (0.5, 0.95), (0.25, 0.85)],
        ],
    },
]


def png(picture: Picture) -> bytes:
    """Return the picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def jpeg(picture: Picture) -> bytes:
    """Return the picture as a JPEG file of low quality."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=60)
    return stream.getvalue()


def enlarged(digit: Bytes, random: Random) -> Picture:
    """Return the digit 4 to 16 times as large, somewhere in a larger picture."""
    return placed(larger(digit, random.uniform(4, 16)), random)


def larger(digit: Bytes, factor: float) -> Picture:
    """Return the digit enlarged with soft edges."""
    height, width = digit.shape
    size = round(width * factor), round(height * factor)
    return Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC)


def crisp(digit: Bytes) -> Bytes:
    """Return the digit 12 times as large, in black and white."""
    return np.uint8(255) * (np.asarray(larger(digit, 12)) > 110)


def placed(picture: Picture, random: Random) -> Picture:
    """Return the picture at a random place of one up to twice as wide and high."""
    width, height = (int(side * random.uniform(1, 2)) for side in picture.size)
    page = Image.new("L", (width, height))
    left = random.integers(0, width - picture.width, endpoint=True)
    top = random.integers(0, height - picture.height, endpoint=True)
    page.paste(picture, (int(left), int(top)))
    return page


def cropped(digit: Bytes, _: Random) -> Picture:
    """Return the digit cut out without any margin."""
    picture = Image.fromarray(crisp(digit))
    return picture.crop(picture.getbbox())


def thicker(digit: Bytes, random: Random) -> Picture:
    """Return the digit drawn with a pen broader by 1 to 1.75 of MNIST's pixels."""
    width = 2 * int(random.integers(6, 11)) + 1
    return Image.fromarray(ndimage.maximum_filter(np.pad(crisp(digit), 24), width))


def thinner(digit: Bytes, _: Random) -> Picture:
    """Return the digit with the outer half of every stroke taken away."""
    inside = ndimage.distance_transform_edt(crisp(digit))
    core = inside > 0.5 * ndimage.maximum_filter(inside, 25)
    return Image.fromarray(np.uint8(255) * core)


def noisy(digit: Bytes, random: Random) -> Picture:
    """Return the digit in grey on grey, each pixel off by a sixth of their difference."""
    levels = 40 + 0.7 * np.asarray(larger(digit, 6), float)
    return Image.fromarray(np.uint8((levels + random.normal(0, 30, levels.shape)).clip(0, 255)))


def speckled(digit: Bytes, random: Random) -> Picture:
    """Return the digit with one pixel in 50 white and one in 50 black."""
    levels, dice = np.array(larger(digit, 6)), random.random((6 * 28, 6 * 28))
    levels[dice < 0.02], levels[dice > 0.98] = 255, 0
    return Image.fromarray(levels)


def painted(page: Picture, ink: npt.ArrayLike, paper: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return red, green and blue (height, width, 3), 0 to 255, of an ink on a paper."""
    share = np.asarray(page, float)[:, :, None] / 255
    return np.asarray(share * np.asarray(ink) + (1 - share) * np.asarray(paper))


def coloured(digit: Bytes, random: Random) -> Picture:
    """Return the digit in a random colour on another that is not too like it."""
    ink, paper = random.uniform(0, 255, (2, 3))
    while np.linalg.norm(ink - paper) < 90:
        ink, paper = random.uniform(0, 255, (2, 3))
    return Image.fromarray(np.uint8(painted(enlarged(digit, random), ink, paper)))


def equally_bright(digit: Bytes, random: Random) -> Picture:
    """Return the digit in red on a green of the same brightness."""
    page = enlarged(digit, random)
    return Image.fromarray(np.uint8(painted(page, (220, 60, 60), (60, 142, 60))))


def transparent(digit: Bytes, random: Random) -> Picture:
    """Return the digit in black, white or a grey, and nothing around it."""
    page, grey = enlarged(digit, random), int(random.choice([0, 60, 200, 255]))
    picture = Image.new("RGBA", page.size, (grey, grey, grey, 0))
    picture.putalpha(page)
    return picture


def photographed(digit: Bytes, random: Random) -> Picture:
    """Return blue ink on cream paper: turned, slanted, blurred, grainy, lit from one side."""
    page = placed(Image.fromarray(crisp(digit)), random)
    turned = page.rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    width, height = turned.size
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float)
    corners += random.uniform(-0.04, 0.04, (4, 2)) * (width, height)
    slanted = turned.transform(
        turned.size, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC
    )
    colours = painted(
        slanted.filter(ImageFilter.GaussianBlur(2)), ink=(40, 50, 110), paper=(235, 228, 210)
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = random.uniform(0, 2 * np.pi)
    light = 0.7 - 0.25 * (x * np.cos(angle) + y * np.sin(angle)) - 0.1 * (x * x + y * y)
    grain = 10 * ndimage.gaussian_filter(random.normal(0, 1, (height, width)), 1.5)
    colours = (colours + grain[:, :, None]) * light[:, :, None]
    return Image.fromarray(np.uint8((colours + random.normal(0, 4, colours.shape)).clip(0, 255)))


def shadowed(digit: Bytes, random: Random) -> Picture:
    """Return such a photo with a straight, hard shadow across it."""
    colours = np.asarray(photographed(digit, random), float)
    y, x = np.mgrid[-1 : 1 : colours.shape[0] * 1j, -1 : 1 : colours.shape[1] * 1j]
    angle = random.uniform(0, 2 * np.pi)
    lit = np.where(x * np.cos(angle) + y * np.sin(angle) > 0, 1, 0.65)
    return Image.fromarray(np.uint8(colours * lit[:, :, None]))


def pen_strokes(count: int) -> Labelled:
    """Yield digits drawn as on a drawing page: each point of each stroke off, slanted, any pen."""
    random = np.random.default_rng(0)
    for number in range(count):
        digit, hand = number % 10, HANDS[number // 10 % len(HANDS)]
        picture = Image.new("L", (320, 320), 255)
        draw = ImageDraw.Draw(picture)
        pen, slant = int(random.integers(10, 31)), random.uniform(-0.25, 0.15)
        scale = random.uniform(140, 240, 2)
        for stroke in hand[digit]:
            points = np.array(stroke) + random.normal(0, 0.025, (len(stroke), 2))
            points[:, 0] -= slant * (points[:, 1] - 0.5)
            path = smooth(points) * scale + (320 - scale) / 2
            draw.line([tuple(point) for point in path.tolist()], 0, pen)
            for x, y in path.tolist():
                draw.circle((x, y), pen / 2, 0)
        yield png(picture), digit


def smooth(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 60 points of a curve through `points` (n, 2), nearly: corners are cut a little."""
    at = np.linspace(0, len(points) - 1, 60)
    steps = np.arange(len(points))
    path = np.stack([np.interp(at, steps, column) for column in points.T], axis=1)
    return np.asarray(ndimage.gaussian_filter1d(path, 2, axis=0, mode="nearest"))


def fonts() -> Labelled:
    """Yield the digits of the text fonts that Matplotlib ships, in three sizes, black on white."""
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmti10")
    for path in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("*.ttf")):
        if not path.name.startswith((*names, "cmtt10")) or "Display" in path.name:
            continue
        for size in (24, 60, 300):
            font = ImageFont.truetype(str(path), size)
            for digit in range(10):
                picture = Image.new("L", (2 * size, 2 * size), 255)
                draw = ImageDraw.Draw(picture)
                draw.text((size, size), str(digit), 0, font, anchor="mm")
                yield png(picture), digit


def small_scans() -> Labelled:
    """Yield the 1,797 digits of 8x8 pixels that scikit-learn ships, enlarged to 100x100."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for image, label in zip(images, labels.tolist(), strict=True):
        levels = np.uint8(np.pad(image.reshape(8, 8), 1) * 255 / 16)
        yield png(Image.fromarray(levels).resize((100, 100), Image.Resampling.BICUBIC)), label


Change = Callable[[Bytes, Random], Picture]

CHANGES: dict[str, tuple[Change, Callable[[Picture], bytes]]] = {
    "MNIST's test digits as they are": (lambda digit, _: Image.fromarray(digit), png),
    "black on white": (lambda digit, _: Image.fromarray(255 - digit), png),
    "enlarged, anywhere in the picture": (enlarged, png),
    "shrunk to 14x14": (lambda digit, _: larger(digit, 0.5), png),
    "cut out without a margin": (cropped, png),
    "with a broader pen": (thicker, png),
    "with a finer pen": (thinner, png),
    "noisy": (noisy, png),
    "speckled": (speckled, png),
    "in any two colours": (coloured, png),
    "red on green, equally bright": (equally_bright, png),
    "on a transparent ground": (transparent, png),
    "like a photo": (photographed, jpeg),
    "like a photo, with a hard shadow across": (shadowed, jpeg),
}


def changed(name: str, images: Bytes, labels: Bytes) -> Labelled:
    """Yield MNIST's digits (n, height, width) changed in one of the ways in CHANGES."""
    random = np.random.default_rng(0)
    change, encoded = CHANGES[name]
    for image, label in zip(images, labels.tolist(), strict=True):
        yield encoded(change(image, random)), label


def picture_sets(raw: Path, count: int) -> Iterator[tuple[str, Labelled]]:
    """Yield every set by its name, those of MNIST with every n-th of its test digits in `raw`."""
    images, labels = idx.read(raw / TEST_IMAGES, 3), idx.read(raw / TEST_LABELS, 1)
    some = slice(None, None, len(images) // count)
    for name in CHANGES:
        yield name, changed(name, images[some], labels[some])
    yield "pen strokes of two hands", pen_strokes(count)
    yield "fonts", fonts()
    yield "scikit-learn's digits, enlarged", small_scans()


def measure(classifier: Classifier, labelled: Labelled) -> tuple[int, int, int]:
    """Return how many pictures there are, are read right, and are refused."""
    seen, labels, count = [], [], 0
    for content, label in labelled:
        count += 1
        try:
            seen.append(classifier.prepare(read(content)))
            labels.append(str(label))
        except PictureError:
            continue
    rankings = classifier.rank(np.stack(seen))
    right = sum(ranking[0][0] == label for ranking, label in zip(rankings, labels, strict=True))
    return count, right, count - len(seen)


def main() -> None:
    """Measure every set and put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise StageError(f"{PAGE}: no place marked for the table")
    classifier = load_classifier()
    lines = [
        "| pictures | how many | read right | 95 % interval | refused |",
        "|---|---|---|---|---|",
    ]
    for name, labelled in picture_sets(Path("data/raw"), COUNT):
        count, right, refused = measure(classifier, labelled)
        low, high = accuracy_interval(right, count)
        lines.append(
            f"| {name} | {count:,} | {right / count:.1%} | {low:.1%} to {high:.1%} | {refused} |"
        )
        print(lines[-1], flush=True)
    write_text(PAGE, before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after)


if __name__ == "__main__":
    run(main)
