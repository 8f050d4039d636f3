"""Parameters for tests.

Tests must pass whatever valid values params.yaml holds. So they take the keys from it. A test that
depends on a value takes that value from DEFAULTS. A new key needs no entry here.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

# The values of the recorded run that README.md describes.
DEFAULTS: dict[str, Any] = {
    "download.dataset": "mnist",
    "download.folder": None,
    "download.colour": "keep",
    "download.size": None,
    "download.test_fraction": 0.2,
    "download.seed": 42,
    "preprocess.validation_fraction": 0.1,
    "preprocess.seed": 42,
    "preprocess.stratify": True,
    "model.architecture": "convolutional",
    "model.api": "functional",
    "model.crop": 0,
    "model.filters": [[24], [48], [96]],
    "model.hidden_units": [96],
    "model.batch_normalization": True,
    "model.dropout": 0.0,
    "model.members": 1,
    "model.test_time_augmentation": False,
    "model.seed": 42,
    "train.epochs": 5,
    "train.batch_size": 256,
    "train.loss": "categorical_crossentropy",
    "train.label_smoothing": 0.1,
    "train.auxiliary_weight": 0.3,
    "train.optimizer": "muon",
    "train.learning_rate": 0.01,
    "train.momentum": 0.0,
    "train.nesterov": False,
    "train.schedule.name": "cosine",
    "train.schedule.every": 1,
    "train.schedule.factor": 0.5,
    "train.schedule.warmup": 0.25,
    "train.augmentation.shift": 2.0,
    "train.augmentation.rotation": 10.0,
    "train.augmentation.zoom": 0.1,
    "train.early_stopping.enabled": False,
    "train.early_stopping.patience": 3,
    "train.early_stopping.min_delta": 0.0,
    "train.metrics": ["accuracy"],
    "train.seed": 42,
    "train.replicas": 2,
    "evaluate.batch_size": 512,
    "evaluate.threads": 2,
    "plot.samples": 10,
    "plot.mistakes": 20,
    "plot.dpi": 120,
}


def get_value(content: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key, such as `train.seed`; None if there is none."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def set_values(content: dict[str, Any], values: dict[str, Any]) -> None:
    """Change the values of dotted keys, which must exist."""
    for key, value in values.items():
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        assert last in section, key
        section[last] = value


def change_file(path: Path, values: dict[str, Any]) -> None:
    """Change the values of dotted keys in a params.yaml, as DVC writes it."""
    yaml = YAML()
    yaml.default_flow_style = False
    content = yaml.load(path)
    set_values(content, values)
    yaml.dump(content, path)


def read_defaults() -> dict[str, Any]:
    """Return the content of params.yaml with the values in DEFAULTS."""
    content: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    set_values(content, DEFAULTS)
    return content


def have_default_results() -> bool:
    """Return whether dvc.lock records a run with the values in DEFAULTS."""
    stages = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"].values()
    recorded: dict[str, Any] = {}
    for stage in stages:
        recorded |= stage.get("params", {}).get("params.yaml", {})
    return all(get_value(recorded, key) == value for key, value in DEFAULTS.items())
