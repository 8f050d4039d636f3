"""Take the pictures of the drawing page and of a comparison that README shows.

Writes docs/draw.png and docs/compare.png. Draws a digit with the mouse, and compares the last
commit with an experiment of two epochs, which takes half a minute. Needs Chromium.

    python -m benchmarks.screenshots
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from stages.core.errors import StageError, run
from stages.core.paths import REPORTS

DOCS = Path("docs")
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
# A three, as corners of one stroke. 0 and 1 are the edges of the drawing area.
STROKE = [(0.3, 0.3), (0.45, 0.2), (0.62, 0.25), (0.64, 0.38), (0.48, 0.47), (0.66, 0.55)]
STROKE += [(0.69, 0.7), (0.55, 0.82), (0.38, 0.8), (0.3, 0.7)]


def take_draw(page: Page) -> None:
    """Save a picture of the drawing page with a digit on it."""
    command = [sys.executable, "-m", "tools.draw", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            if not found:
                raise StageError("the drawing page did not start, for the reason above")
            page.goto(found[0])
            box = page.locator("#drawing").bounding_box()
            assert box is not None
            points = [
                (box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in STROKE
            ]
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=10)
            page.mouse.up()
            expect(page.locator("#best")).to_have_text("3", timeout=60_000)
            page.screenshot(path=DOCS / "draw.png")
        finally:
            server.terminate()


def take_comparison(page: Page) -> None:
    """Save a picture of the report that compares the default with a shorter training."""
    name = "two-epochs"
    dvc = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--force", "--name", name]
    subprocess.run([*dvc, "-S", "train.epochs=2"], check=True)
    subprocess.run([sys.executable, "-m", "tools.compare", "HEAD", name], check=False)
    page.goto((REPORTS / "compare.html").resolve().as_uri())
    page.screenshot(path=DOCS / "compare.png")


def main() -> None:
    """Take both pictures."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise StageError(f"none of {', '.join(BROWSERS)} is on the PATH; install Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        take_draw(page)
        take_comparison(page)
        browser.close()
    print(f"Saved {DOCS / 'draw.png'} and {DOCS / 'compare.png'}")


if __name__ == "__main__":
    run(main)
