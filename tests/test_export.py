"""Exported models, run by ONNX Runtime and LiteRT."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from stages.core.errors import StageError
from stages.core.files import write_json, write_npz
from stages.model.parallel import DataParallel
from tools.export import FORMATS, check_agreement, main, select_main_output, write_keras

SHARING = Path(__file__).parents[1] / "docs/sharing.md"
RANDOM = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize(
    ("architecture", "shape", "classes", "averaged"),
    [
        ("dense", (16, 16), 2, False),
        ("convolutional", (28, 28), 10, False),
        ("branched", (40, 32, 3), 256, True),
    ],
)
def test_every_format_predicts_the_same(
    model_with, tmp_path, architecture, shape, classes, averaged
):
    from stages.model import architectures, ensemble, storage

    model = architectures.build(model_with(architecture=architecture), shape, classes)
    # As after training, the moving averages of batch normalisation are not 0 and 1.
    trained = [weight + RANDOM.uniform(-0.1, 0.1, weight.shape) for weight in model.get_weights()]
    model.set_weights(trained)
    if averaged:
        model = ensemble.average_over_shifts(model)
    storage.save(model, "categorical_crossentropy", tmp_path / "model.keras")
    model = storage.load(tmp_path / "model.keras")
    images = RANDOM.random((7, *shape), np.float32)
    expected = DataParallel(model, 2).predict_probabilities(images, 3)
    assert (
        np.ptp(expected, axis=0) / expected.mean(axis=0)
    ).max() > 0.05  # the predictions depend on the images
    for name, (write, predict) in FORMATS.items():
        write(select_main_output(model), tmp_path / name)
        found = predict(tmp_path / name, images)
        assert (found.shape, found.dtype) == ((7, classes), np.float32)
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["n", *shape])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["n", classes])
    if shape == (28, 28):  # the example in the documentation
        (example,) = re.findall(r"^```python\n(.*?)^```$", SHARING.read_text(), re.M | re.S)
        example = example.replace("data/export", str(tmp_path))
        command = [sys.executable, "-c", example]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        assert int(ended.stdout.strip("[]\n")) == model.predict(np.zeros((1, 28, 28))).argmax()


OPEN = """
import sys
import keras
import numpy as np

model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
print(keras.__version__)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("tensorflow", "package_index")
def test_exported_model_opens_in_keras_3_10(model_with, tmp_path):
    from stages.model import architectures

    python = tmp_path / "old/bin/python"
    uv = Path(sys.executable).with_name("uv")
    cpu = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"
    packages = ["keras==3.10.*", f"{cpu}==2.20.*"]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "old"],
        [uv, "pip", "install", "--quiet", "--python", python, *packages],
    ):
        subprocess.run(command, check=True)
    images = RANDOM.random((7, 28, 28), np.float32)
    np.save(tmp_path / "images.npy", images)
    for architecture in ("convolutional", "branched"):
        parameters = model_with(architecture=architecture, dropout=0.1)
        model = select_main_output(architectures.build(parameters, (28, 28), 10))
        write_keras(model, tmp_path / "model.keras")
        files = [tmp_path / name for name in ("model.keras", "images.npy", "found.npy")]
        opened = [python, "-c", OPEN, *files]
        ended = subprocess.run(opened, check=True, capture_output=True, text=True, cwd=tmp_path)
        assert ended.stdout.strip().startswith("3.10.")
        expected = model.predict(images, verbose=0)
        np.testing.assert_allclose(np.load(files[-1]), expected, rtol=1e-4)


EXPECTED = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)


def test_agreement_is_printed():
    assert check_agreement("model.onnx", EXPECTED + np.float32([2e-6, -2e-6]), EXPECTED) == (
        "model.onnx: same prediction as Keras for 100.00% of 2 test images, "
        "probabilities differ by at most 2e-06"
    )


@pytest.mark.parametrize(
    "found", [EXPECTED[::-1], EXPECTED + np.float32(0.01), EXPECTED * np.float32("nan")]
)
def test_model_that_predicts_differently_is_rejected(found):
    with pytest.raises(StageError, match=r"^model\.onnx: .* so it is not saved$"):
        check_agreement("model.onnx", found, EXPECTED)


def test_missing_model_names_the_command(project, small_split):
    (project / "params.yaml").write_text("evaluate: {batch_size: 64, threads: 2}\n")
    write_json(project / "data/raw/dataset.json", {"classes": list("0123456789")})
    write_npz(
        project / "data/processed/test.npz",
        dict(zip(("images", "labels"), small_split, strict=True)),
    )
    with pytest.raises(StageError, match=r"^data/model/model\.keras: not found; run `make repro`"):
        main()
    assert not (project / "data/export").exists()
