"""Fonts of handwriting from npm packages, whose digits and letters are drawn as people write."""

import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from stages.core.errors import StageError
from stages.core.paths import REPORTS

HANDWRITING = (
    *("amatic-sc", "architects-daughter", "caveat", "caveat-brush", "cedarville-cursive"),
    *("comic-neue", "covered-by-your-grace", "dancing-script", "delius", "gloria-hallelujah"),
    *("gochi-hand", "handlee", "homemade-apple", "indie-flower", "kalam", "neucha"),
    *("patrick-hand", "permanent-marker", "reenie-beanie", "rock-salt", "schoolbell"),
    *("shadows-into-light", "short-stack", "sue-ellen-francisco"),
)
TEXT = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSansMono", "cmr10", "STIXGeneral")
VERSION = "5.3.0"  # of all packages
FOLDER = REPORTS / "fonts"


def find_handwriting(folder: Path = FOLDER) -> list[Path]:
    """Return the files of the handwriting fonts in `folder`, after downloading what is missing."""
    paths = [folder / f"{name}.woff" for name in HANDWRITING]
    missing = [path for path in paths if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {len(missing)} fonts with npm", file=sys.stderr)
        packages = [f"@fontsource/{path.stem}@{VERSION}" for path in missing]
        command = ["npm", "pack", *packages, "--ignore-scripts", "--loglevel=error"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            raise StageError(f"the fonts cannot be fetched with npm: {error}") from error
    for path in missing:
        archive = folder / f"fontsource-{path.stem}-{VERSION}.tgz"
        with tarfile.open(archive) as package:
            member = package.extractfile(f"package/files/{path.stem}-latin-400-normal.woff")
            assert member is not None  # it is None only for members that are not files
            path.write_bytes(member.read())
        archive.unlink()
    return paths


def find_text() -> list[Path]:
    """Return the files of Matplotlib's text fonts."""
    folder = Path(matplotlib.get_data_path(), "fonts/ttf")
    return [folder / f"{name}.ttf" for name in TEXT]


def draw_character(path: Path, character: str, size: int = 320) -> npt.NDArray[np.float32]:
    """Return the ink of a character (height, width), 0 to 1, without margins."""
    font = ImageFont.truetype(str(path), size)
    page = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(page).text((1.5 * size, 1.5 * size), character, 255, font, anchor="mm")
    return np.asarray(page.crop(page.getbbox()), np.float32) / np.float32(255)
