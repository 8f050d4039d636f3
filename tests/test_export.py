"""The trained network in other formats, read by the programs that they are for."""

from pathlib import Path

import numpy as np
import pytest

from stages.artifacts import write_json, write_npz
from stages.parameters import StageError
from tools.export import FORMATS, compare, single

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("architecture", "shape", "classes"),
    [("dense", (16, 16), 2), ("convolutional", (28, 28), 10), ("branched", (40, 32), 256)],
)
def test_every_kind_of_network_predicts_alike_in_every_format(
    model_with, tmp_path, name, architecture, shape, classes
):
    from stages import network

    model = network.build(model_with(architecture=architecture), shape, classes)
    model.set_weights(
        [weight + RANDOM.uniform(0, 0.3, weight.shape) for weight in model.get_weights()]
    )
    network.save(model, "categorical_crossentropy", tmp_path / "model.keras")
    model = network.load(tmp_path / "model.keras")
    images = RANDOM.random((7, *shape), np.float32)
    labels = np.eye(classes, dtype=np.float32)[np.arange(7) % classes]
    expected, _ = network.predict(model, images, labels, 3)
    write, predict = FORMATS[name]
    write(single(model), tmp_path / name)
    found = predict(tmp_path / name, images)
    assert (found.shape, found.dtype) == ((7, classes), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images do make a difference


SURE = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)


def test_how_close_a_file_is_is_said():
    assert compare("model.onnx", SURE + np.float32([2e-6, -2e-6]), SURE) == (
        "model.onnx: 100.00% of 2 test images predicted as by Keras, "
        "probabilities differ by at most 2e-06"
    )


@pytest.mark.parametrize("found", [SURE[::-1], SURE + np.float32(0.01), SURE * np.float32("nan")])
def test_a_file_that_predicts_otherwise_is_refused(found):
    with pytest.raises(StageError, match=r"^model\.onnx: .* so it is not kept$"):
        compare("model.onnx", found, SURE)


@pytest.fixture
def results(tmp_path, small_split, tiny_model):
    """What the pipeline leaves of a small network, and params.yaml."""
    from stages import network

    images, labels = small_split
    write_npz(tmp_path / "data/processed/test.npz", {"images": images, "labels": labels})
    write_json(tmp_path / "data/raw/dataset.json", {"classes": [*"012345678", "T-shirt/top"]})
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "data/model").mkdir()
    network.save(tiny_model(), "categorical_crossentropy", tmp_path / "data/model/model.keras")
    return tmp_path


def test_one_command_writes_and_checks_both(results, run_python):
    ended = run_python("-m", "tools.export")
    assert ended.returncode == 0, ended.stderr
    assert [line.partition(":")[0] for line in ended.stdout.splitlines()[:2]] == list(FORMATS)
    assert "Warning" not in ended.stderr
    folder = results / "data/export"
    assert {path.name for path in folder.iterdir()} == {*FORMATS, "classes.txt"}
    assert (folder / "classes.txt").read_text().splitlines() == [*"012345678", "T-shirt/top"]


def test_without_a_model_it_says_how_to_make_one(results, run_python):
    (results / "data/model/model.keras").unlink()
    ended = run_python("-m", "tools.export")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: data/model/model.keras: not found; run `make repro` to make it\n"
    assert not (results / "data/export").exists()
