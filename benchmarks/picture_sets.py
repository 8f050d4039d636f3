"""Measure how well the model reads image files of many kinds, and update docs/predict.md.

The sets are MNIST's test images, changed as a camera, a scanner, another pen or a drawing program
would change them; fonts, pen strokes and scikit-learn's digits; and photos as people take them.

    python -m benchmarks.picture_sets
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from benchmarks.fonts import draw_character, find_handwriting, find_text
from benchmarks.scenes import SCENES, empty_page, texture
from benchmarks.tables import insert_tables
from stages import plot
from stages.core.errors import run
from stages.core.paths import RAW, REPORTS
from stages.download import download
from stages.evaluate import compute_accuracy_interval
from stages.sources import idx
from stages.sources.catalogue import CATALOGUE, TEST_IMAGES, TEST_LABELS
from tools.predict.__main__ import Prediction, draw_steps
from tools.predict.classifier import Classifier, load_classifier
from tools.predict.letters import LETTERS
from tools.predict.picture import ImageFileError
from tools.shared.report import format_table

COUNT = 500  # image files in each set made from MNIST
SCENE_COUNT = 200  # photos in each set of photos as people take them
SURE = 0.9  # a wrong prediction with more probability misleads
PAGE, FIGURE = Path("docs/predict.md"), Path("docs/preparation.png")
EXAMPLES = ("a sheet on a desk", "squared paper", "a hard shadow", "circled")

Bytes = npt.NDArray[np.uint8]
Random = np.random.Generator
PillowImage = Image.Image
LabelledFiles = Iterator[tuple[bytes, int]]  # the content of image files, and the digits they show

# Handwritten digits: each stroke is a line through points, with x and y from 0 to 1.
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

# A second handwriting: a 1 with a foot, a looped 2, a closed 4, a crossed 7 and a 9 with a hook.
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


def encode_png(image: PillowImage) -> bytes:
    """Return the content of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def encode_jpeg(image: PillowImage) -> bytes:
    """Return the content of a JPEG file of low quality."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=60)
    return stream.getvalue()


# In the functions below, `image` is a test image of MNIST: white on black, (28, 28) uint8.


def enlarge(image: Bytes, factor: float) -> PillowImage:
    """Return the image enlarged, with soft edges."""
    height, width = image.shape
    size = round(width * factor), round(height * factor)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def enlarge_crisp(image: Bytes) -> Bytes:
    """Return the image 12 times as large, in black and white."""
    return np.uint8(255) * (np.asarray(enlarge(image, 12)) > 110)


def place(image: PillowImage, random: Random) -> PillowImage:
    """Return the image at a random place on a black page, which is up to twice as large."""
    width, height = (int(side * random.uniform(1, 2)) for side in image.size)
    page = Image.new("L", (width, height))
    left = random.integers(0, width - image.width, endpoint=True)
    top = random.integers(0, height - image.height, endpoint=True)
    page.paste(image, (int(left), int(top)))
    return page


def enlarge_and_place(image: Bytes, random: Random) -> PillowImage:
    """Return the image 4 to 16 times as large, at a random place on a larger page."""
    return place(enlarge(image, random.uniform(4, 16)), random)


def crop(image: Bytes, _: Random) -> PillowImage:
    """Return the digit without any margin."""
    enlarged = Image.fromarray(enlarge_crisp(image))
    return enlarged.crop(enlarged.getbbox())


def thicken(image: Bytes, random: Random) -> PillowImage:
    """Return the digit with strokes that are 1 to 1.75 pixels thicker, in pixels of 28x28."""
    width = 2 * int(random.integers(6, 11)) + 1
    return Image.fromarray(ndimage.maximum_filter(np.pad(enlarge_crisp(image), 24), width))


def thin(image: Bytes, _: Random) -> PillowImage:
    """Return the digit without the outer half of every stroke."""
    inside = ndimage.distance_transform_edt(enlarge_crisp(image))
    core = inside > 0.5 * ndimage.maximum_filter(inside, 25)
    return Image.fromarray(np.uint8(255) * core)


def add_noise(image: Bytes, random: Random) -> PillowImage:
    """Return the digit in grey on grey. The noise is a sixth of the difference of the two greys."""
    levels = 40 + 0.7 * np.asarray(enlarge(image, 6), float)
    return Image.fromarray(np.uint8((levels + random.normal(0, 30, levels.shape)).clip(0, 255)))


def add_specks(image: Bytes, random: Random) -> PillowImage:
    """Return the digit with one pixel in 50 white and one in 50 black."""
    levels, dice = np.array(enlarge(image, 6)), random.random((6 * 28, 6 * 28))
    levels[dice < 0.02], levels[dice > 0.98] = 255, 0
    return Image.fromarray(levels)


def paint(page: PillowImage, ink: npt.ArrayLike, paper: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return colours (height, width, 3), 0 to 255: `ink` where the page is white, else `paper`."""
    share = np.asarray(page, float)[:, :, None] / 255
    return np.asarray(share * np.asarray(ink) + (1 - share) * np.asarray(paper))


def paint_any_colours(image: Bytes, random: Random) -> PillowImage:
    """Return the digit in one random colour on another, which is not too similar."""
    ink, paper = random.uniform(0, 255, (2, 3))
    while np.linalg.norm(ink - paper) < 90:
        ink, paper = random.uniform(0, 255, (2, 3))
    return Image.fromarray(np.uint8(paint(enlarge_and_place(image, random), ink, paper)))


def paint_equally_bright(image: Bytes, random: Random) -> PillowImage:
    """Return the digit in red on a green of the same brightness."""
    page = enlarge_and_place(image, random)
    return Image.fromarray(np.uint8(paint(page, (220, 60, 60), (60, 142, 60))))


def make_transparent(image: Bytes, random: Random) -> PillowImage:
    """Return the digit in black, white or a grey, on a transparent background."""
    page, grey = enlarge_and_place(image, random), int(random.choice([0, 60, 200, 255]))
    transparent = Image.new("RGBA", page.size, (grey, grey, grey, 0))
    transparent.putalpha(page)
    return transparent


def photograph(image: Bytes, random: Random) -> PillowImage:
    """Return a photo of blue ink on cream paper, turned, slanted, blurred, grainy, lit unevenly."""
    page = place(Image.fromarray(enlarge_crisp(image)), random)
    turned = page.rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    width, height = turned.size
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float)
    corners += random.uniform(-0.04, 0.04, (4, 2)) * (width, height)
    slanted = turned.transform(
        turned.size, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC
    )
    colours = paint(
        slanted.filter(ImageFilter.GaussianBlur(2)), ink=(40, 50, 110), paper=(235, 228, 210)
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = random.uniform(0, 2 * np.pi)
    light = 0.7 - 0.25 * (x * np.cos(angle) + y * np.sin(angle)) - 0.1 * (x * x + y * y)
    grain = 10 * ndimage.gaussian_filter(random.normal(0, 1, (height, width)), 1.5)
    colours = (colours + grain[:, :, None]) * light[:, :, None]
    return Image.fromarray(np.uint8((colours + random.normal(0, 4, colours.shape)).clip(0, 255)))


def photograph_with_shadow(image: Bytes, random: Random) -> PillowImage:
    """Return the result of `photograph` with a straight, hard shadow across it."""
    colours = np.asarray(photograph(image, random), float)
    y, x = np.mgrid[-1 : 1 : colours.shape[0] * 1j, -1 : 1 : colours.shape[1] * 1j]
    angle = random.uniform(0, 2 * np.pi)
    lit = np.where(x * np.cos(angle) + y * np.sin(angle) > 0, 1, 0.65)
    return Image.fromarray(np.uint8(colours * lit[:, :, None]))


def draw_strokes(count: int) -> LabelledFiles:
    """Yield digits as drawn on a drawing page: shaky, slanted, with thin and thick pens."""
    random = np.random.default_rng(0)
    for number in range(count):
        digit, hand = number % 10, HANDS[number // 10 % len(HANDS)]
        page = Image.new("L", (320, 320), 255)
        draw = ImageDraw.Draw(page)
        pen, slant = int(random.integers(10, 31)), random.uniform(-0.25, 0.15)
        scale = random.uniform(140, 240, 2)
        for stroke in hand[digit]:
            points = np.array(stroke) + random.normal(0, 0.025, (len(stroke), 2))
            points[:, 0] -= slant * (points[:, 1] - 0.5)
            path = smooth_path(points) * scale + (320 - scale) / 2
            draw.line([tuple(point) for point in path.tolist()], 0, pen)
            for x, y in path.tolist():
                draw.circle((x, y), pen / 2, 0)
        yield encode_png(page), digit


def smooth_path(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 60 points of a smooth curve near `points` (n, 2), with slightly rounded corners."""
    at = np.linspace(0, len(points) - 1, 60)
    steps = np.arange(len(points))
    path = np.stack([np.interp(at, steps, column) for column in points.T], axis=1)
    return np.asarray(ndimage.gaussian_filter1d(path, 2, axis=0, mode="nearest"))


def draw_fonts() -> LabelledFiles:
    """Yield the digits of Matplotlib's text fonts, in three sizes, black on white."""
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb", "cmr", "cmss", "cmti", "cmtt")
    for path in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("*.ttf")):
        if not path.name.startswith(names) or "Display" in path.name:
            continue
        for size in (24, 60, 300):
            font = ImageFont.truetype(str(path), size)
            for digit in range(10):
                page = Image.new("L", (2 * size, 2 * size), 255)
                draw = ImageDraw.Draw(page)
                draw.text((size, size), str(digit), 0, font, anchor="mm")
                yield encode_png(page), digit


def enlarge_small_scans() -> LabelledFiles:
    """Yield scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 100x100."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for image, label in zip(images, labels.tolist(), strict=True):
        levels = np.uint8(np.pad(image.reshape(8, 8), 1) * 255 / 16)
        enlarged = Image.fromarray(levels).resize((100, 100), Image.Resampling.BICUBIC)
        yield encode_png(enlarged), label


Change = Callable[[Bytes, Random], PillowImage]

CHANGES: dict[str, tuple[Change, Callable[[PillowImage], bytes]]] = {
    "MNIST's test images, unchanged": (lambda image, _: Image.fromarray(image), encode_png),
    "black on white": (lambda image, _: Image.fromarray(255 - image), encode_png),
    "enlarged, at a random place": (enlarge_and_place, encode_png),
    "shrunk to 14x14": (lambda image, _: enlarge(image, 0.5), encode_png),
    "cropped without a margin": (crop, encode_png),
    "with a thicker pen": (thicken, encode_png),
    "with a thinner pen": (thin, encode_png),
    "with noise": (add_noise, encode_png),
    "with specks": (add_specks, encode_png),
    "in two random colours": (paint_any_colours, encode_png),
    "red on green, equally bright": (paint_equally_bright, encode_png),
    "on a transparent background": (make_transparent, encode_png),
    "like a photo": (photograph, encode_jpeg),
    "like a photo with a hard shadow": (photograph_with_shadow, encode_jpeg),
}


def change_images(name: str, images: Bytes, labels: Bytes) -> LabelledFiles:
    """Yield MNIST's images (n, height, width), changed in one of the ways in CHANGES."""
    random = np.random.default_rng(0)
    change, encode = CHANGES[name]
    for image, label in zip(images, labels.tolist(), strict=True):
        yield encode(change(image, random)), label


def trim(image: Bytes) -> npt.NDArray[np.float32]:
    """Return the ink of an image of MNIST, enlarged, in black and white, without margins."""
    crisp = enlarge_crisp(image)
    rows, columns = ndimage.find_objects(crisp // 255)[0]
    return np.asarray(crisp[rows, columns] / np.float32(255), np.float32)


def make_hands(
    images: Bytes, labels: Bytes, fonts: list[Path], count: int, seed: int
) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield the ink of digits and their labels: by turns from MNIST and from fonts."""
    random = np.random.default_rng(seed)
    characters = [(font, digit) for font in fonts for digit in range(10)]
    chosen = random.permutation(len(characters)).tolist()
    step = max(1, len(images) // (count // 2))
    for number in range(count // 2):
        at = (number * step + seed) % len(images)
        yield trim(images[at]), int(labels[at])
        font, digit = characters[chosen[number % len(chosen)]]
        yield draw_character(font, str(digit)), digit


def take_photos(
    name: str, images: Bytes, labels: Bytes, fonts: list[Path], count: int
) -> LabelledFiles:
    """Yield photos of the scene with this name, half of MNIST's digits and half of fonts."""
    seed = list(SCENES).index(name)
    random = np.random.default_rng(seed)
    for hand, label in make_hands(images, labels, fonts, count, seed):
        yield encode_jpeg(Image.fromarray(SCENES[name](hand, random))), label


def draw_characters(fonts: list[Path], characters: str, count: int) -> Iterator[tuple[bytes, str]]:
    """Yield `count` characters of fonts, black on white with margins, and what they are."""
    pairs = [(font, character) for font in fonts for character in characters]
    random = np.random.default_rng(0)
    for at in random.permutation(len(pairs))[:count].tolist():
        font, character = pairs[at]
        ink = draw_character(font, character, 200)
        page = np.pad(1 - ink, random.integers(20, 120, (2, 2)), constant_values=1)
        yield encode_png(Image.fromarray(np.asarray(255 * page, np.uint8))), character


def make_sets(raw: Path, count: int) -> Iterator[tuple[str, LabelledFiles]]:
    """Yield every set with its name; `count` evenly spaced test images in `raw` are changed."""
    images, labels = idx.read(raw / TEST_IMAGES, 3), idx.read(raw / TEST_LABELS, 1)
    some = slice(None, None, len(images) // count)
    for name in CHANGES:
        yield name, change_images(name, images[some], labels[some])
    yield "pen strokes in two handwritings", draw_strokes(count)
    yield "fonts", draw_fonts()
    yield "scikit-learn's digits, enlarged", enlarge_small_scans()


def make_scenes(raw: Path, fonts: list[Path], count: int) -> Iterator[tuple[str, LabelledFiles]]:
    """Yield every set of photos as people take them, and the digits of handwriting fonts."""
    images, labels = idx.read(raw / TEST_IMAGES, 3), idx.read(raw / TEST_LABELS, 1)
    for name in SCENES:
        yield name, take_photos(name, images, labels, fonts, count)
    digits = draw_characters(fonts, "0123456789", count)
    yield "handwriting fonts", ((content, int(digit)) for content, digit in digits)


def make_others(fonts: list[Path], fashion: Bytes, count: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield sets of image files without a digit; `fashion` are images of Fashion-MNIST."""
    for name, files in (("handwriting", fonts), ("text", find_text())):
        letters = draw_characters(files, LETTERS, count)
        yield f"letters of {name} fonts", [content for content, _ in letters]
    if len(fashion):
        step = max(1, len(fashion) // count)
        yield "Fashion-MNIST", [encode_png(Image.fromarray(image)) for image in fashion[::step]]
    for name, scene in (("plain textures", texture), ("empty tables and sheets", empty_page)):
        random = np.random.default_rng(0)
        yield name, [encode_jpeg(Image.fromarray(scene(random))) for _ in range(count)]


@dataclass
class Score:
    """How many of `count` image files were classified correctly, refused, or wrong and sure."""

    count: int
    right: int
    refused: int
    sure_and_wrong: int


def evaluate(classifier: Classifier, files: Iterable[tuple[bytes, int | None]]) -> Score:
    """Return the score; the label of image files without a digit is None."""
    images, photos, labels, count = [], [], [], 0
    for content, label in files:
        count += 1
        try:
            steps = classifier.list_steps(content)
        except ImageFileError:
            continue
        images.append(steps["network input"])
        photos.append("photo" in steps)
        labels.append(str(label))
    if not images:
        return Score(count, 0, count, 0)
    right = refused = sure = 0
    rankings = classifier.rank(np.stack(images), photos)
    reasons = classifier.find_refusals(np.stack(images))
    for ranking, reason, expected in zip(rankings, reasons, labels, strict=True):
        name, confidence = ranking[0]
        refused += bool(reason)
        right += not reason and name == expected
        sure += not reason and name != expected and confidence > SURE
    return Score(count, right, refused + count - len(images), sure)


def load_fashion() -> Bytes:
    """Return the test images of Fashion-MNIST, after downloading them if they are missing."""
    folder = REPORTS / "fashion_mnist"
    dataset = CATALOGUE["fashion_mnist"]
    download(dataset, None, folder)
    return idx.read(folder / TEST_IMAGES, 3)


def draw_examples(classifier: Classifier, fonts: list[Path]) -> Figure:
    """Return a figure of the steps of the preparation, for photos of a few scenes."""
    sets, predictions = dict(make_scenes(RAW, fonts, 2)), []
    for name in EXAMPLES:
        content, _ = next(iter(sets[name]))
        steps = classifier.list_steps(content)
        (ranking,) = classifier.rank(steps["network input"][None], [True])
        predictions.append(Prediction(name, steps=steps, ranking=ranking))
    return draw_steps(predictions)


def main() -> None:
    """Evaluate every set and insert the tables and a figure into docs/predict.md."""
    classifier, fonts = load_classifier(), find_handwriting()
    with matplotlib.rc_context(plot.STYLE):
        plot.save(draw_examples(classifier, fonts), FIGURE, 60)
    rows: list[dict[str, str]] = []
    for name, files in chain(make_sets(RAW, COUNT), make_scenes(RAW, fonts, SCENE_COUNT)):
        score = evaluate(classifier, files)
        low, high = compute_accuracy_interval(score.right, score.count)
        rows.append(
            {
                "image files": name,
                "count": f"{score.count:,}",
                "correct": f"{score.right / score.count:.1%}",
                "95 % interval": f"{low:.1%} to {high:.1%}",
                "refused": f"{score.refused / score.count:.1%}",
                "wrong and more than 90 % sure": f"{score.sure_and_wrong / score.count:.1%}",
            }
        )
        print(name, score, flush=True)
    others: list[dict[str, str]] = []
    for name, contents in make_others(fonts, load_fashion(), SCENE_COUNT):
        score = evaluate(classifier, [(content, None) for content in contents])
        others.append(
            {
                "image files without a digit": name,
                "count": str(score.count),
                "refused": f"{score.refused / score.count:.1%}",
                "called a digit with more than 90 %": f"{score.sure_and_wrong / score.count:.1%}",
            }
        )
        print(name, score, flush=True)
    tables = {"image files": format_table(rows), "no digit": format_table(others)}
    insert_tables(PAGE, tables)


if __name__ == "__main__":
    run(main)
