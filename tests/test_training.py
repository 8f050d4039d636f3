import math
import re
import sys
import weakref

import keras
import numpy as np
import pytest
from helpers.cases import COMBINATIONS, list_choices, make_sections

from stages import train as stage
from stages.core.errors import StageError
from stages.model import architectures, batches, optimizer, training
from stages.model.checkpoint import State
from stages.model.parallel import DataParallel
from stages.model.settings import EarlyStopping, ModelParameters, TrainParameters
from stages.model.trace import make_trace
from stages.model.training import make_history
from stages.model.worker import Worker
from stages.train import warn_of_few_steps

pytestmark = pytest.mark.usefixtures("tensorflow")


def fit(network, training_set, validation_set, parameters):
    """Train a network, and return its history."""
    state = State()
    stage.train_network(network, training_set, validation_set, parameters, state)
    return make_history(state)


@pytest.mark.parametrize(
    ("images", "size", "epochs", "steps"),
    [(216, 256, 5, 5), (99, 1, 1, 99), (33, 10, 24, 96), (100, 1, 1, 0), (33, 10, 25, 0)],
)
def test_few_steps_give_a_warning(train_with, capsys, images, size, epochs, steps):
    """Where there are enough, nothing is printed."""
    warn_of_few_steps(images, train_with(batch_size=size, epochs=epochs, replicas=1))
    warning = capsys.readouterr().err
    assert warning.count("\n") == (steps > 0)
    assert not steps or f" make at most {steps} steps in all; " in warning
    assert not steps or "lower train.batch_size, for example to 16, or " in warning


def rates(parameters, steps, count):
    schedule = optimizer.make_learning_rate(parameters, steps)
    return [float(schedule(step)) for step in range(count)]


def test_constant_schedule(train_with):
    assert optimizer.make_learning_rate(train_with(learning_rate=0.1), 10) == 0.1


def test_step_schedule_drops_between_epochs(train_with):
    parameters = train_with(
        epochs=5, learning_rate=0.8, schedule={"name": "step", "every": 2, "factor": 0.5}
    )
    # 3 steps per epoch: epochs 1 and 2 at 0.8, 3 and 4 at 0.4, 5 at 0.2.
    assert rates(parameters, 3, 15) == pytest.approx([0.8] * 6 + [0.4] * 6 + [0.2] * 3)


def test_exponential_schedule_falls_by_the_factor(train_with):
    parameters = train_with(
        epochs=4, learning_rate=0.8, schedule={"name": "exponential", "every": 2, "factor": 0.25}
    )
    # 2 steps per epoch: a factor of 0.25 in 4 steps, so sqrt(0.5) per step.
    expected = [0.8 * math.sqrt(0.5) ** step for step in range(9)]
    assert expected[4] == pytest.approx(0.2)
    assert rates(parameters, 2, 9) == pytest.approx(expected)


def test_cosine_schedule_warms_up_and_falls_to_zero(train_with):
    parameters = train_with(epochs=2, learning_rate=1.0, schedule={"name": "cosine", "warmup": 0.2})
    # 10 steps in all: the rate rises in 2 steps, then follows half a cosine over 8.
    down = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert rates(parameters, 5, 11) == pytest.approx([0.0, 0.5, *down], abs=1e-7)


def test_cosine_schedule_without_warmup(train_with):
    parameters = train_with(epochs=1, learning_rate=1.0, schedule={"name": "cosine", "warmup": 0.0})
    assert rates(parameters, 2, 3) == pytest.approx([1.0, 0.5, 0.0], abs=1e-7)


def test_warmup_leaves_at_least_one_step(train_with):
    parameters = train_with(epochs=1, learning_rate=1.0, schedule={"name": "cosine", "warmup": 0.9})
    assert rates(parameters, 2, 2) == pytest.approx([0.0, 1.0])
    assert float(optimizer.make_learning_rate(parameters, 1)(0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [0.8, 0.8, 0.8]),
        ({"name": "step", "every": 1, "factor": 0.5}, [0.8, 0.4, 0.2]),
        # The rate of each epoch's last step: 2 steps per epoch, a factor of sqrt(0.5) per step.
        (
            {"name": "exponential", "every": 1, "factor": 0.5},
            [0.8 * 0.5**x for x in (0.5, 1.5, 2.5)],
        ),
        (
            {"name": "cosine", "warmup": 0.5},
            [0.8 / 3, 0.8, 0.8 * (1 + math.cos(2 * math.pi / 3)) / 2],
        ),
    ],
)
def test_history_has_the_rate_of_the_last_step(
    train_with, tiny_model, small_split, schedule, expected
):
    parameters = train_with(
        epochs=3, batch_size=32, learning_rate=0.8, optimizer="sgd", schedule=schedule
    )
    history = fit(tiny_model(), small_split, small_split, parameters)
    assert history["learning_rate"].tolist() == pytest.approx(expected)


def test_trained_members_are_freed(train_with, model_with, small_split, monkeypatch):
    left, train_network = weakref.WeakSet(), stage.train_network

    def watched(network, *arguments):
        assert not left
        train_network(network, *arguments)
        left.add(network)

    monkeypatch.setattr(stage, "train_network", watched)
    parameters = model_with(architecture="dense", members=2)
    model = stage.train_members(
        parameters, train_with(), small_split, small_split, Worker(2).replicate, State()
    )
    assert not left
    assert len(model.layers) == 4  # the input, two members and their mean


def test_plateau_schedule_lowers_the_rate(train_with, tiny_model, small_split):
    # The rate is too low for any improvement: epochs 2 and 3 stall, then 4 and 5.
    parameters = train_with(
        epochs=6,
        learning_rate=1e-12,
        optimizer="sgd",
        schedule={"name": "plateau", "every": 2, "factor": 0.5},
    )
    history = fit(tiny_model(), small_split, small_split, parameters)
    assert history["learning_rate"].tolist() == pytest.approx(
        [1e-12, 1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13]
    )


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stopped", "best"),
    [
        ([0.9, 0.5, 0.6, 0.7, 0.1], 2, 0.0, 4, 2),  # two epochs without improvement
        ([0.9, 0.5, 0.6, 0.4, 0.5, 0.6], 2, 0.0, 6, 4),  # an improvement resets the count
        ([0.9, 0.8, 0.7], 2, 0.0, None, 3),
        ([0.90, 0.89, 0.88], 1, 0.05, 2, 1),  # improvements that are too small
    ],
)
def test_early_stopping_on_a_constructed_history(
    tiny_model, losses, patience, min_delta, stopped, best
):
    (rule,) = training.make_early_stopping(
        EarlyStopping(enabled=True, patience=patience, min_delta=min_delta)
    )
    model = tiny_model()
    model.stop_training = False
    rule.set_model(model)
    rule.on_train_begin()
    found = None
    for epoch, loss in enumerate(losses):
        model.set_weights([np.full_like(w, epoch) for w in model.get_weights()])
        rule.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            found = epoch + 1
            break
    rule.on_train_end()
    assert found == stopped
    assert rule.best_epoch + 1 == best
    assert {w.flat[0] for w in model.get_weights()} == {best - 1}  # weights of the best epoch


def test_model_holds_the_weights_of_the_chosen_epoch(train_with, tiny_model, small_split):
    parameters = train_with(
        epochs=40,
        optimizer="sgd",
        learning_rate=20.0,  # too high, so that the loss rises
        early_stopping={"enabled": True, "patience": 2},
    )
    model = tiny_model()
    history = fit(model, small_split, small_split, parameters)
    assert 2 < len(history) < 40
    chosen = history[history["chosen"] == 1]
    assert chosen["val_loss"].tolist() == [history["val_loss"].min()]
    loss, _ = model.evaluate(*small_split, verbose=0)
    assert loss == pytest.approx(chosen["val_loss"].item(), rel=1e-4)


def test_without_early_stopping_the_last_epoch_is_chosen(train_with, tiny_model, small_split):
    history = fit(tiny_model(), small_split, small_split, train_with(epochs=3))
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["chosen"].tolist() == [0, 0, 1]


def test_every_metric_is_in_the_history(train_with, tiny_model, small_split):
    parameters = train_with(metrics=["accuracy", "precision", "recall"])
    history = fit(tiny_model(), small_split, small_split, parameters)
    for name in ("accuracy", "precision", "recall", "loss"):
        assert history[name].item() >= 0
        assert history[f"val_{name}"].item() >= 0


def test_infinite_loss_stops_the_stage(train_with, tiny_model, small_split):
    parameters = train_with(epochs=3, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(StageError, match=r"lower train\.learning_rate, now 1e\+38"):
        fit(tiny_model(), small_split, small_split, parameters)


def epochs_of(split, parameters, first_epoch=0):
    """Return the batches of images and labels of each epoch from `first_epoch` on."""
    steps = batches.count_steps(len(split[0]), parameters.batch_size, parameters.replicas)
    dataset = batches.make_training_batches(split, parameters, steps, False, first_epoch)
    found = [(images.numpy(), labels.numpy()) for images, labels in dataset]
    return [found[i : i + steps] for i in range(0, len(found), steps)]


def test_each_epoch_has_every_image_in_its_own_order(train_with, small_split):
    images, labels = small_split
    numbered = np.arange(len(images), dtype=np.float32), labels

    def orders(**changes):
        parameters = train_with(epochs=2, batch_size=10, **changes)
        return [
            np.concatenate([batch for batch, _ in epoch]).tolist()
            for epoch in epochs_of(numbered, parameters)
        ]

    first, second = orders(seed=1)
    everything = list(range(len(images)))
    assert sorted(first) == sorted(second) == everything
    assert first != second != everything != first
    assert orders(seed=1) == [first, second]
    assert orders(seed=2)[0] != first


def test_later_epochs_do_not_depend_on_earlier_ones(train_with, small_split):
    parameters = train_with(epochs=3, batch_size=16, augmentation={"shift": 2.0})
    whole, rest = epochs_of(small_split, parameters), epochs_of(small_split, parameters, 2)
    assert len(rest) == 1
    for (images, labels), (same_images, same_labels) in zip(whole[2], rest[0], strict=True):
        assert images.tobytes() == same_images.tobytes()
        assert labels.tobytes() == same_labels.tobytes()


def test_trace_names_what_differs_first(train_with, tiny_model, small_split):
    """The order of the images, or a learning rate that differs from epoch 2 on."""

    def trace(seed=1, **changes):
        state, parameters = State(), train_with(epochs=3, batch_size=16, seed=seed, **changes)
        keras.backend.clear_session()  # names layers from 1 again, as a new process does
        network = tiny_model()
        stage.train_network(network, small_split, small_split, parameters, state)
        return make_trace(state)

    found = trace()
    assert found["step"].drop_duplicates().tolist() == [0, 1, 2, 4, 8, 12]  # 4 steps an epoch
    assert found["epoch"].drop_duplicates().tolist() == [0, 1, 2, 3]
    assert found["layer"].value_counts()["batch"] == 5
    assert found.equals(trace())

    def find_first(other):
        row = found[(found != other).any(axis=1)].iloc[0]
        return row["epoch"], row["step"], row["layer"]

    assert find_first(trace(seed=2)) == (1, 1, "batch")
    schedule = {"name": "step", "every": 1, "factor": 0.5}
    assert find_first(trace(schedule=schedule)) == (2, 8, "dense")


def test_labels_stay_with_their_images(train_with, small_split):
    images, labels = small_split
    (epoch,) = epochs_of(small_split, train_with(batch_size=7))
    for batch_images, batch_labels in epoch:
        for image, label in zip(batch_images, batch_labels, strict=True):
            index = np.flatnonzero((images == image).all(axis=(1, 2)))[0]
            assert labels[index].tolist() == label.tolist()


def test_augmentation_differs_between_epochs(train_with, small_split):
    images, _ = small_split
    changes = {"shift": 2.0, "rotation": 20.0, "zoom": 0.1}
    parameters = train_with(epochs=2, batch_size=64, augmentation=changes)
    first, second = (epoch[0][0] for epoch in epochs_of(small_split, parameters))
    assert not any((image == images).all(axis=(1, 2)).any() for image in first)
    assert not any((image == first).all(axis=(1, 2)).any() for image in second)
    assert first.min() >= 0
    assert first.max() <= images.max()


def test_two_trainings_give_the_same_bytes(train_with, tiny_model, small_split):
    parameters = train_with(epochs=2, augmentation={"shift": 2.0, "rotation": 9.0, "zoom": 0.1})
    runs = []
    for _ in range(2):
        model = tiny_model(dropout=0.5)
        history = fit(model, small_split, small_split, parameters)
        runs.append((history.to_csv(), [w.tobytes() for w in model.get_weights()]))
    assert runs[0] == runs[1]


def test_last_batch_smaller_than_replicas_is_left_out(train_with, small_split):
    def sizes(batch_size):
        (epoch,) = epochs_of(small_split, train_with(batch_size=batch_size, replicas=2))
        return [len(images) for images, _ in epoch]

    assert sizes(21) == [21, 21, 21]  # of 64 images, one is left over
    assert sizes(31) == [31, 31, 2]
    in_order = batches.make_validation_batches(small_split, 21, False)
    assert [len(images) for images, _ in in_order] == [21, 21, 21, 1]


def test_last_batch_leaves_two_images_for_batch_normalisation(
    train_with, model_with, tiny_model, small_split
):
    """Batches of 31 leave 2 of 64 images, one for each replica; batches of 30 leave 4."""
    parameters = train_with(replicas=2, batch_size=31)
    for normalised, size, steps in ((True, 31, 2), (False, 31, 3), (True, 30, 3)):
        model = tiny_model(batch_normalization=normalised)
        fit(model, small_split, small_split, parameters.model_copy(update={"batch_size": size}))
        assert model.optimizer.iterations == steps


def test_schedule_ends_with_the_last_step(train_with, tiny_model, small_split):
    schedule = {"name": "cosine", "every": 1, "factor": 0.5, "warmup": 0.0}
    parameters = train_with(epochs=2, batch_size=21, replicas=2, schedule=schedule)
    model = tiny_model()
    fit(model, small_split, small_split, parameters)
    assert model.optimizer.iterations == 6  # 3 per epoch: the image left over makes no batch
    assert float(model.optimizer.learning_rate) == 0.0


def test_fewer_images_than_replicas_are_refused(train_with, tiny_model, small_split):
    few = tuple(array[:3] for array in small_split)
    with pytest.raises(StageError, match=r"train\.replicas is 2 and there are 3 training images"):
        fit(tiny_model(), few, small_split, train_with(replicas=2))
    fit(tiny_model(batch_normalization=False), few, small_split, train_with(replicas=2))  # one step


def test_loss_smooths_labels(train_with):
    import tensorflow as tf

    hard, smooth = (training.make_loss(train_with(label_smoothing=value)) for value in (0.0, 0.2))
    labels = np.eye(4, dtype=np.float32)[:1]
    probabilities = tf.constant([[0.7, 0.1, 0.1, 0.1]])
    probabilities.logits = tf.math.log(probabilities)
    assert float(hard(labels, probabilities)) == pytest.approx(-math.log(0.7), rel=1e-5)
    # 0.2 is spread over four classes: 0.8 + 0.05 for the right one.
    expected = -0.85 * math.log(0.7) - 3 * 0.05 * math.log(0.1)
    assert float(smooth(labels, probabilities)) == pytest.approx(expected, rel=1e-5)


def test_metrics_count_every_image_once(train_with, model_with, small_split):
    """The history's losses are means over images, for any number of replicas."""
    for replicas in (1, 3):
        parameters = train_with(replicas=replicas, batch_size=64, learning_rate=1e-9)
        network = architectures.build(model_with(architecture="branched"), (28, 28), 10)
        model = DataParallel(network, replicas)
        history = fit(model, small_split, small_split, parameters).iloc[0]
        total = history["main_loss"] + parameters.auxiliary_weight * history["auxiliary_loss"]
        assert history["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loss", list_choices(TrainParameters, "loss"))
@pytest.mark.parametrize("architecture", list_choices(ModelParameters, "architecture"))
def test_steps_of_replicas_equal_those_of_keras(
    architecture, loss, model_with, train_with, small_split
):
    """Two steps, on 40 and 23 images; a replica has 11 or 12 of the last ones.

    Without batch normalisation, which each replica does by itself.
    """
    order = np.random.default_rng([1, 0]).permutation(63)  # of the first epoch with seed 1
    images, labels = (array[:63] for array in small_split)
    parameters = train_with(
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=40,
        loss=loss,
        label_smoothing=0.1 * (loss == "categorical_crossentropy"),
    )
    network = architectures.build(
        model_with(architecture=architecture, batch_normalization=False), (28, 28), 10
    )
    start = network.get_weights()
    replicas = DataParallel(network, 2)
    history = fit(replicas, (images, labels), small_split, parameters)
    one = (
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
        if loss == "categorical_crossentropy"
        else keras.losses.MeanSquaredError()
    )
    losses, targets = (
        [dict.fromkeys(("main", "auxiliary"), each) for each in (one, labels[order])]
        if architecture == "branched"
        else (one, labels[order])
    )
    weights = {"main": 1.0, "auxiliary": 0.3} if architecture == "branched" else None
    network.compile(keras.optimizers.SGD(0.1), losses, loss_weights=weights)
    expected = network.fit(images[order], targets, batch_size=40, shuffle=False, verbose=0).history
    changes = [
        np.concatenate([(after - before).ravel() for after, before in zip(end, start, strict=True)])
        for end in (replicas.network.get_weights(), network.get_weights())
    ]
    np.testing.assert_allclose(*changes, atol=1e-3 * abs(changes[1]).max(), rtol=1e-3)
    assert history["loss"].tolist() == pytest.approx(expected["loss"], rel=1e-4)


def test_moving_averages_take_each_share_in_turn(model_with, train_with, small_split):
    network = architectures.build(model_with(architecture="dense"), (28, 28), 10)
    model = DataParallel(network, 2)
    fit(
        model, small_split, small_split, train_with(batch_size=64, learning_rate=1e-9)
    )  # the weights do not change
    images = small_split[0][np.random.default_rng([1, 0]).permutation(64)]
    mean, variance = 0, 1
    for share in (images[:32], images[32:]):
        outputs = share.reshape(32, -1) @ network.get_weights()[0]
        mean = 0.9 * mean + 0.1 * outputs.mean(axis=0)
        variance = 0.9 * variance + 0.1 * outputs.var(axis=0)
    found = [v.numpy() for v in model.network.weights if v.path.endswith(("_mean", "_variance"))]
    np.testing.assert_allclose(found, [mean, variance], rtol=1e-4, atol=1e-6)


def test_random_numbers_differ_between_layers_replicas_and_steps(small_split):
    """Two layers with the same seed keep half of the pixels each, so a quarter is left."""
    drop = [keras.layers.Dropout(0.5, seed=7) for _ in range(2)]
    model = DataParallel(keras.Sequential([keras.Input((28, 28)), *drop]), 2)
    model.compile(keras.optimizers.SGD(), lambda _, outputs: outputs[0, 0, 0], [], 0.0)
    images, labels = np.ones((8, 28, 28), np.float32), np.ones(8)
    masks = set()
    for step in (0, 1):
        model.optimizer.iterations.assign(step)
        for replica in (0, 1):
            outputs = model.train_share(replica, images, labels, 0, 8).outputs.numpy()
            assert 0.2 < (outputs > 0).mean() < 0.3
            masks.add(outputs.tobytes())
    assert len(masks) == 4


def test_optimizer_has_the_parameters(train_with):
    def configure(name, **changes):
        return optimizer.make_optimizer(train_with(optimizer=name, **changes), 10).get_config()

    plain, nesterov = configure("sgd"), configure("sgd", momentum=0.9, nesterov=True)
    assert (plain["momentum"], plain["nesterov"]) == (0, False)
    assert (nesterov["momentum"], nesterov["nesterov"]) == (0.9, True)
    assert configure("rmsprop", momentum=0.8)["momentum"] == 0.8
    muon = configure("muon", learning_rate=0.05)
    assert (muon["weight_decay"], muon["adam_weight_decay"]) == (None, None)
    assert muon["learning_rate"] == pytest.approx(0.05)


def test_each_member_has_its_own_seeds(model_with, train_with):
    for parameters in (model_with(members=3), train_with()):
        members = [parameters.for_member(number) for number in range(3)]
        assert members[0] == parameters
        assert len({member.seed for member in members}) == 3
        assert parameters.model_copy(update={"seed": members[1].seed}) == members[1]


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (60, 8)])
def test_muon_step_is_nearly_orthogonal(shape):
    rule = optimizer.Muon(0.1, weight_decay=None, adam_weight_decay=None)
    kernel = keras.Variable(np.zeros(shape, np.float32), name="kernel")
    gradient = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rule.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
    step = -np.asarray(kernel).reshape(-1, shape[-1])
    rows, columns = step.shape
    # All singular values are near 1, times the rate and 0.2 times the root of the length.
    values = np.linalg.svd(step, compute_uv=False) / (0.1 * 0.2 * math.sqrt(max(rows, columns)))
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    # The step agrees with the exact decomposition of the gradient.
    u, _, v = np.linalg.svd(gradient.reshape(-1, shape[-1]), full_matrices=False)
    assert np.corrcoef((u @ v).ravel(), step.ravel())[0, 1] > 0.95


def test_muon_uses_adam_for_classifier_and_normalisation(train_with, model_with):
    model = architectures.build(model_with(), (28, 28), 10)
    rule = optimizer.make_optimizer(train_with(optimizer="muon"), 10)
    variables = DataParallel(model, 2).trainable_variables
    rule.build(variables)
    velocities = {v.path: a for v, a in zip(variables, rule.adam_velocities, strict=True)}
    by_adam = {path for path, velocity in velocities.items() if velocity is not None}
    kernels = {path for path in velocities if path.endswith("kernel")}
    assert len(kernels) == 4
    assert {path.split("/")[-2] for path in kernels & by_adam} == {"main"}
    assert velocities.keys() - kernels <= by_adam


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["dense", "branched"])
def test_training_step_is_traced_once(
    architecture, model_with, train_with, small_split, monkeypatch
):
    """TensorFlow traces the step again if the first trace has created variables."""
    traced, step = [], DataParallel.train_step
    monkeypatch.setattr(
        DataParallel, "train_step", lambda *args: traced.append(args) or step(*args)
    )
    model = architectures.build(model_with(architecture=architecture), (28, 28), 10)
    fit(DataParallel(model, 1), small_split, small_split, train_with(epochs=2))
    assert len(traced) == 1


def test_terminal_shows_a_bar_and_keeps_a_line_for_each_epoch(
    model_with, train_with, small_split, monkeypatch, capsys
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    model = architectures.build(model_with(architecture="dense", hidden_units=[4]), (28, 28), 10)
    fit(DataParallel(model, 1), small_split, small_split, train_with(epochs=2))
    printed = capsys.readouterr().out
    assert " batches/s]" in printed
    assert re.findall(r"^(?:.*\r)?(epoch \d of 2): \d+ s, ", printed, re.M) == [
        "epoch 1 of 2",
        "epoch 2 of 2",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", COMBINATIONS, ids=lambda values: "-".join(map(str, values.values()))
)
def test_any_combination_of_valid_values_trains(values, small_split):
    smallest = {"model.filters": [[2], [3]], "model.hidden_units": [4]}
    model_parameters, parameters = make_sections(smallest | values)
    network = architectures.build(model_parameters, (28, 28), 10)
    model = DataParallel(network, 1)  # one replica is faster to trace than two
    before = [w.numpy() for w in model.trainable_variables]
    history = fit(model, small_split, small_split, parameters)
    assert set(history) >= {"epoch", "learning_rate", "loss", "val_loss", "chosen"}
    assert set(history) >= {f"{kind}{name}" for kind in ("", "val_") for name in parameters.metrics}
    after = [w.numpy() for w in model.trainable_variables]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    keras.backend.clear_session()
