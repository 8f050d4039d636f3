"""Save a model as a `.keras` file with the same bytes every time, and load it safely."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras

from stages.core.errors import name_faults
from stages.core.files import (
    name_replacement,
    open_zip_member,
    reject_zip_bombs,
    write_atomically,
)
from stages.model.architectures import AUXILIARY, MAIN, has_two_outputs

MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]  # of a `.keras` file

# A model's configuration may name only classes of these modules.
MODULES = {
    *("keras", "keras.layers", "keras.initializers", "keras.optimizers"),
    *("keras.regularizers", "keras.constraints"),
    *("keras.src.models.functional", "keras.src.models.sequential"),
}
TENSOR = "__keras_tensor__"  # stands for a tensor in a configuration; it is not a class
# Classes of these modules that run code from the file, import other libraries or read other files.
UNSAFE = {
    *("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"),
    *("StringLookup", "IntegerLookup", "TextVectorization"),
}


def save(model: keras.Model, loss: str, path: Path) -> None:
    """Write `model` and the loss it was trained with as a `.keras` file.

    Keras writes the date into the file, and memory addresses that show which layers share weights.
    So that the bytes are the same every time, this function leaves out the date and replaces the
    addresses with the numbers 1, 2 and so on.
    """
    addresses: dict[int, int] = {}

    def replace_dates_and_addresses(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("date_saved", None)
        if "shared_object_id" in entry:
            address = entry["shared_object_id"]
            entry["shared_object_id"] = addresses.setdefault(address, len(addresses) + 1)
        return entry

    two = has_two_outputs(model)
    # Plain SGD has no state, so the file holds only the network and its loss.
    model.compile("sgd", loss=dict.fromkeys((MAIN, AUXILIARY), loss) if two else loss)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / path.name)
        with zipfile.ZipFile(Path(scratch) / path.name) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
    for name in ("config.json", "metadata.json"):
        content = json.loads(members[name], object_hook=replace_dates_and_addresses)
        members[name] = json.dumps(content).encode()
    with write_atomically(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, content in members.items():
            with open_zip_member(archive, name, len(content)) as stream:
                stream.write(content)


def load(path: Path) -> keras.Model:
    """Return the network in a `.keras` file that `save` wrote.

    Raises StageError if the file is missing or damaged, or if its configuration names a class that
    could run code. This is checked before Keras creates any object.
    """
    remedy = f"; make it again: {name_replacement(path)}"
    with name_faults(path, "a model", remedy):
        with zipfile.ZipFile(path) as archive:
            reject_zip_bombs(archive, path)
            found = sorted(archive.namelist())
            if found != MEMBERS:
                raise ValueError(f"expected {', '.join(MEMBERS)} in it, found {', '.join(found)}")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            json.loads(archive.read("config.json"), object_hook=reject_unsafe_class)
        return keras.models.load_model(path, safe_mode=True)


def reject_unsafe_class(entry: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError if an object in a model's configuration could run code; else return it.

    Only Keras's own layers and their settings are allowed, except UNSAFE. Keras's safe mode is a
    second check.
    """
    name = entry.get("class_name", TENSOR)
    module = entry.get("module")
    if name != TENSOR and (module not in MODULES or name in UNSAFE or not name[:1].isupper()):
        raise ValueError(f"{module}.{name} is not a layer that a model may use here")
    return entry
