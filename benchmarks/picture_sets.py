"""Measure how well the model reads image files of many kinds, and update the pages that say so.

The sets are MNIST's test images, changed as a camera, a scanner, another pen or a drawing program
would change them; fonts, pen strokes and scikit-learn's digits; photos as people take them; and
image files without a digit, which should be refused.

    python -m benchmarks.picture_sets
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from benchmarks import fonts
from benchmarks.scenes import SCENES, empty_page, get_grid, texture
from benchmarks.tables import insert_tables
from stages import plot
from stages.core.errors import run
from stages.core.paths import RAW, REPORTS
from stages.download import download
from stages.evaluate import compute_accuracy_interval
from stages.sources import idx
from stages.sources.catalogue import CATALOGUE, DIGITS, TEST_IMAGES, TEST_LABELS
from tools.predict.__main__ import Prediction, draw_steps
from tools.predict.classifier import Classifier, load_classifier
from tools.predict.letters import LETTERS
from tools.predict.picture import ImageFileError
from tools.shared.report import format_table

COUNT = 500  # image files in each set made from MNIST
SCENE_COUNT = 200  # photos in each set of photos as people take them
SURE = 0.9  # a wrong prediction with more probability misleads
PAGE, EVIDENCE = Path("docs/predict.md"), Path("docs/evidence/photos.md")
FIGURE = Path("docs/preparation.png")
EXAMPLES = ("a sheet on a desk", "squared paper", "a hard shadow", "circled")

Bytes = npt.NDArray[np.uint8]
Random = np.random.Generator
PillowImage = Image.Image
# The content of image files, and what they show: a digit, or None.
LabelledFiles = Iterator[tuple[bytes, str | None]]

# Two handwritings: the strokes of each digit as lines through points, with x and y from 0 to 1.
# The second one has a 1 with a foot, a looped 2, a closed 4, a crossed 7 and a 9 with a hook.
FIRST, SECOND = json.loads(Path(__file__).with_name("hands.json").read_text())
HANDS = FIRST, FIRST | SECOND


def encode(image: PillowImage | Bytes, kind: str = "PNG") -> bytes:
    """Return the content of an image file; a JPEG has low quality."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, quality=60)
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
    """Return the digit in black and white, without any margin."""
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
    y, x = get_grid((height, width))
    angle = random.uniform(0, 2 * np.pi)
    light = 0.7 - 0.25 * (x * np.cos(angle) + y * np.sin(angle)) - 0.1 * (x * x + y * y)
    grain = 10 * ndimage.gaussian_filter(random.normal(0, 1, (height, width)), 1.5)
    colours = (colours + grain[:, :, None]) * light[:, :, None]
    return Image.fromarray(np.uint8((colours + random.normal(0, 4, colours.shape)).clip(0, 255)))


def photograph_with_shadow(image: Bytes, random: Random) -> PillowImage:
    """Return the result of `photograph` with a straight, hard shadow across it."""
    colours = np.asarray(photograph(image, random), float)
    y, x = get_grid(colours.shape)
    angle = random.uniform(0, 2 * np.pi)
    lit = np.where(x * np.cos(angle) + y * np.sin(angle) > 0, 1, 0.65)
    return Image.fromarray(np.uint8(colours * lit[:, :, None]))


CHANGES: dict[str, Callable[[Bytes, Random], PillowImage]] = {
    "MNIST's test images, unchanged": lambda image, _: Image.fromarray(image),
    "black on white": lambda image, _: Image.fromarray(255 - image),
    "enlarged, at a random place": enlarge_and_place,
    "shrunk to 14x14": lambda image, _: enlarge(image, 0.5),
    "cropped without a margin": crop,
    "with a thicker pen": thicken,
    "with a thinner pen": thin,
    "with noise": add_noise,
    "with specks": add_specks,
    "in two random colours": paint_any_colours,
    "red on green, equally bright": paint_equally_bright,
    "on a transparent background": make_transparent,
    "like a photo": photograph,
    "like a photo with a hard shadow": photograph_with_shadow,
}


def change_images(name: str, images: Bytes, labels: list[str]) -> LabelledFiles:
    """Yield MNIST's images (n, height, width), changed in one of the ways in CHANGES."""
    random = np.random.default_rng(0)
    for image, label in zip(images, labels, strict=True):
        changed = CHANGES[name](image, random)
        yield encode(changed, "JPEG" if name.startswith("like a photo") else "PNG"), label


def draw_strokes(count: int) -> LabelledFiles:
    """Yield digits as drawn on a drawing page: shaky, slanted, with thin and thick pens."""
    random = np.random.default_rng(0)
    for number in range(count):
        digit, hand = number % 10, HANDS[number // 10 % len(HANDS)]
        page = Image.new("L", (320, 320), 255)
        draw = ImageDraw.Draw(page)
        pen, slant = int(random.integers(10, 31)), random.uniform(-0.25, 0.15)
        scale = random.uniform(140, 240, 2)
        for stroke in hand[str(digit)]:
            points = np.array(stroke) + random.normal(0, 0.025, (len(stroke), 2))
            points[:, 0] -= slant * (points[:, 1] - 0.5)
            at = np.linspace(0, len(points) - 1, 60)
            curve = [np.interp(at, np.arange(len(points)), column) for column in points.T]
            path = ndimage.gaussian_filter1d(np.transpose(curve), 2, axis=0, mode="nearest")
            path = path * scale + (320 - scale) / 2
            draw.line([tuple(point) for point in path.tolist()], 0, pen)
            for x, y in path.tolist():
                draw.circle((x, y), pen / 2, 0)
        yield encode(page), str(digit)


def draw_fonts() -> LabelledFiles:
    """Yield the digits of Matplotlib's text fonts, in three sizes, black on white."""
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb", "cmr", "cmss", "cmti", "cmtt")
    for path in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("*.ttf")):
        if not path.name.startswith(names) or "Display" in path.name:
            continue
        for size in (24, 60, 300):
            font = ImageFont.truetype(str(path), size)
            for digit in DIGITS:
                page = Image.new("L", (2 * size, 2 * size), 255)
                ImageDraw.Draw(page).text((size, size), digit, 0, font, anchor="mm")
                yield encode(page), digit


def enlarge_small_scans() -> LabelledFiles:
    """Yield scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 100x100."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for image, label in zip(images, labels.tolist(), strict=True):
        levels = np.uint8(np.pad(image.reshape(8, 8), 1) * 255 / 16)
        yield (
            encode(Image.fromarray(levels).resize((100, 100), Image.Resampling.BICUBIC)),
            str(label),
        )


def take_photos(
    name: str, images: Bytes, labels: list[str], paths: list[Path], count: int
) -> LabelledFiles:
    """Yield photos of the scene with this name, half of MNIST's digits and half of fonts."""
    seed = list(SCENES).index(name)
    random, order = np.random.default_rng(seed), np.random.default_rng(seed)
    characters = [(path, digit) for path in paths for digit in DIGITS]
    chosen = order.permutation(len(characters)).tolist()
    step = max(1, len(images) // (count // 2))
    for number in range(count // 2):
        at = (number * step + seed) % len(images)
        hand = np.asarray(crop(images[at], random), np.float32) / np.float32(255)
        yield encode(SCENES[name](hand, random), "JPEG"), labels[at]
        path, digit = characters[chosen[number % len(chosen)]]
        hand = fonts.draw_character(path, digit)
        yield encode(SCENES[name](hand, random), "JPEG"), digit


def draw_characters(
    paths: list[Path], characters: Iterable[str], count: int, digits: bool = False
) -> LabelledFiles:
    """Yield `count` characters of fonts, black on white with margins."""
    pairs = [(path, character) for path in paths for character in characters]
    random = np.random.default_rng(0)
    for at in random.permutation(len(pairs))[:count].tolist():
        path, character = pairs[at]
        ink = fonts.draw_character(path, character, 200)
        page = np.pad(1 - ink, random.integers(20, 120, (2, 2)), constant_values=1)
        yield encode(np.asarray(255 * page, np.uint8)), character if digits else None


def draw_scenes(scene: Callable[[Random], Bytes], count: int) -> LabelledFiles:
    """Yield photos of a scene without a digit."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield encode(scene(random), "JPEG"), None


def load_fashion(count: int) -> LabelledFiles:
    """Yield test images of Fashion-MNIST, after downloading them if they are missing."""
    folder = REPORTS / "fashion_mnist"
    download(CATALOGUE["fashion_mnist"], None, folder)
    images = idx.read(folder / TEST_IMAGES, 3)
    return ((encode(image), None) for image in images[:: len(images) // count])


Sets = Mapping[str, Callable[[], LabelledFiles]]


def list_sets(raw: Path, count: int) -> Sets:
    """Return what yields each set by its name; `count` evenly spaced test images are changed."""
    images = idx.read(raw / TEST_IMAGES, 3)
    some = images[:: len(images) // count]
    labels = idx.read(raw / TEST_LABELS, 1)[:: len(images) // count].astype(str).tolist()
    return {name: partial(change_images, name, some, labels) for name in CHANGES} | {
        "pen strokes in two handwritings": partial(draw_strokes, count),
        "fonts": draw_fonts,
        "scikit-learn's digits, enlarged": enlarge_small_scans,
    }


def list_scenes(raw: Path, paths: list[Path], count: int) -> Sets:
    """Return what yields each set of photos as people take them, and of the digits of fonts."""
    images = idx.read(raw / TEST_IMAGES, 3)
    labels = idx.read(raw / TEST_LABELS, 1).astype(str).tolist()
    return {name: partial(take_photos, name, images, labels, paths, count) for name in SCENES} | {
        "handwriting fonts": partial(draw_characters, paths, DIGITS, count, digits=True),
    }


def list_others(paths: list[Path], count: int) -> Sets:
    """Return what yields each set of image files without a digit."""
    return {
        "letters of handwriting fonts": partial(draw_characters, paths, LETTERS, count),
        "letters of text fonts": partial(draw_characters, fonts.find_text(), LETTERS, count),
        "Fashion-MNIST": partial(load_fashion, count),
        "plain textures": partial(draw_scenes, texture, count),
        "empty tables and sheets": partial(draw_scenes, empty_page, count),
    }


@dataclass
class Score:
    """How many of `count` image files were classified correctly, refused, or wrong and sure."""

    count: int = 0
    right: int = 0
    refused: int = 0
    sure_and_wrong: int = 0


def evaluate(classifier: Classifier, files: Iterable[tuple[bytes, str | None]]) -> Score:
    """Return the score of image files."""
    score = Score()
    for content, label in files:
        score.count += 1
        try:
            steps = classifier.list_steps(content)
        except ImageFileError:
            score.refused += 1
            continue
        ((ranking, reason),) = classifier.rank([steps["network input"]], ["photo" in steps])
        name, confidence = ranking[0]
        score.refused += bool(reason)
        score.right += not reason and name == label
        score.sure_and_wrong += not reason and name != label and confidence > SURE
    return score


def draw_examples(classifier: Classifier, paths: list[Path]) -> Figure:
    """Return a figure of the steps of the preparation, for photos of a few scenes."""
    sets, predictions = list_scenes(RAW, paths, 2), []
    for name in EXAMPLES:
        content, _ = next(sets[name]())
        steps = classifier.list_steps(content)
        ((ranking, _),) = classifier.rank([steps["network input"]], [True])
        predictions.append(Prediction(name, steps=steps, ranking=ranking))
    return draw_steps(predictions)


def main() -> None:
    """Evaluate every set and insert the tables and a figure into the pages."""
    classifier, paths = load_classifier(), fonts.find_handwriting()
    with matplotlib.rc_context(plot.STYLE):
        plot.save(draw_examples(classifier, paths), FIGURE, 60)
    short, rows, others = [], [], []
    simple = list_sets(RAW, COUNT)
    digits = {**simple, **list_scenes(RAW, paths, SCENE_COUNT)}
    for name, files in {**digits, **list_others(paths, SCENE_COUNT)}.items():
        score = evaluate(classifier, files())
        print(name, score, flush=True)
        right, refused, sure = (
            f"{number / score.count:.1%}"
            for number in (score.right, score.refused, score.sure_and_wrong)
        )
        if name not in simple:
            short.append({"image files": name, "correct": right if name in digits else refused})
        if name in digits:
            low, high = compute_accuracy_interval(score.right, score.count)
            rows.append(
                {
                    "image files": name,
                    "count": f"{score.count:,}",
                    "correct": right,
                    "95 % interval": f"{low:.1%} to {high:.1%}",
                    "refused": refused,
                    "wrong and more than 90 % sure": sure,
                }
            )
        else:
            others.append(
                {
                    "image files without a digit": name,
                    "count": str(score.count),
                    "refused": refused,
                    "called a digit with more than 90 %": sure,
                }
            )
    insert_tables(PAGE, {"photos": format_table(short)})
    insert_tables(EVIDENCE, {"image files": format_table(rows), "no digit": format_table(others)})


if __name__ == "__main__":
    run(main)
