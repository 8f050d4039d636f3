"""The sections `model` and `train` of params.yaml: the network and its training.

They are in a separate module, so that they can be checked without loading TensorFlow.
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

    def for_member(self, number: int) -> Self:
        """Return the same section with the seed of an ensemble member; the first has number 0.

        The seeds of members are 10,000 apart, so that ensembles whose seeds are close share no
        member.
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
    def check_combination(self) -> Self:
        """Reject combinations that no network can have."""
        if self.architecture == "branched" and self.api == "sequential":
            raise ValueError(
                "model.architecture is 'branched' and model.api 'sequential': a Sequential model "
                "is one chain of layers, but this network has branches and two outputs; use "
                "api: functional"
            )
        if self.dropout and not self.hidden_units:
            raise ValueError(
                f"model.dropout is {self.dropout} and model.hidden_units is empty: dropout follows "
                "hidden dense layers; add one or set dropout to 0"
            )
        return self


class Schedule(Section):
    """How the learning rate changes during training."""

    section: ClassVar = "train.schedule"

    name: Literal["constant", "step", "exponential", "cosine", "plateau"]
    every: Positive
    factor: float = Field(gt=0, lt=1)
    warmup: float = Field(ge=0, lt=1)


class Augmentation(Section):
    """The largest random changes of a training image."""

    section: ClassVar = "train.augmentation"

    shift: float = Field(ge=0)  # pixels
    rotation: float = Field(ge=0, le=180)  # degrees
    zoom: float = Field(ge=0, lt=1)  # fraction of the size


class EarlyStopping(Section):
    """When to stop before the last epoch."""

    section: ClassVar = "train.early_stopping"

    enabled: bool
    patience: int = Field(ge=0)
    min_delta: float = Field(ge=0)


class TrainParameters(Seeded):
    """How the network is trained."""

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
    def check_combination(self) -> Self:
        """Reject values that do not go together, and metrics that are listed twice."""
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(
                f"train.momentum is {self.momentum} and train.optimizer {self.optimizer!r}: only "
                "sgd and rmsprop have a momentum; set it to 0"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError(
                f"train.nesterov is true, train.optimizer {self.optimizer!r} and train.momentum "
                f"{self.momentum}: Nesterov momentum needs sgd with a momentum above 0"
            )
        if self.label_smoothing and self.loss != "categorical_crossentropy":
            raise ValueError(
                f"train.label_smoothing is {self.label_smoothing} and train.loss {self.loss!r}: "
                "only categorical_crossentropy can smooth labels; set it to 0"
            )
        if self.batch_size < self.replicas:
            raise ValueError(
                f"train.batch_size is {self.batch_size} and train.replicas {self.replicas}: each "
                "replica needs at least one image of a batch"
            )
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"train.metrics lists a metric twice: {', '.join(self.metrics)}")
        return self


def find_smallest_batch(replicas: int, batch_normalization: bool) -> int:
    """Return how many images a batch needs, so that every replica can learn from its share.

    Batch normalisation subtracts the mean over the share. After a dense layer, a single image would
    become 0. PyTorch refuses that too: "Expected more than 1 value per channel".
    """
    return replicas * (2 if batch_normalization else 1)


def check_together(model: ModelParameters, train: TrainParameters) -> None:
    """Raise StageError if the two sections, each valid by itself, do not go together."""
    smallest = find_smallest_batch(train.replicas, model.batch_normalization)
    if train.batch_size < smallest:
        raise StageError(
            f"train.batch_size is {train.batch_size}, train.replicas {train.replicas} and "
            "model.batch_normalization true: each replica normalises its share of a batch, which "
            f"needs at least two images; set train.batch_size to {smallest} or more, use fewer "
            "replicas, or turn off batch normalisation"
        )
    if model.members > 1 and train.early_stopping.enabled:
        raise StageError(
            f"model.members is {model.members} and train.early_stopping.enabled true: members that "
            "stop after different epochs have no common history; turn off one of the two"
        )
