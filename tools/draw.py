"""Serve a web page on which you draw a digit and see the model's predictions.

The page can be opened on this machine only, and it loads nothing from the network. To see it from
another machine, forward the port: `ssh -L 8000:localhost:8000 server`. If a service such as
Codespaces forwards it under another name, add that name.

    python -m tools.draw [--port 8000] [--host-name NAME]
"""

import argparse
import base64
import io
import socket
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from flask import Flask, Response, abort, jsonify, render_template, request
from PIL import Image
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from stages.core.errors import StageError, run
from stages.core.files import Floats
from tools.predict.classifier import Classifier, load_classifier
from tools.predict.picture import MAX_BYTES, ImageFileError

HOST = "127.0.0.1"
STEP_SIZE = 240  # pixels
TIMEOUT = 10  # seconds until a client that sends nothing is disconnected
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(classifier: Classifier, host_names: tuple[str, ...] = ()) -> Flask:
    """Return the application: the page at /, and predictions for image files sent to /predict.

    It answers under `host_names` as well as under this machine's own names.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES
    # Against DNS rebinding: reject requests under any other host name.
    app.config["TRUSTED_HOSTS"] = ["localhost", HOST, *host_names]
    one_at_a_time = threading.Lock()  # one prediction already uses all cores

    @app.get("/")
    def page() -> Response:
        text = render_template("draw.html", title=classifier.title, classes=classifier.classes)
        return Response(text, headers={"Content-Security-Policy": POLICY})

    @app.post("/predict")
    def predict() -> Response:
        # Against CSRF: other sites cannot send image/* without a CORS preflight.
        if not request.mimetype.startswith("image/"):
            abort(415)
        content = request.get_data()  # others are answered while a slow client sends it
        try:
            with one_at_a_time:
                found = classifier.list_steps(content)
                image = found["network input"]
                ((ranking, reason),) = classifier.rank([image], ["photo" in found])
        except ImageFileError as error:
            return jsonify(error=f"This {error}.", steps=encode_steps(error.steps))
        steps = encode_steps(found) if request.args.get("steps") else []
        if reason:
            return jsonify(error=f"This {reason}.", image=to_levels(image), steps=steps)
        return jsonify(
            ranking=[{"class": name, "confidence": share} for name, share in ranking],
            image=to_levels(image),
            steps=steps,
        )

    @app.errorhandler(HTTPException)
    def report_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    return app


class Handler(WSGIRequestHandler):
    """Answers a request, and ends the connection of a client that stalls."""

    timeout = TIMEOUT

    def log(self, *_: object) -> None:
        """Print nothing: each stroke is a request."""


def encode_steps(found: Mapping[str, Floats]) -> list[dict[str, str]]:
    """Return the name of each step of the preparation, and its image as a data URL."""
    steps = []
    for name, step in found.items():
        stream = io.BytesIO()
        shown = Image.fromarray((255 * step.clip(0, 1)).astype(np.uint8))
        shown.thumbnail((STEP_SIZE, STEP_SIZE))
        shown.save(stream, "PNG")
        code = base64.b64encode(stream.getvalue()).decode()
        steps.append({"name": name, "address": f"data:image/png;base64,{code}"})
    return steps


def to_levels(image: Floats) -> list[list[Any]]:
    """Return the levels of an image, 0 to 255: a number for each pixel, or three in colour."""
    levels: list[list[Any]] = (255 * image).round().astype(int).tolist()
    return levels


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 for any free port")
    parser.add_argument(
        "--host-name", action="append", default=[], help="another name under which the page is seen"
    )
    arguments = parser.parse_args()
    port = arguments.port
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise StageError(f"port {port}: {error}; choose another: make draw PORT=8001") from error
    with listening:
        app = create_app(load_classifier(), tuple(arguments.host_name))
        server = make_server(
            HOST, port, app, threaded=True, request_handler=Handler, fd=listening.fileno()
        )
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        print(f"Open {address} to draw; press Ctrl-C to stop", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run(main)
