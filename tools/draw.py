"""Serve a page on which one draws a digit and sees what the network makes of it, live.

Only this machine can reach it, and the page asks nothing of any other.

    python -m tools.draw [--port 8000]
"""

import argparse
import logging
import socket
import threading

from flask import Flask, Response, abort, jsonify, render_template, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from stages.core.errors import StageError, run
from tools.predict import picture
from tools.predict.classifier import Classifier, load_classifier
from tools.predict.picture import PictureError

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def application(classifier: Classifier) -> Flask:
    """Return the application: the page at /, and at /predict what a picture sent there shows."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = picture.MAX_BYTES
    # A page elsewhere whose name comes to mean this machine still sends its own name.
    app.config["TRUSTED_HOSTS"] = ["localhost", HOST]
    one_at_a_time = threading.Lock()  # the network is as wide as the machine

    @app.get("/")
    def page() -> Response:
        text = render_template("draw.html", title=classifier.title, classes=classifier.classes)
        return Response(text, headers={"Content-Security-Policy": POLICY})

    @app.post("/predict")
    def predict() -> Response:
        # No form of another page can send this type, nor its script without asking first.
        if not request.mimetype.startswith("image/"):
            abort(415)
        try:
            with one_at_a_time:
                seen = classifier.prepare(picture.read(request.get_data()))
                (ranking,) = classifier.rank(seen[None])
        except PictureError as error:
            return jsonify(error=f"The picture {error}.")
        return jsonify(
            ranking=[{"class": name, "confidence": share} for name, share in ranking],
            seen=(255 * seen).round().astype(int).tolist(),
        )

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    port = parser.parse_args().port
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise StageError(f"port {port}: {error}; name another: make draw PORT=8001") from error
    with listening:
        app = application(load_classifier())
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line a stroke
        server = make_server(HOST, port, app, threaded=True, fd=listening.fileno())
        print(f"Draw at http://{HOST}:{listening.getsockname()[1]} - Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run(main)
