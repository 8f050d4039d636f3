"""The sections of params.yaml: what is read, what is refused, and what the message says."""

import re
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from dvc.utils.serialize import parse_yaml
from helpers.checks import get_refusal
from helpers.damage import damaged, many_examples
from helpers.parameters import read_defaults
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from stages.core.errors import StageError
from stages.core.settings import Section, read_yaml
from stages.download import DownloadParameters
from stages.model.settings import ModelParameters, TrainParameters, check_together
from stages.preprocess import PreprocessParameters
from tools.recipe import check, find_sections

PARAMETERS = Path(__file__).parents[1] / "params.yaml"
VALUES = read_defaults()


class Inner(BaseModel):
    model_config = Section.model_config

    every: int = Field(ge=1)


class Example(Section):
    """A section with a key of each kind."""

    section: ClassVar = "example"

    count: int
    rate: float = Field(gt=0, lt=1)
    enabled: bool
    inner: Inner


RIGHT = {"count": 3, "rate": 0.5, "enabled": True, "inner": {"every": 1}}
SECTION = "example: {count: %s, rate: %s, enabled: %s, inner: {every: 1}}\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.yaml"


def test_params_yaml_is_valid():
    check(read_yaml(PARAMETERS))
    assert set(VALUES) == set(find_sections())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rates": 1},
            "example.rates is not a known key; the keys are count, rate, enabled, inner; "
            "delete it, or declare it in tests/test_settings.py",
        ),
        (
            {"inner": {"every": 1, "evry": 2}},
            "example.inner.evry is not a known key; the keys are every; delete it, or declare ",
        ),
        ({"count": "3"}, "example.count is '3': Input should be a valid integer"),
        ({"count": 3.0}, "example.count is 3.0: Input should be a valid integer"),
        ({"count": True}, "example.count is True: Input should be a valid integer"),
        ({"count": None}, "example.count is None: Input should be a valid integer"),
        ({"rate": "0.5"}, "example.rate is '0.5': Input should be a valid number"),
        ({"rate": True}, "example.rate is True: Input should be a valid number"),
        ({"rate": 1}, "example.rate is 1: Input should be less than 1"),
        ({"rate": 0.0}, "example.rate is 0.0: Input should be greater than 0"),
        ({"enabled": 1}, "example.enabled is 1: Input should be a valid boolean"),
        ({"enabled": "yes"}, "example.enabled is 'yes': Input should be a valid boolean"),
        (
            {"inner": {"every": 0}},
            "example.inner.every is 0: Input should be greater than or equal",
        ),
        (
            {"inner": 3},
            "example.inner is 3, but it is a section: restore it with `git checkout params.yaml`, "
            "then set example.inner.every",
        ),
        ({"inner": {}}, "example.inner.every is missing"),
        ({"count": ["q"] * 10_000}, "example.count is ['q', 'q', "),
    ],
)
def test_invalid_value_is_named_with_what_is_allowed(changes, message):
    found = get_refusal(Example.check, RIGHT | changes)
    assert found.startswith(f"params.yaml: {message}")
    assert len(found) < 400


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("schedule", "cosine", "train.schedule.name"),
        ("early_stopping", True, "train.early_stopping.enabled"),
        ("augmentation", None, "train.augmentation.shift, train.augmentation.rotation, train.aug"),
    ],
)
def test_value_in_place_of_a_section_names_the_key(key, value, named):
    found = get_refusal(TrainParameters.check, VALUES["train"] | {key: value})
    assert found.startswith(f"params.yaml: train.{key} is {value!r}, but it is a section: ")
    assert f"then set {named}" in found


def test_all_invalid_keys_are_named_at_once():
    found = get_refusal(Example.check, RIGHT | {"count": "3", "rate": 2, "x": 1})
    assert found.count("example.") == 3


def test_section_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Example.check(RIGHT).count = 4


# Each section's own limits


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        (DownloadParameters, "dataset", "mnst", "'mnist', 'fashion_mnist', 'digits' or 'custom'"),
        (DownloadParameters, "folder", 3, "valid string"),
        (PreprocessParameters, "validation_fraction", 0, "greater than 0"),
        (PreprocessParameters, "validation_fraction", 1, "less than 1"),
        (PreprocessParameters, "validation_fraction", float("nan"), "finite number"),
        (PreprocessParameters, "seed", -1, "greater than or equal to 0"),
        (PreprocessParameters, "seed", 2**32, "less than 4294967296"),
        (ModelParameters, "filters", [], "at least 1 item"),
        (ModelParameters, "filters.0", 24, "valid list"),
        (ModelParameters, "filters.0", [], "at least 1 item"),
        (ModelParameters, "filters.0.0", 0, "greater than or equal to 1"),
        (ModelParameters, "dropout", 1, "less than 1"),
        (TrainParameters, "epochs", 0, "greater than or equal to 1"),
        (TrainParameters, "learning_rate", float("inf"), "finite number"),
        (TrainParameters, "optimizer", "Adam", "'adam'"),
        (TrainParameters, "replicas", 0, "greater than or equal to 1"),
        (TrainParameters, "augmentation.shift", -1.0, "greater than or equal to 0"),
        (TrainParameters, "augmentation.rotation", 181.0, "less than or equal to 180"),
        (TrainParameters, "augmentation.zoom", 1.0, "less than 1"),
    ],
)
def test_value_outside_its_limits_is_refused(section, key, value, allowed):
    values = inner = deepcopy(VALUES[section.section])
    *outer, last = (int(name) if name.isdecimal() else name for name in key.split("."))
    for name in outer:
        inner = inner[name]
    inner[last] = value
    found = get_refusal(section.check, values)
    assert f"{section.section}.{key} is {value!r}: " in found
    assert allowed in found


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        (DownloadParameters, {"dataset": "custom", "folder": None}, "download.folder"),
        (ModelParameters, {"architecture": "branched", "api": "sequential"}, "model.api"),
        (ModelParameters, {"dropout": 0.5, "hidden_units": []}, "model.hidden_units"),
        (TrainParameters, {"optimizer": "adam", "momentum": 0.9}, "train.momentum"),
        (
            TrainParameters,
            {"optimizer": "sgd", "momentum": 0.0, "nesterov": True},
            "train.nesterov",
        ),
        (
            TrainParameters,
            {"loss": "mean_squared_error", "label_smoothing": 0.1},
            "train.label_smoothing",
        ),
        (TrainParameters, {"batch_size": 1, "replicas": 2}, "train.batch_size"),
        (TrainParameters, {"metrics": ["recall", "recall"]}, "train.metrics"),
    ],
)
def test_invalid_combination_is_refused(section, changes, named):
    assert named in get_refusal(section.check, VALUES[section.section] | changes)


def test_batch_normalisation_needs_two_images_of_each_replica():
    """One image less its own mean is 0, whatever the image shows."""

    def check(normalised, size, replicas):
        model = ModelParameters.check(VALUES["model"] | {"batch_normalization": normalised})
        train = {"batch_size": size, "replicas": replicas}
        check_together(model, TrainParameters.check(VALUES["train"] | train))

    for normalised, size, replicas in ((True, 4, 2), (False, 2, 2), (True, 128, 64), (True, 2, 1)):
        check(normalised, size, replicas)
    for size, replicas in ((2, 2), (3, 2), (127, 64), (1, 1)):
        found = get_refusal(check, True, size, replicas)
        assert f"train.batch_size is {size}, train.replicas {replicas} and" in found
        assert f"set train.batch_size to {2 * replicas} or more" in found


# The file


def test_other_sections_are_not_checked(path):
    path.write_text("example: {count: 3, rate: 0.5, enabled: true, inner: {every: 1}}\nelse: [1]\n")
    assert Example.read(path).model_dump() == RIGHT


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001"])
def test_exponents_are_numbers_as_in_dvc(path, text):
    path.write_text(SECTION % (3, text, "true"))
    assert Example.read(path).rate == 0.001
    assert parse_yaml(path.read_text(), str(path))["example"]["rate"] == 0.001


def test_params_yaml_is_read_as_dvc_reads_it():
    as_dvc = parse_yaml(PARAMETERS.read_text(encoding="utf-8"), str(PARAMETERS))
    assert as_dvc == read_yaml(PARAMETERS)


def test_yaml_1_2_is_read_as_dvc_reads_it(path):
    """In YAML 1.1, `yes` is true, `1:00` is 60 and `010` is 8."""
    path.write_text("a: yes\nb: 1:00\nc: 010\n")
    assert read_yaml(path) == {"a": "yes", "b": "1:00", "c": 10}
    assert read_yaml(path) == parse_yaml(path.read_text(), str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected sections of keys, found NoneType"),
        (b"- 1\n", "expected sections of keys, found list"),
        (b"other: {a: 1}\n", "section 'example' is missing or holds no keys"),
        (b"example:\n", "section 'example' is missing or holds no keys"),
        (b"example: [1, 2]\n", "section 'example' is missing or holds no keys"),
        (b"example: {count: 3\n", "not readable as YAML: while parsing a flow mapping"),
        (b"example:\n\tcount: 3\n", "not readable as YAML: while scanning"),
        (b"a: 1\na: 2\n", 'not readable as YAML: .* found duplicate key "a"'),
        (b"c: 1\n<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> b\n", "line 2: keep one version"),
        (b"example: {count: 2001-99-99}\n", "not readable as YAML: month must be in 1..12"),
        (b"example: !!python/object:os.system x\n", "not readable as YAML: could not determine"),
        (b"example: !!float ''\n", "not readable as YAML: string index out of range"),
        (b"[" * 1000, "not readable as YAML: maximum recursion depth exceeded"),
        (b"example: {count: '\xff'}\n", "not readable as YAML: 'utf-8' codec can't decode"),
    ],
)
def test_invalid_file_is_named_in_one_line(path, content, message):
    path.write_bytes(content)
    found = get_refusal(Example.read, path)
    assert re.search(f"{path}[:,] {message}", found)
    assert "\n" not in found


def message_of(call) -> str:
    """Return the message of a StageError, or nothing if none is raised."""
    try:
        call()
    except StageError as error:
        return str(error)
    return ""


@many_examples
@given(damaged(PARAMETERS.read_bytes()))
def test_damaged_params_yaml_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(content)
    assert "\n" not in message_of(partial(ModelParameters.read, path))


def nest_aliases(first: str, inner: str, levels: int = 8) -> str:
    """Return YAML in which each line repeats the one before ten times. `inner` joins them."""
    lines = [f"a0: &a0 {first}"]
    for level in range(levels):
        lines.append(f"a{level + 1}: &a{level + 1} {inner % ', '.join([f'*a{level}'] * 10)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        nest_aliases("[q, q]", "[%s]"),
        nest_aliases("{b: 1, c: 2}", "{<<: [%s]}"),
        "train: &a [*a]",
        "train: &a {seed: *a}",
    ],
    ids=["lists", "merged keys", "list in itself", "keys in themselves"],
)
def test_aliases_that_expand_without_end_are_refused(path, text):
    path.write_text(text)
    expected = f"{path}: not readable as YAML: its aliases expand to more than 100,000 values"
    assert get_refusal(read_yaml, path) == expected


def test_aliases_within_reason_are_read(path):
    path.write_text(nest_aliases("[q, q]", "[%s]", 2) + "\nb: {<<: {c: 1}, d: 2}")
    content = read_yaml(path)
    assert content["a2"] == [[["q", "q"]] * 10] * 10
    assert content["b"] == {"c": 1, "d": 2}


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(st.sampled_from([ModelParameters, TrainParameters, DownloadParameters]), st.data())
def test_any_value_is_accepted_or_named(section, data):
    key = data.draw(st.sampled_from(list(section.model_fields)))
    values = VALUES[section.section] | {key: data.draw(VALUE)}
    found = message_of(partial(section.check, values))
    assert "\n" not in found
    assert not found or f"{section.section}.{key}" in found


def test_missing_file_is_named_with_the_fix(path):
    expected = f"{path}: not found; run from the project's folder"
    assert get_refusal(Example.read, path) == expected


# The stages


def test_stage_with_an_invalid_value_writes_nothing(run_python, tmp_path):
    """It prints one line and no traceback."""
    (tmp_path / "params.yaml").write_text("download: {dataset: cifar, folder: null}")
    ended = run_python("-m", "stages.download")
    assert (ended.returncode, ended.stdout) == (1, "")
    (error,) = ended.stderr.splitlines()
    assert error.startswith("error: params.yaml: download.dataset is 'cifar': Input should be 'mni")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
