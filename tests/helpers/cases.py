"""The kinds of training that tests and benchmarks/cpus.py run, as changes of params.yaml."""

import itertools
import typing
from typing import Any

from stages.model.settings import ModelParameters, Schedule, TrainParameters

from .parameters import read_defaults, set_values

Values = dict[str, Any]  # by dotted keys

# A network and a training that take a second.
TINY: Values = {
    "model.architecture": "convolutional",
    "model.api": "functional",
    "model.crop": 2,
    "model.filters": [[4], [6]],
    "model.hidden_units": [8],
    "model.batch_normalization": True,
    "model.dropout": 0.0,
    "model.members": 1,
    "model.test_time_augmentation": False,
    "model.seed": 1,
    "train.epochs": 1,
    "train.batch_size": 32,
    "train.loss": "categorical_crossentropy",
    "train.label_smoothing": 0.0,
    "train.auxiliary_weight": 0.3,
    "train.optimizer": "adam",
    "train.learning_rate": 0.01,
    "train.momentum": 0.0,
    "train.nesterov": False,
    "train.metrics": ["accuracy"],
    "train.seed": 1,
    "train.replicas": 2,
    "train.schedule.name": "constant",
    "train.schedule.every": 1,
    "train.schedule.factor": 0.5,
    "train.schedule.warmup": 0.25,
    "train.early_stopping.enabled": False,
    "train.early_stopping.patience": 3,
    "train.early_stopping.min_delta": 0.0,
    "train.augmentation.shift": 0.0,
    "train.augmentation.rotation": 0.0,
    "train.augmentation.zoom": 0.0,
}

# Trainings whose state has a part of its own: random numbers, a learning rate that falls, the
# weights of the best epoch, several members. The number of epochs is the smallest that shows it.
KINDS: dict[str, Values] = {
    "dropout, augmentation, muon": {
        "model.architecture": "convolutional",
        "model.filters": [[4], [6]],
        "model.dropout": 0.5,
        "train.optimizer": "muon",
        "train.epochs": 3,
        "train.schedule.name": "cosine",
        "train.augmentation.shift": 2.0,
        "train.augmentation.rotation": 5.0,
        "train.label_smoothing": 0.1,
    },
    "early stopping": {
        "model.architecture": "dense",
        "train.optimizer": "sgd",
        "train.learning_rate": 20.0,  # too high, so that the loss rises
        "train.epochs": 30,
        "train.schedule.name": "constant",
        "train.label_smoothing": 0.0,
        "train.early_stopping.enabled": True,
        "train.early_stopping.patience": 2,
    },
    "plateau, momentum, branches": {
        "model.architecture": "branched",
        "model.filters": [[4], [6]],
        "train.optimizer": "sgd",
        "train.momentum": 0.9,
        "train.loss": "mean_squared_error",
        "train.label_smoothing": 0.0,
        "train.learning_rate": 1e-9,  # too low for any improvement
        "train.epochs": 5,
        "train.schedule.name": "plateau",
        "train.metrics": ["precision", "recall"],
    },
    "ensemble, test-time augmentation": {
        "model.architecture": "dense",
        "model.members": 3,
        "model.test_time_augmentation": True,
        "model.dropout": 0.2,
        "train.optimizer": "nadam",
        "train.epochs": 2,
        "train.schedule.name": "exponential",
        "train.label_smoothing": 0.1,
    },
}


def make_sections(values: Values) -> tuple[ModelParameters, TrainParameters]:
    """Return the sections model and train with these values, and else with those of TINY."""
    content = read_defaults()
    set_values(content, TINY | values)
    return ModelParameters.check(content["model"]), TrainParameters.check(content["train"])


def list_choices(section: type, key: str) -> tuple[Any, ...]:
    """Return the values that a key with a list of choices may have."""
    annotation = section.model_fields[key].annotation  # type: ignore[attr-defined]
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
    return typing.get_args(annotation)


NETWORKS = [
    {"model.architecture": architecture, "model.api": api}
    for architecture in list_choices(ModelParameters, "architecture")
    for api in list_choices(ModelParameters, "api")
    if (architecture, api) != ("branched", "sequential")
]
# These have code of their own. Keras has all the others.
OPTIMIZERS: list[Values] = [
    {"train.optimizer": "adam"},
    {"train.optimizer": "muon"},
    {"train.optimizer": "sgd", "train.momentum": 0.9, "train.nesterov": True},
    {"train.optimizer": "rmsprop", "train.momentum": 0.9},
]
OTHERS: list[Values] = [
    {"train.optimizer": "sgd", "train.momentum": 0.9},
    *({"train.optimizer": name} for name in list_choices(TrainParameters, "optimizer")),
]
OPTIONS: list[list[Values]] = [
    [{"train.schedule.name": name} for name in list_choices(Schedule, "name")],
    [{"train.loss": name} for name in list_choices(TrainParameters, "loss")],
    [
        *({"train.metrics": [name]} for name in list_choices(TrainParameters, "metrics")),
        {"train.metrics": ["recall", "accuracy"]},
    ],
    [{"model.batch_normalization": True}, {"model.batch_normalization": False}],
    [{"model.dropout": 0.0}, {"model.dropout": 0.5}],
    [{"train.early_stopping.enabled": True}, {"train.early_stopping.enabled": False}],
    [{"train.augmentation.shift": 0.0}, {"train.augmentation.shift": 1.5}],
]


def combine_all(options: list[list[Values]]) -> list[Values]:
    """Return combinations that have each option at least once."""
    return [
        dict(itertools.chain(*(each[i % len(each)].items() for each in options)))
        for i in range(max(map(len, options)))
    ]


def combine_pairs(options: list[list[Values]]) -> list[Values]:
    """Return combinations in which each option meets each option of every other kind.

    A row has the number of an option by the number of its kind.
    """

    def pairs(row: dict[int, int]) -> set[Any]:
        return set(itertools.combinations(sorted(row.items()), 2))

    everything = [[(kind, i) for i in range(len(each))] for kind, each in enumerate(options)]
    missing = set().union(*(pairs(dict(row)) for row in itertools.product(*everything)))
    rows = []
    while missing:
        row = dict(min(missing))
        for kind, each in enumerate(options):
            if kind not in row:
                gains = [len(pairs(row | {kind: i}) & missing) for i in range(len(each))]
                row[kind] = gains.index(max(gains))
        missing -= pairs(row)
        chosen = (options[kind][i].items() for kind, i in sorted(row.items()))
        rows.append(dict(itertools.chain(*chosen)))
    return rows


EVERY_OPTION = combine_all([NETWORKS, OTHERS, *OPTIONS])
COMBINATIONS = [*combine_pairs([NETWORKS, OPTIMIZERS, *OPTIONS]), *EVERY_OPTION]
