"""Read dataset.json, in which the stage download describes the dataset."""

from pathlib import Path

from stages.core.errors import StageError
from stages.core.files import read_json


def read_classes(path: Path) -> list[str]:
    """Return the class names, by label, from the dataset.json that the stage download writes."""
    content = read_json(path)
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise StageError(f"{path}: expected a list of class names under 'classes'")
    return classes


def is_zero_white(path: Path) -> bool:
    """Return whether the value 0 of a pixel is white paper, as in MNIST, and not black.

    In your own dataset, 0 is black.
    """
    return bool(read_json(path).get("dataset") != "custom")
