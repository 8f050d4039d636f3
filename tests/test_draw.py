"""The page to draw on, as a browser sees it: a real server, a real Chromium, real pointers."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from helpers.project import ROOT, allow_interrupts
from PIL import Image

from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.catalogue import DIGITS, TRAIN_IMAGES
from tools import draw
from tools.benchmark.picture_sets import STROKES, png
from tools.predict.__main__ import picture
from tools.predict.picture import Look

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def served(trained):
    """The address that `python -m tools.draw` says it serves at."""
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


@pytest.fixture(params=[{"width": 1280, "height": 800}, PHONE], ids=["desk", "phone"])
def page(request, browser, served):
    """The page in a window as wide as a desk's or a phone's; any fault of it fails the test."""
    with browser.new_page(viewport=request.param, has_touch=request.param is PHONE) as page:
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else 0)
        page.on("request", lambda asked: faults.append(asked.url) if served not in asked.url else 0)
        page.goto(served)
        yield page
        assert faults == []


def draw_strokes(page, digit, size=0.6):
    """Draw a digit with the mouse, its strokes in the middle of the board."""
    box = page.locator("#drawing").bounding_box()
    for stroke in STROKES[digit]:
        points = [
            (
                box["x"] + box["width"] * (0.5 + size * (x - 0.5)),
                box["y"] + box["height"] * (0.5 + size * (y - 0.5)),
            )
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=5)
        page.mouse.up()


def expect_best(page, name):
    page.wait_for_function("name => document.getElementById('best').textContent === name", arg=name)


def seen_levels(page):
    return page.evaluate(
        "() => { const c = document.getElementById('seen');"
        " return [c.width, c.height, Math.max(...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 0))]; }"
    )


def test_drawing_is_answered_live_and_cleared(page):
    for digit in (7, 1, 3):
        draw_strokes(page, digit)
        expect_best(page, str(digit))
        assert seen_levels(page) == [28, 28, 255]
        assert page.locator("#shares li").count() == 10
        assert re.fullmatch(r"\d+\.\d % sure", page.locator("#sure").inner_text())
        page.get_by_role("button", name="Clear").click()
        expect_best(page, "")
        assert seen_levels(page) == [1, 1, 0]


def test_answer_comes_before_the_pen_is_lifted(page):
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.8, steps=8)
    expect_best(page, "1")
    page.mouse.up()


def test_what_is_shown_is_of_the_newest_drawing(page, mnist):
    draw_strokes(page, 5)  # its bar comes last
    page.wait_for_function("() => !ask.busy && document.getElementById('best').textContent")
    drawn = page.evaluate("() => document.getElementById('drawing').toDataURL()")
    colours = picture.read(base64.b64decode(drawn.partition(",")[2]))
    look = Look.of(idx.read(mnist / TRAIN_IMAGES, 3, 1000), DIGITS)
    expected = 255 * picture.prepare(colours, look)
    shown = page.evaluate(
        "() => [...document.getElementById('seen').getContext('2d')"
        ".getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"
    )
    assert shown == expected.round().ravel().tolist()


def test_what_was_seen_keeps_its_proportions(page):
    page.evaluate("() => showSeen([[0, 255, 0, 9, 7], [0, 9, 255, 0, 5]])")
    box = page.locator("#seen").bounding_box()
    assert abs(box["width"] / box["height"] - 5 / 2) < 0.1  # but for its border


def test_page_fits_the_window(page):
    inside = "() => document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(inside)
    draw_strokes(page, 8)
    page.wait_for_selector("#shares li")
    assert page.evaluate(inside)
    for name in ("Clear", "Open a picture"):
        assert page.get_by_text(name, exact=True).bounding_box()["height"] >= 44  # a finger's width


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
    assert page.evaluate("() => getComputedStyle(document.getElementById('pen')).visibility") == (
        "visible"
    )
    page.keyboard.press("Space")
    for _ in range(22):
        page.keyboard.press("ArrowDown")
    expect_best(page, "1")
    page.keyboard.press("Escape")
    expect_best(page, "")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "clear"


def test_picture_of_ones_own_is_opened(page, tmp_path):
    image = Image.new("L", (300, 300), 255)
    image.paste(0, (140, 50, 160, 250))
    (tmp_path / "one.png").write_bytes(png(image))
    page.locator("#file").set_input_files(tmp_path / "one.png")
    expect_best(page, "1")
    (tmp_path / "text.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    page.wait_for_function("() => document.getElementById('sure').textContent.includes('is not a')")


def test_two_digits_are_said_to_be_two(page):
    box = page.locator("#drawing").bounding_box()
    for x in (0.3, 0.7):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.8, steps=3)
        page.mouse.up()
    page.wait_for_function(
        "() => document.getElementById('sure').textContent.includes('several digits')"
    )


def ask(served, **changes):
    values = {"data": b"", "headers": {"Content-Type": "image/png"}} | changes
    return requests.post(f"{served}/predict", timeout=60, **values)


def test_only_pictures_of_bounded_size_sent_by_this_page_are_taken(served):
    kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    for kind in kinds:  # what a form of another site could send
        assert ask(served, headers={"Content-Type": kind}).status_code == 415
    for host in ("attacker.example", f"attacker.example:{served.rsplit(':')[-1]}"):
        headers = {"Content-Type": "image/png", "Host": host}
        assert ask(served, headers=headers).status_code == 400
        assert requests.get(served, headers={"Host": host}, timeout=60).status_code == 400
    assert requests.get(served, headers={"Host": "localhost"}, timeout=60).status_code == 200
    found = ask(served, data=b"no picture")
    assert (found.status_code, "is not a picture" in found.json()["error"]) == (200, True)
    assert requests.get(f"{served}/nothing", timeout=60).json().keys() == {"error"}
    preflight = requests.options(
        f"{served}/predict", headers={"Origin": "http://attacker.example"}, timeout=60
    )
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_too_large_a_request_is_refused_unread(served):
    port = int(served.rsplit(":", 1)[1])
    head = "POST /predict HTTP/1.0\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: {picture.MAX_BYTES + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_only_this_machine_is_listened_to(served):
    port = int(served.rsplit(":", 1)[1])
    listening = [
        bytes.fromhex(line.split()[1].split(":")[0])[::-1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]
    assert listening == [bytes([127, 0, 0, 1])]


def test_port_in_use_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["draw", "--port", port])
        with pytest.raises(StageError) as caught:
            draw.main()
    assert re.fullmatch(rf"port {port}: .*; name another: make draw PORT=8001", str(caught.value))
