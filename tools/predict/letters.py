"""Draw letters as examples of what is not a digit. They are prepared like photos of digits."""

import itertools

import cv2
import numpy as np

from stages.core.files import Floats
from tools.predict.picture import ImageStyle, list_steps

LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabcdefhjkmnprtuvwxy"  # without those that look like digits
FONTS = ("sans", "italic")  # OpenCV has them built in
WEIGHTS = (300, 500, 900)  # of their strokes: 100 is thin, 400 is regular, 800 is bold
SIZE = 60  # of the font, in pixels


def draw_letters(style: ImageStyle) -> Floats:
    """Return images (n, height, width) of letters as the network would get them from photos."""
    pages = itertools.starmap(draw_letter, itertools.product(LETTERS, FONTS, WEIGHTS))
    return np.stack([list_steps(page, style)["network input"] for page in pages])


def draw_letter(letter: str, font: str, weight: int) -> Floats:
    """Return a photo (height, width, 3) of a letter, black on white."""
    page = np.full((3 * SIZE, 3 * SIZE, 3), 255, np.uint8)
    cv2.putText(page, letter, (SIZE, 2 * SIZE), (0, 0, 0), cv2.FontFace(font), SIZE, weight)
    return np.asarray(page / np.float32(255), np.float32)
