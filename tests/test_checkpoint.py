"""A training that is interrupted after any epoch, and resumed, gives the same bytes."""

import keras
import pytest

from stages.core.paths import CHECKPOINT, TRAIN, VALIDATION
from stages.model import checkpoint, storage
from stages.model.checkpoint import State
from stages.model.origin import describe_origin, find_code, find_differences
from stages.model.training import make_history
from stages.model.worker import Worker
from stages.train import train_members

ORIGIN = {"train.epochs": "3"}


class KilledError(Exception):
    """Stands for the end of a process between two epochs."""


# Model and training parameters, and the epochs after which the training is interrupted, counted
# over all members.
CASES = {
    "dropout, augmentation, muon": (
        {"architecture": "convolutional", "dropout": 0.5},
        {"optimizer": "muon", "epochs": 3, "schedule": {"name": "cosine"}}
        | {"augmentation": {"shift": 2.0, "rotation": 5.0}, "label_smoothing": 0.1},
        [1, 2, 3],
    ),
    "early stopping": (
        {"architecture": "dense"},
        {"optimizer": "sgd", "learning_rate": 20.0, "epochs": 30}
        | {"early_stopping": {"enabled": True, "patience": 2}},
        [1, 3, 4],
    ),
    "plateau, momentum": (
        {"architecture": "dense", "dropout": 0.2},
        {"optimizer": "sgd", "momentum": 0.9, "epochs": 5, "learning_rate": 1e-9}
        | {"schedule": {"name": "plateau", "every": 1}},
        [2, 4],
    ),
    "ensemble, test-time augmentation": (
        {"architecture": "dense", "members": 3, "test_time_augmentation": True, "dropout": 0.2},
        {"optimizer": "nadam", "epochs": 2, "label_smoothing": 0.1},
        [1, 2, 5, 6],
    ),
    "branched": (
        {"architecture": "branched"},
        {"optimizer": "rmsprop", "epochs": 3, "metrics": ["precision", "recall"]}
        | {"schedule": {"name": "exponential"}, "loss": "mean_squared_error"},
        [2],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resumed_training_gives_the_same_bytes(
    case, tensorflow, model_with, train_with, small_split, tmp_path, capsys
):
    model_changes, train_changes, interruptions = CASES[case]
    parameters = model_with(**model_changes), train_with(**train_changes)

    def run(state=None, stop_after=None):
        """Return the bytes of the outputs, or the checkpoint after `stop_after` epochs."""
        keras.backend.clear_session()  # as in a new process

        def save(state):
            if sum(map(len, state.rows)) == stop_after:
                raise KilledError(checkpoint.pack(ORIGIN, state))

        state = state or State()
        replicate = Worker(parameters[1].replicas).replicate
        model = train_members(*parameters, small_split, small_split, replicate, state, save)
        storage.save(model, parameters[1].loss, tmp_path / "model.keras")
        return (tmp_path / "model.keras").read_bytes(), make_history(state).to_csv()

    expected = run()
    state = None
    for epochs in interruptions:
        with pytest.raises(KilledError) as caught:
            run(state, stop_after=epochs)
        origin, state = checkpoint.unpack(caught.value.args[0])
        assert origin == ORIGIN
    capsys.readouterr()
    assert run(state) == expected
    assert "resuming after epoch" in capsys.readouterr().out


@pytest.fixture
def saved(project):
    checkpoint.save(ORIGIN, State(rows=[[{"loss": 0.5}]], chosen=[1]))
    return project / CHECKPOINT


def test_checkpoint_of_another_origin_is_not_used(saved, capsys):
    assert checkpoint.load(ORIGIN).rows == [[{"loss": 0.5}]]
    assert checkpoint.load({"train.epochs": "4", "keras": "1"}) == State()
    message = f"{CHECKPOINT} is from a run with different keras, train.epochs; starting over"
    assert capsys.readouterr().out.splitlines() == [message]


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_damaged_checkpoint_is_not_used(saved, capsys, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    assert checkpoint.load(ORIGIN) == State()
    saved.write_bytes(content.replace(b"0.5", b"0.7"))
    assert checkpoint.load(ORIGIN) == State()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{CHECKPOINT} is damaged (")
    assert "CRC" in second


def test_origin_names_everything_that_the_result_depends_on(project, model_with, train_with):
    """Code, parameters, data, libraries and processor; not where or when the training runs."""
    from stages.core.files import Pieces, write_npz

    def describe(value, **changes):
        for path in (TRAIN, VALIDATION):
            write_npz(path, {"images": Pieces((1,), "<f4", [value])})
        return describe_origin(model_with(), train_with(**changes))

    import numpy as np

    zero, one = np.float32([0]), np.float32([1])
    origin = describe(zero)
    assert {"stages/train.py", "stages/model/training.py", "stages/core/files.py"} <= set(origin)
    assert {"model.seed", "train.schedule", "keras", "numpy", "Python"} <= set(origin)
    assert {"processor", "environment"} <= set(origin)
    assert describe(zero) == origin
    assert find_differences(origin, describe(zero, seed=5)) == "train.seed"
    assert find_differences(origin, describe(one)) == f"{TRAIN}, {VALIDATION}"


def test_code_is_what_dvc_yaml_lists(tmp_path):
    """A folder that a team adds to `deps` of train belongs to the origin."""
    for name in ("stages/train.py", "stages/losses/focal.py", "stages/other.py", "data/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("__pycache__/focal.pyc", ".focal.py.swp"):
        (tmp_path / "stages/losses" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "stages/losses" / name).write_text("")

    def find(stages):
        (tmp_path / "dvc.yaml").write_text(f"stages: {stages}")
        return sorted(path.relative_to(tmp_path).as_posix() for path in find_code(tmp_path))

    train = "{cmd: exec python -m stages.train, deps: [%s]}"
    deps = f"{TRAIN}, stages/train.py, stages/losses, data/x.txt"
    assert find(f"{{train: {train % deps}, other: {{cmd: x, deps: [stages/other.py]}}}}") == [
        "data/x.txt",
        "stages/losses/focal.py",
        "stages/train.py",
    ]
    everything = ["stages/losses/focal.py", "stages/other.py", "stages/train.py"]
    assert find("{}") == find(f"{{train: {train % ''}}}") == everything
