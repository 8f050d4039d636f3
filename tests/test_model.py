import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.checks import get_refusal
from helpers.damage import damaged
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import StageError
from stages.core.files import read_json
from stages.model import architectures, arithmetic, calibration, ensemble, storage
from stages.model.parallel import DataParallel
from stages.model.settings import ModelParameters

pytestmark = pytest.mark.usefixtures("tensorflow")

SHAPE, CLASSES = (28, 28), 10


@pytest.fixture
def images():
    return np.random.default_rng(0).random((64, *SHAPE), np.float32)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_both_apis_build_the_same_network(images, model_with, architecture):
    models = [
        architectures.build(
            model_with(architecture=architecture, api=api, dropout=0.5), SHAPE, CLASSES
        )
        for api in ("sequential", "functional")
    ]
    sequential, functional = models
    assert isinstance(sequential, keras.Sequential)
    assert not isinstance(functional, keras.Sequential)
    kinds = [[type(layer) for layer in model.layers] for model in models]
    assert kinds[0] == kinds[1][1:]  # the functional one lists its input too
    for ours, theirs in zip(sequential.get_weights(), functional.get_weights(), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    predictions = [DataParallel(model, 2).predict(images, verbose=0) for model in models]
    assert predictions[0].tobytes() == predictions[1].tobytes()


def test_notebook_network_has_the_pages_parameter_count(model_with):
    notebook = model_with(architecture="dense", hidden_units=[128], batch_normalization=False)
    model = architectures.build(notebook, SHAPE, CLASSES)
    assert model.count_params() == 784 * 128 + 128 + 128 * 10 + 10 == 101_770


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        # Convolutions of 5x5 and 3x3 pixels leave 8x8; a normalisation has four values a filter.
        ("convolutional", 25 * 5 + 20 + 9 * 5 * 7 + 28 + 64 * 7 * 8 + 32 + 90),
        # Two branches of 3x3 and 5x5 pixels, then 3x3 leave 10x10; the auxiliary output.
        ("branched", 9 * 5 + 25 * 5 + 40 + 9 * 10 * 7 + 28 + 100 * 7 * 8 + 32 + 90 + 110),
    ],
)
def test_convolutions_have_these_sizes(model_with, architecture, count):
    parameters = model_with(architecture=architecture, filters=[[5], [7]])
    model = architectures.build(parameters, SHAPE, CLASSES)
    assert model.count_params() == count
    kinds = keras.layers.BatchNormalization
    assert {layer.momentum for layer in model.layers if isinstance(layer, kinds)} == {0.9}


def test_too_many_convolutions_are_refused(model_with):
    parameters = model_with(crop=1, filters=[[2], [2, 2]])
    reason = r"model\.crop is 1 and model\.filters \[\[2\], \[2, 2\]\]: images of 15x40 pixels"
    with pytest.raises(StageError, match=reason):
        architectures.build(parameters, (15, 40), CLASSES)  # 15 - 2 - 4, halved: 4 - 2 - 2
    model = architectures.build(parameters, (16, 40), CLASSES)
    assert model.layers[-6].output.shape == (None, 1, 13, 2)


def test_initial_weights_follow_the_seed(model_with):
    def first(seed):
        return architectures.build(model_with(seed=seed), SHAPE, CLASSES).get_weights()[0]

    assert first(1).tobytes() == first(1).tobytes()
    assert first(1).tobytes() != first(2).tobytes()


def test_batch_normalization_and_dropout_can_be_off(model_with):
    def kinds(**values):
        model = architectures.build(model_with(**values), SHAPE, CLASSES)
        return {type(layer).__name__ for layer in model.layers}

    for architecture in ("dense", "convolutional", "branched"):
        with_both = kinds(architecture=architecture, batch_normalization=True, dropout=0.5)
        with_none = kinds(architecture=architecture, batch_normalization=False, dropout=0.0)
        assert with_both - with_none == {"BatchNormalization", "Dropout"}


def test_dropout_acts_in_training_only(images, model_with):
    dropping = architectures.build(model_with(architecture="dense", dropout=0.9), SHAPE, CLASSES)
    plain = architectures.build(model_with(architecture="dense", dropout=0.0), SHAPE, CLASSES)
    plain.set_weights(dropping.get_weights())
    assert dropping(images, training=False).numpy().tobytes() == plain(images).numpy().tobytes()
    assert not np.allclose(dropping(images, training=True), plain(images, training=True))


def test_branched_network_has_two_branches_and_outputs(images, model_with):
    model = architectures.build(model_with(architecture="branched"), SHAPE, CLASSES)
    (merge,) = [layer for layer in model.layers if isinstance(layer, keras.layers.Concatenate)]
    assert len(merge.input) == 2
    outputs = model.predict(images, verbose=0)
    assert set(outputs) == {"main", "auxiliary"}
    for probabilities in outputs.values():
        assert probabilities.shape == (64, CLASSES)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert not np.allclose(outputs["main"], outputs["auxiliary"])


@pytest.mark.parametrize("architecture", ["dense", "convolutional", "branched"])
def test_portable_model_computes_the_same_function(images, model_with, architecture):
    model = architectures.build(model_with(architecture=architecture), SHAPE, CLASSES)
    rng = np.random.default_rng(1)
    model.set_weights([rng.random(w.shape, np.float32) for w in model.get_weights()])
    portable_model = DataParallel(model, 1)
    for training in (False, True):
        ours, theirs = (
            keras.tree.flatten(m(images, training=training)) for m in (portable_model, model)
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    for a, b in zip(portable_model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # moving averages too


def test_two_saves_have_the_same_bytes(model_with, tmp_path):
    for name in ("one", "two"):
        keras.utils.clear_session()  # names layers from 1 again, as a new process does
        model = architectures.build(model_with(), SHAPE, CLASSES)
        storage.save(model, "categorical_crossentropy", tmp_path / name / "model.keras")
    one, two = ((tmp_path / name / "model.keras").read_bytes() for name in ("one", "two"))
    assert one == two


def test_saved_file_holds_no_date_and_no_memory_address(model_with, tmp_path):
    path = tmp_path / "model.keras"
    storage.save(
        architectures.build(model_with(), SHAPE, CLASSES), "categorical_crossentropy", path
    )
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read("metadata.json")) == {"keras_version": keras.__version__}
        config = archive.read("config.json").decode()
    assert '"shared_object_id": 1' in config
    assert max(int(number) for number in re.findall(r"_id\": (\d+)", config)) < 100


OPEN_WITH_KERAS = """
import sys
import keras
import numpy as np

images = np.load("images.npy")
for name in sys.argv[1:]:
    found = keras.models.load_model(f"{name}.keras").predict(images, verbose=0)
    np.save(f"{name}.npy", found["main"] if isinstance(found, dict) else found)
assert "stages" not in sys.modules
"""


def test_plain_keras_opens_saved_models(images, model_with, tmp_path):
    names = ["dense", "convolutional", "branched"]
    for name in names:
        model = architectures.build(model_with(architecture=name), SHAPE, CLASSES)
        storage.save(model, "categorical_crossentropy", tmp_path / f"{name}.keras")
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-W", "error", "-c", OPEN_WITH_KERAS, *names]
    subprocess.run(command, check=True, cwd=tmp_path)
    for name in names:
        model = storage.load(tmp_path / f"{name}.keras")
        ours = DataParallel(model, 2).predict_probabilities(images, 32)
        theirs = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "mean_squared_error"])
@pytest.mark.parametrize("architecture", ["dense", "branched"])
def test_mean_loss_uses_trained_loss_and_main_output(model_with, tmp_path, loss, architecture):
    images = np.zeros((3, *SHAPE), np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2]]
    model = architectures.build(model_with(architecture=architecture), SHAPE, CLASSES)
    storage.save(model, loss, tmp_path / "model.keras")
    loaded = storage.load(tmp_path / "model.keras")
    probabilities = DataParallel(loaded, 2).predict_probabilities(images, 2)
    found = calibration.compute_mean_loss(loaded, labels, probabilities)
    # A blank image, random weights and zero biases: every class is equally likely.
    np.testing.assert_allclose(probabilities, 0.1, rtol=1e-6)
    expected = np.log(10) if loss == "categorical_crossentropy" else (0.9**2 + 9 * 0.1**2) / 10
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_damaged_model_gives_one_line(model_with, tmp_path, damage):
    path = tmp_path / "model.keras"
    storage.save(
        architectures.build(model_with(), SHAPE, CLASSES), "categorical_crossentropy", path
    )
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(StageError, match=r"model\.keras: not readable as a model"):
        storage.load(path)
    with pytest.raises(StageError):
        read_json(path)


def test_replicas_keep_the_order_for_any_batch_size(images, model_with):
    model = architectures.build(model_with(), SHAPE, CLASSES)
    expected = model(images).numpy()
    for replicas, count in ((1, 64), (2, 63), (3, 64), (4, 2), (4, 1)):
        found = DataParallel(model, replicas)(images[:count]).numpy()
        assert found.shape == (count, CLASSES)
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-6)


def test_predictions_are_traced_once(images, model_with):
    portable_model = DataParallel(architectures.build(model_with(), SHAPE, CLASSES), 2)
    whole = portable_model.predict_probabilities(images, len(images))
    for size in (1, 7, 33, 100):
        np.testing.assert_allclose(
            portable_model.predict_probabilities(images, size), whole, rtol=1e-4, atol=1e-6
        )
    assert portable_model.main_output.experimental_get_tracing_count() == 1


def test_cross_entropy_of_replicas_uses_logits(images, model_with):
    model = architectures.build(model_with(), SHAPE, CLASSES)
    kernel, bias = model.get_layer("main").get_weights()
    model.get_layer("main").set_weights([1000 * kernel, bias])
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(64) % CLASSES]
    found = float(arithmetic.CategoricalCrossentropy()(labels, DataParallel(model, 2)(images)))
    assert found > -np.log(1e-7)  # the largest value that clipped probabilities allow
    expected = float(keras.losses.CategoricalCrossentropy()(labels, model(images)))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("api", ["sequential", "functional"])
def test_ensemble_averages_its_members(images, model_with, tmp_path, api):
    members = [
        architectures.build(model_with(seed=seed, api=api), SHAPE, CLASSES) for seed in (1, 2)
    ]
    model = ensemble.average_members(members)
    storage.save(model, "categorical_crossentropy", tmp_path / "model.keras")
    opened = storage.load(tmp_path / "model.keras")
    mean = sum(member(images).numpy() for member in members) / 2
    check_probabilities(opened, images, mean)


def check_probabilities(model, images, expected):
    """Check what the Keras model and its portable form predict."""
    np.testing.assert_allclose(model(images), expected, rtol=1e-5)
    found = DataParallel(model, 2).predict_probabilities(images, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["dense", "convolutional", "branched"])
def test_every_network_takes_colours(model_with, tmp_path, architecture):
    """It depends on each of them. Its portable form, and the average over shifts, do so too."""
    parameters = model_with(architecture=architecture, crop=2)
    model = architectures.build(parameters, (*SHAPE, 3), CLASSES)
    images = np.random.default_rng(0).random((5, *SHAPE, 3), np.float32)
    images[1:4] = images[0]
    for colour in range(3):
        images[colour + 1, ..., colour] = images[4, ..., colour]
    averaged = ensemble.average_over_shifts(model)
    storage.save(averaged, "categorical_crossentropy", tmp_path / "model.keras")
    for each in (model, storage.load(tmp_path / "model.keras")):
        outputs = each(images)
        expected = outputs["main"] if isinstance(outputs, dict) else outputs
        found = DataParallel(each, 2).predict_probabilities(images, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert len(np.unique(found[:4], axis=0)) == 4


def views(images):
    """Return the images, and the images shifted down, up, right and left by one pixel."""
    framed, here = np.pad(images, ((0, 0), (1, 1), (1, 1))), slice(1, -1)
    down, up = framed[:, :-2, here], framed[:, 2:, here]
    right, left = framed[:, here, :-2], framed[:, here, 2:]
    return [images, down, up, right, left]


@pytest.mark.parametrize("api", ["sequential", "functional"])
def test_average_over_shifts_is_a_plain_keras_model(images, model_with, tmp_path, api):
    member = architectures.build(model_with(api=api), SHAPE, CLASSES)
    model = ensemble.average_over_shifts(member)
    storage.save(model, "categorical_crossentropy", tmp_path / "model.keras")
    opened = storage.load(tmp_path / "model.keras")
    mean = sum(member(view).numpy() for view in views(images)) / 5
    check_probabilities(opened, images, mean)
    assert np.abs(mean - member(images)).max() > 1e-3


def test_average_over_shifts_covers_both_outputs(images, model_with):
    member = architectures.build(model_with(architecture="branched"), SHAPE, CLASSES)
    found, each = ensemble.average_over_shifts(member)(images), [*map(member, views(images))]
    assert found.keys() == {"main", "auxiliary"}
    for name in found:
        mean = sum(outputs[name].numpy() for outputs in each) / 5
        np.testing.assert_allclose(found[name], mean, rtol=1e-5)


def test_calibration_fits_confidence_to_accuracy(model_with):
    # Predictions are right 9 times in 10 with a confidence of 0.4: higher confidence fits better.
    rng = np.random.default_rng(0)
    images = rng.random((200, *SHAPE), np.float32)
    model = architectures.build(model_with(), SHAPE, CLASSES)
    before = DataParallel(model, 2).predict_probabilities(images, 200)
    predicted = before.argmax(axis=1)
    wrong = np.arange(200) % 10 == 0
    labels = np.eye(CLASSES, dtype=np.float32)[(predicted + wrong) % CLASSES]
    portable_model = DataParallel(model, 2)
    calibration.calibrate(portable_model, images, labels, 200)
    after = portable_model.predict_probabilities(images, 200)
    assert after.argmax(axis=1).tolist() == predicted.tolist()

    def compute_cross_entropy(probabilities):
        return -np.log((probabilities * labels).sum(axis=1)).mean()

    assert compute_cross_entropy(after) < compute_cross_entropy(before)
    assert compute_cross_entropy(after) < compute_cross_entropy(
        before**1.05 / (before**1.05).sum(1, keepdims=True)
    )


@pytest.mark.parametrize(("count", "mistakes"), [(15, 0), (200, 9), (200, 10)])
def test_few_mistakes_do_not_determine_a_calibration(model_with, capsys, count, mistakes):
    images = np.random.default_rng(0).random((count, *SHAPE), np.float32)
    model = DataParallel(architectures.build(model_with(), SHAPE, CLASSES), 2)
    before = model.predict_probabilities(images, 200)
    wrong = np.arange(count) < mistakes
    labels = np.eye(CLASSES, dtype=np.float32)[(before.argmax(axis=1) + wrong) % CLASSES]
    calibration.calibrate(model, images, labels, 200)
    changed = not np.array_equal(model.predict_probabilities(images, 200), before)
    assert changed == (mistakes >= 10)
    said = f"not recalibrated: {mistakes} of {count} validation images are misclassified"
    assert (said in capsys.readouterr().out) == (mistakes < 10)


# Files that `save` did not write.


@pytest.fixture
def saved(model_with, tmp_path):
    path = tmp_path / "model.keras"
    storage.save(
        architectures.build(model_with(), SHAPE, CLASSES), "categorical_crossentropy", path
    )
    return path


@pytest.fixture(scope="module")
def saved_file(parameters, tensorflow, tmp_path_factory):
    """The content of the file with a small dense network."""
    dense = {"architecture": "dense", "hidden_units": [8], "members": 1}
    model = ModelParameters.check(parameters["model"] | dense)
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    storage.save(architectures.build(model, SHAPE, CLASSES), "categorical_crossentropy", path)
    return path.read_bytes()


def repack(path, change, compression=zipfile.ZIP_STORED):
    """Rewrite the archive at `path` after `change` has edited its members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def load_error(path):
    message = get_refusal(storage.load, path)
    assert message.startswith(f"{path}: not readable as a model: ")
    return message


def test_standard_layer_needs_no_edit_elsewhere(tmp_path, images):
    """Layers that no architecture here uses are saved, loaded and made portable."""
    inputs = keras.Input(SHAPE)
    channels = keras.layers.Reshape((*SHAPE, 1))(inputs)
    first = keras.layers.SeparableConv2D(4, 3, padding="same", activation="gelu")(channels)
    second = keras.layers.Conv2D(4, 3, padding="same", kernel_regularizer="l2")(first)
    added = keras.layers.LayerNormalization()(keras.layers.Add()([first, second]))
    pooled = keras.layers.SpatialDropout2D(0.5)(keras.layers.AveragePooling2D(4)(added))
    rows = keras.layers.Reshape((7, 28))(pooled)
    attended = keras.layers.MultiHeadAttention(2, 8)(rows, rows)
    features = keras.layers.Bidirectional(keras.layers.GRU(4))(attended)
    outputs = keras.layers.Dense(CLASSES, activation="softmax", name="main")(features)
    model = keras.Model(inputs, outputs)
    storage.save(model, "categorical_crossentropy", tmp_path / "model.keras")
    opened = DataParallel(storage.load(tmp_path / "model.keras"), 2)
    np.testing.assert_allclose(opened(images), model(images), rtol=1e-4, atol=1e-6)


def test_code_in_a_model_is_refused_and_not_run(project):
    inputs = keras.Input((2,))
    code = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("ran").touch(), x)[1])
    keras.Model(inputs, code(inputs)).save("model.keras")
    Path("ran").unlink()  # building the model ran the code
    assert "__lambda__ is not a layer that a model may use" in load_error(Path("model.keras"))
    assert not Path("ran").exists()
    keras.models.load_model("model.keras", safe_mode=False)
    assert Path("ran").exists()  # the code was really there


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "os", "class_name": "system", "config": "touch ran"},
        {"module": "builtins", "class_name": "function", "config": "eval"},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "."}},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc"}},
        {"module": "keras.src.utils", "class_name": "get_file", "config": {}},
        {"module": "mine", "class_name": "Dense", "config": {}},
        {"class_name": "__lambda__", "config": {"value": ""}},
        {"class_name": ["Dense"], "config": {}},
    ],
    ids=lambda entry: str(entry["class_name"]),
)
def test_unsafe_class_is_refused(saved, entry, project):
    def change(members):
        config = json.loads(members["config.json"])
        config["config"]["layers"][2]["config"]["kernel_initializer"] = entry
        members["config.json"] = json.dumps(config).encode()

    repack(saved, change)
    load_error(saved)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.update({"assets/../../out": b""}), "expected config.json, meta"),
        (lambda members: members.pop("model.weights.h5"), "expected config.json, metadata.json, "),
        (lambda members: members.update({"config.json": b"{}"}), ""),
        (lambda members: members.update({"config.json": b"[" * 100_000}), "maximum recursion"),
        (lambda members: members.update({"config.json": b"\xff"}), "codec can't decode"),
        (lambda members: members.update({"model.weights.h5": b""}), ""),
    ],
    ids=["extra member", "no weights", "empty config", "nested", "not UTF-8", "not HDF5"],
)
def test_unexpected_archive_is_refused(saved, change, message):
    repack(saved, change)
    assert message in load_error(saved)


def test_zip_bomb_is_refused(saved):
    big = {"model.weights.h5": bytes(100_000_000)}
    repack(saved, lambda members: members.update(big), zipfile.ZIP_DEFLATED)
    assert "model.weights.h5 would unpack to 100000000 bytes" in load_error(saved)


def test_flipped_bit_in_weights_is_detected(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    saved.write_bytes(content)
    assert "model.weights.h5 is damaged" in load_error(saved)


@given(data=st.data())
def test_damaged_model_is_read_or_refused(saved_file, tmp_path_factory, data):
    """Either the file itself is damaged, or it is an intact archive with a damaged member."""
    path = tmp_path_factory.getbasetemp() / "model.keras"
    path.write_bytes(saved_file)
    name = data.draw(st.sampled_from([None, "config.json", "model.weights.h5"]))
    if name is None:
        path.write_bytes(data.draw(damaged(saved_file)))
    else:
        repack(path, lambda members: members.update({name: data.draw(damaged(members[name]))}))
    try:
        model = storage.load(path)
    except StageError:
        return
    assert isinstance(model, keras.Model)


def test_missing_model_is_named_with_the_fix(tmp_path):
    with pytest.raises(StageError, match=r"model\.keras: not found; run `dvc repro`"):
        storage.load(tmp_path / "model.keras")
