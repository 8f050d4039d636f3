"""The sections `model` and `train` of params.yaml: what the network is and how it learns.

Apart from the code that uses them, so that they can be checked without loading TensorFlow.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.core.errors import StageError
from stages.core.settings import Section

Positive = Annotated[int, Field(ge=1)]
Replicas = Annotated[int, Field(ge=1, le=64)]
Group = Annotated[list[Positive], Field(min_length=1, max_length=8)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Seeded(Section):
    """A section with a seed."""

    seed: Seed

    def of_member(self, number: int) -> Self:
        """Return the same section with the seed of that member of an ensemble; 0 is the first.

        They lie 10,000 apart, so that ensembles of neighbouring seeds have no member in common.
        """
        return self.model_copy(update={"seed": (self.seed + 10_000 * number) % 2**32})


class ModelParameters(Seeded):
    """The network before training."""

    section: ClassVar = "model"

    architecture: Literal["dense", "convolutional", "branched"]
    api: Literal["sequential", "functional"]
    crop: int = Field(ge=0)
    filters: list[Group] = Field(min_length=1, max_length=4)
    hidden_units: list[Positive] = Field(max_length=8)
    batch_normalization: bool
    dropout: float = Field(ge=0, lt=1)
    members: Positive
    test_time_augmentation: bool

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse what the network cannot be."""
        if self.architecture == "branched" and self.api == "sequential":
            raise ValueError(
                "model.architecture is 'branched' and model.api 'sequential': a Sequential model "
                "is one chain of layers, and this network branches and has two outputs; use "
                "api: functional"
            )
        if self.dropout and not self.hidden_units:
            raise ValueError(
                f"model.dropout is {self.dropout} and model.hidden_units is empty: dropout follows "
                "hidden dense layers; add one, or set dropout to 0"
            )
        return self


class Schedule(Section):
    """How the learning rate changes while training."""

    section: ClassVar = "train.schedule"

    name: Literal["constant", "step", "exponential", "cosine", "plateau"]
    every: Positive
    factor: float = Field(gt=0, lt=1)
    warmup: float = Field(ge=0, lt=1)


class Augmentation(Section):
    """How far training digits are moved at random, anew each time they are seen."""

    section: ClassVar = "train.augmentation"

    shift: float = Field(ge=0)
    rotation: float = Field(ge=0, le=180)
    zoom: float = Field(ge=0, lt=1)


class EarlyStopping(Section):
    """When to stop before the last epoch."""

    section: ClassVar = "train.early_stopping"

    enabled: bool
    patience: int = Field(ge=0)
    min_delta: float = Field(ge=0)


class TrainParameters(Seeded):
    """How the network learns."""

    section: ClassVar = "train"

    epochs: Positive
    batch_size: Positive
    loss: Literal["categorical_crossentropy", "mean_squared_error"]
    label_smoothing: float = Field(ge=0, lt=1)
    auxiliary_weight: float = Field(ge=0)
    optimizer: Literal[
        "sgd", "adam", "adamw", "nadam", "adamax", "rmsprop", "adagrad", "adadelta", "lion", "muon"
    ]
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    schedule: Schedule
    augmentation: Augmentation
    early_stopping: EarlyStopping
    metrics: list[Literal["accuracy", "precision", "recall"]] = Field(min_length=1)
    replicas: Replicas

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse settings that do not go together, and metrics named twice."""
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(
                f"train.momentum is {self.momentum} and train.optimizer {self.optimizer!r}: only "
                "sgd and rmsprop take a momentum; set it to 0"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError(
                f"train.nesterov is true, train.optimizer {self.optimizer!r} and train.momentum "
                f"{self.momentum}: Nesterov's rule needs sgd with a momentum above 0"
            )
        if self.label_smoothing and self.loss != "categorical_crossentropy":
            raise ValueError(
                f"train.label_smoothing is {self.label_smoothing} and train.loss {self.loss!r}: "
                "only categorical_crossentropy smooths labels; set it to 0"
            )
        if self.batch_size < self.replicas:
            raise ValueError(
                f"train.batch_size is {self.batch_size} and train.replicas {self.replicas}: each "
                "thread computes a share of the batch, of one picture at least"
            )
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"train.metrics names one twice: {', '.join(self.metrics)}")
        return self


def check_together(model: ModelParameters, train: TrainParameters) -> None:
    """Raise StageError where the two sections, each valid by itself, do not go together."""
    if model.members > 1 and train.early_stopping.enabled:
        raise StageError(
            f"model.members is {model.members} and train.early_stopping.enabled true: members that "
            "stop after different epochs have no common history; turn one of the two off"
        )
