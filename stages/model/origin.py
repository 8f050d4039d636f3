"""Describe everything that a training depends on, so that only an equal one goes on with it."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stages.core.machine import collect_fingerprint
from stages.core.paths import GRAPH, TRAIN, VALIDATION
from stages.core.settings import read_yaml
from stages.model.settings import ModelParameters, TrainParameters

Origin = dict[str, str]  # a value or a hash, by name

PROJECT = Path(__file__).parents[2]


def describe_origin(model: ModelParameters, train: TrainParameters) -> Origin:
    """Return everything that the result of a training depends on.

    The code is what dvc.yaml lists as `deps` of the stage. Prepared data is described by the
    checksums in the `.npz` files.
    """
    origin = {
        path.relative_to(PROJECT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in find_code(PROJECT)
    }
    for section in (model, train):
        for name, value in section.model_dump().items():
            origin[f"{section.section}.{name}"] = json.dumps(value, sort_keys=True)
    for path in (TRAIN, VALIDATION):
        with zipfile.ZipFile(path) as archive:
            members = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
        origin[path.as_posix()] = json.dumps(members)
    machine = collect_fingerprint()
    return {**origin, **machine["libraries"], "Python": machine["python"].rpartition(".")[0]}


def find_code(project: Path) -> Iterator[Path]:
    """Yield the files that dvc.yaml lists, itself or their folder, as `deps` of the training."""
    stages = (read_yaml(project / GRAPH).get("stages") or {}).values()
    trainings = [stage for stage in stages if "stages.train" in str(stage.get("cmd"))]
    # If dvc.yaml does not say what the training depends on, it can be anything in `stages`.
    for name in {dep for stage in trainings for dep in stage.get("deps", [])} or {"stages"}:
        path = project / name
        if Path(name) in (TRAIN, VALIDATION):
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and file.name[0] != ".":
                yield file


def find_differences(ours: Origin, theirs: Origin) -> str:
    """Return the names of the entries that differ between two origins, or an empty string."""
    return ", ".join(sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)))
