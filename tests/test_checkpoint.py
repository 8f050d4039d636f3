"""A training that is interrupted after any epoch, and resumed, gives the same bytes."""

import keras
import pytest
from helpers.cases import KINDS, make_sections

from stages.core.paths import CHECKPOINT, TRAIN, VALIDATION
from stages.model import checkpoint, storage
from stages.model.checkpoint import State
from stages.model.origin import describe_origin, find_code, find_differences
from stages.model.trace import make_trace
from stages.model.training import make_history
from stages.model.worker import Worker
from stages.train import train_members

ORIGIN = {"train.epochs": "3"}


class KilledError(Exception):
    """Stands for the end of a process between two epochs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "interruptions"),
    [*zip(KINDS, ([1, 2, 3], [1, 3, 4], [2, 4], [1, 2, 5, 6]), strict=True)],
)
def test_resumed_training_gives_the_same_bytes(
    kind, interruptions, tensorflow, small_split, tmp_path, capsys
):
    """After these epochs, counted over all members."""
    parameters = make_sections(KINDS[kind])

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
        tables = make_history(state).to_csv(), make_trace(state).to_csv()
        return (tmp_path / "model.keras").read_bytes(), *tables

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
    """Code, parameters, data and libraries; not where or when the training runs."""
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
