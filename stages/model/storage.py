"""TODO stages.model.storage."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras

from stages.core.errors import StageError
from stages.core.files import atomic, open_zip_member, reject_zip_bombs
from stages.model.architectures import AUXILIARY, MAIN, has_two_outputs

# What a model file holds, and the kinds of objects that its configuration may name: all that this
# module puts there. A new kind of layer is to be added here, or `load` refuses it.
MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
PARTS = {
    *("Functional", "Sequential", "InputLayer", "__keras_tensor__", "DTypePolicy", "SGD"),
    *("GlorotUniform", "Zeros", "Ones"),
    *("Reshape", "Cropping2D", "ZeroPadding2D", "Conv2D", "MaxPooling2D", "BatchNormalization"),
    *("ReLU", "Flatten", "Dense", "Dropout", "Concatenate", "GlobalAveragePooling2D", "Average"),
}


def save(model: keras.Model, loss: str, path: Path) -> None:
    """Write `model` and the loss it was trained with as a `.keras` file, same bytes every time.

    Keras notes the date, in the archive and in its entries' time stamps, and memory addresses, by
    which it tells what layers share. The dates are left out, the addresses numbered.
    """
    addresses: dict[int, int] = {}

    def numbered(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("date_saved", None)
        if "shared_object_id" in entry:
            address = entry["shared_object_id"]
            entry["shared_object_id"] = addresses.setdefault(address, len(addresses) + 1)
        return entry

    two = has_two_outputs(model)
    # Plain SGD keeps no state, so the file holds the network and its loss and nothing else.
    model.compile("sgd", loss=dict.fromkeys((MAIN, AUXILIARY), loss) if two else loss)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / path.name)
        with zipfile.ZipFile(Path(scratch) / path.name) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
    for name in ("config.json", "metadata.json"):
        members[name] = json.dumps(json.loads(members[name], object_hook=numbered)).encode()
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, content in members.items():
            with open_zip_member(archive, name, len(content)) as stream:
                stream.write(content)


def load(path: Path) -> keras.Model:
    """Return the network in a `.keras` file that `save` wrote.

    Raises StageError where it is missing, damaged, or holds anything that `build` does not make:
    that is looked for before Keras makes objects of what the file names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reject_zip_bombs(archive, path)
            found = sorted(archive.namelist())
            if found != MEMBERS:
                raise ValueError(f"expected {', '.join(MEMBERS)} in it, found {', '.join(found)}")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            json.loads(archive.read("config.json"), object_hook=reject_foreign_layers)
        return keras.models.load_model(path, safe_mode=True)
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro` to make it") from None
    except Exception as error:  # whatever zipfile, h5py and Keras stumble over in a damaged file
        cause = " ".join(str(error).split())
        raise StageError(
            f"{path}: not a readable model: {cause}; delete it, `dvc repro`"
        ) from error


def reject_foreign_layers(entry: dict[str, Any]) -> None:
    """Raise ValueError where an object in a model's configuration is none that `build` makes.

    Keras has layers that carry code (Lambda), unpickle it (TorchModuleWrapper) or read files, and
    imports what a configuration names; its safe mode is the second line of defence.
    """
    name, module = entry.get("class_name"), entry.get("module", "keras")
    if "class_name" in entry and (name not in PARTS or str(module).split(".")[0] != "keras"):
        raise ValueError(f"{module}.{name} is no part of the networks built here")
