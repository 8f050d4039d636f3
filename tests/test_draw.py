"""The drawing page in a real Chromium, with a real server and real pointer events."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from helpers.project import ROOT, allow_interrupts

from benchmarks import fonts
from benchmarks.picture_sets import HANDS, encode
from benchmarks.scenes import SCENES
from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.catalogue import DIGITS, TRAIN_IMAGES
from tools import draw
from tools.predict.picture import MAX_BYTES, ImageStyle, list_steps, read_image_file

PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.xdist_group("test_draw")


@pytest.fixture(scope="module")
def served(trained):
    """The address that `python -m tools.draw` prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.draw", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=trained,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=allow_interrupts,
    ) as process:
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.fixture(params=[{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def page(request, browser, served):
    """The page in a window of a desktop or a phone; an error in the page fails the test."""
    with browser.new_page(viewport=request.param, has_touch=request.param is PHONE) as page:
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else 0)
        page.on("request", lambda sent: errors.append(sent.url) if served not in sent.url else 0)
        page.goto(served)
        yield page
        assert errors == []


def drag(page, *points, lift=True):
    """Draw with the mouse through points, with x and y from 0 to 1 in the drawing area."""
    box = page.locator("#drawing").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    if lift:
        page.mouse.up()


def draw_strokes(page, digit):
    """Draw a digit in the middle of the drawing area."""
    for stroke in HANDS[0][str(digit)]:
        drag(page, *((0.5 + 0.6 * (x - 0.5), 0.5 + 0.6 * (y - 0.5)) for x, y in stroke))


def expect_best(page, name):
    page.wait_for_function("name => document.getElementById('best').textContent === name", arg=name)


def expect_message(page, part):
    found = "part => document.getElementById('message').textContent.includes(part)"
    page.wait_for_function(found, arg=part)


def read_image(page):
    """Return the width, the height and the maximum of the image shown as network input."""
    return page.evaluate(
        "() => { const c = document.getElementById('image');"
        " return [c.width, c.height, Math.max(...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 0))]; }"
    )


def test_drawing_is_classified_and_cleared(page):
    for digit in (7, 1, 3):
        draw_strokes(page, digit)
        expect_best(page, str(digit))
        assert read_image(page) == [28, 28, 255]
        assert page.locator("#classes li").count() == 10
        assert re.fullmatch(r"Probability \d+\.\d %", page.locator("#message").inner_text())
        page.get_by_role("button", name="Clear").click()
        expect_best(page, "")
        assert read_image(page) == [1, 1, 0]


def test_prediction_comes_before_the_pen_is_lifted(page):
    drag(page, (0.5, 0.2), (0.5, 0.8), lift=False)
    expect_best(page, "1")
    page.mouse.up()


def test_newest_drawing_is_shown(page, mnist):
    draw_strokes(page, 5)  # the bar is drawn last
    page.wait_for_function("() => !queue.busy && document.getElementById('best').textContent")
    drawn = page.evaluate("() => document.getElementById('drawing').toDataURL()")
    photo = read_image_file(base64.b64decode(drawn.partition(",")[2]))
    style = ImageStyle.measure(idx.read(mnist / TRAIN_IMAGES, 3, 1000), DIGITS)
    expected = 255 * list_steps(photo, style)["network input"]
    shown = page.evaluate(
        "() => [...document.getElementById('image').getContext('2d')"
        ".getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"
    )
    assert shown == expected.round().ravel().tolist()


def test_image_keeps_its_proportions(page):
    page.evaluate("() => showImage([[0, 255, 0, 9, 7], [0, 9, 255, 0, 5]])")
    box = page.locator("#image").bounding_box()
    assert abs(box["width"] / box["height"] - 5 / 2) < 0.1  # the border adds a little


def test_page_fits_the_window(page):
    inside = "() => document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(inside)
    draw_strokes(page, 8)
    page.wait_for_selector("#classes li")
    assert page.evaluate(inside)
    for name in ("Clear", "Open image file"):
        button = page.get_by_text(name, exact=True)
        assert button.bounding_box()["height"] >= 44  # wide enough for a finger


def test_finger_draws_and_does_not_scroll(browser, served):
    with browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True) as page:
        page.goto(served)
        box = page.locator("#drawing").bounding_box()
        x, top, height = box["x"] + box["width"] / 2, box["y"] + 40, box["height"] - 80
        session = page.context.new_cdp_session(page)

        def touch(kind, *points):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

        touch("touchStart", {"x": x, "y": top})
        for step in range(1, 11):
            touch("touchMove", {"x": x, "y": top + height * step / 10})
        touch("touchEnd")
        expect_best(page, "1")
        assert page.evaluate("() => window.scrollY") == 0


def test_keys_draw_and_clear(page):
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "drawing"
    pen = "() => getComputedStyle(document.getElementById('pen')).visibility"
    assert page.evaluate(pen) == "visible"
    page.keyboard.press("Space")
    for _ in range(22):
        page.keyboard.press("ArrowDown")
    expect_best(page, "1")
    page.keyboard.press("Escape")
    expect_best(page, "")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "clear"


def test_image_file_is_opened(page, tmp_path):
    """The page shows the steps of the preparation."""
    seven = fonts.draw_character(fonts.find_text()[0], "7")
    photo = SCENES["a sheet on a desk"](seven, np.random.default_rng(1))
    (tmp_path / "sheet.jpg").write_bytes(encode(photo, "JPEG"))
    page.locator("#file").set_input_files(tmp_path / "sheet.jpg")
    expect_best(page, "7")
    steps = page.locator("#steps figure")
    assert steps.all_inner_texts() == ["photo", "sheet", "ink", "strokes", "network input"]
    widths = page.evaluate("() => [...document.querySelectorAll('#steps img')].map(i => i.width)")
    assert min(widths) > 20
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#preparation").is_hidden()
    (tmp_path / "text.png").write_text("not an image")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    expect_message(page, "is not a")


def test_two_digits_are_rejected(page):
    for x in (0.3, 0.7):
        drag(page, (x, 0.2), (x, 0.8))
    expect_message(page, "several digits")


def post(served, **changes):
    values = {"data": b"", "headers": {"Content-Type": "image/png"}} | changes
    return requests.post(f"{served}/predict", timeout=60, **values)


def test_requests_of_other_sites_are_rejected(served):
    kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    for kind in kinds:  # the types that a form on another site can send
        assert post(served, headers={"Content-Type": kind}).status_code == 415
    for host in ("attacker.example", f"attacker.example:{served.rsplit(':')[-1]}"):
        headers = {"Content-Type": "image/png", "Host": host}
        assert post(served, headers=headers).status_code == 400
        assert requests.get(served, headers={"Host": host}, timeout=60).status_code == 400
    assert requests.get(served, headers={"Host": "localhost"}, timeout=60).status_code == 200
    found = post(served, data=b"not an image")
    assert (found.status_code, "This is not an image file" in found.json()["error"]) == (200, True)
    assert requests.get(f"{served}/nothing", timeout=60).json().keys() == {"error"}
    preflight = requests.options(
        f"{served}/predict", headers={"Origin": "http://attacker.example"}, timeout=60
    )
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_other_host_names_are_allowed_by_name():
    """Codespaces and others forward the port under a name of their own."""
    classifier = SimpleNamespace(title="digits", classes=["0", "1"])
    name = "name-8000.example.org"
    for allowed, status in (((), 400), ((name,), 200)):
        client = draw.create_app(classifier, allowed).test_client()
        assert client.get("/", headers={"Host": name}).status_code == status
        assert client.get("/", headers={"Host": "attacker.example"}).status_code == 400
    # Relative, so that it also works below a path, as behind JupyterHub's proxy.
    addresses = re.findall(r'"(/?predict\b[^"]*)"', client.get("/", headers={"Host": name}).text)
    assert addresses == ["predict", "predict?steps=1"]


HEAD = b"POST /predict HTTP/1.0\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def connect(served):
    return socket.create_connection(("127.0.0.1", int(served.rsplit(":", 1)[1])), timeout=60)


def test_client_that_stalls_does_not_block_others(served):
    """It is disconnected after a time."""
    with connect(served) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf")
        started = time.monotonic()
        assert post(served, data=b"not an image").status_code == 200
        assert time.monotonic() - started < draw.TIMEOUT / 2
        assert b" 400 " in connection.recv(4096).splitlines()[0]
        assert time.monotonic() - started < 2 * draw.TIMEOUT


def test_too_large_a_request_is_rejected_unread(served):
    with connect(served) as connection:
        connection.sendall(HEAD + f"Content-Length: {MAX_BYTES + 1}\r\n\r\n".encode())
        assert b" 413 " in connection.recv(4096).splitlines()[0]


@pytest.mark.linux
def test_server_listens_on_loopback_only(served):
    port = int(served.rsplit(":", 1)[1])
    listening = [
        bytes.fromhex(line.split()[1].split(":")[0])[::-1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]
    assert listening == [bytes([127, 0, 0, 1])]


def test_port_in_use_gets_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["draw", "--port", port])
        with pytest.raises(StageError) as caught:
            draw.main()
    assert re.fullmatch(rf"port {port}: .*; choose another: make draw PORT=8001", str(caught.value))
