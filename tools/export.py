"""Write the trained network in other formats, each held to the Keras model on the test images.

data/export/model.onnx     for ONNX Runtime, and what else reads ONNX
data/export/model.tflite   for LiteRT, once TensorFlow Lite: phones and small boards
data/export/classes.txt    the names of the classes, in the order of the probabilities

Both take images (n, height, width) float32 in [0, 1] and return probabilities (n, classes) float32.
A file that does not predict as the Keras model does is not written.

    python -m tools.export
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.environment import PINS
from stages.core.errors import StageError, run
from stages.core.files import write_atomically, write_text
from stages.core.paths import DATASET, MODEL, TEST
from stages.core.prepared import read_classes, read_split
from stages.evaluate import EvaluateParameters
from stages.model import portable

EXPORT = Path("data/export")

# MNIST's default network differed by at most 1e-6, and predicted every test digit alike.
DIFFERENCE = 1e-4  # largest difference of a probability
AGREEMENT = 0.9995  # smallest share of the test images predicted alike

Floats = npt.NDArray[np.float32]
Predict = Callable[[Path, Floats], Floats]


def single(model: Any) -> Any:
    """Return `model` with its main output alone."""
    import keras

    from stages.model.architectures import MAIN, has_two_outputs

    return keras.Model(model.inputs, model.output[MAIN]) if has_two_outputs(model) else model


def write_onnx(model: Any, path: Path) -> None:
    """Write `model` as ONNX, by way of tf2onnx."""
    with warnings.catch_warnings():
        # Keras asks NumPy whether it still has a name that it gives back to tf2onnx.
        warnings.filterwarnings("ignore", message=r"In the future `np\.object`")
        model.export(path, format="onnx", input_signature=signature(model), verbose=False)
    os.environ.update(PINS)  # tf2onnx changes one of them


def write_tflite(model: Any, path: Path) -> None:
    """Write `model` as TFLite, in the operations that every runtime of it has."""
    import tensorflow as tf

    model.export(
        path,
        format="litert",
        input_signature=signature(model),
        verbose=False,
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )


def signature(model: Any) -> list[Any]:
    """Return what `model` takes: any number of images."""
    import keras

    shape = (None, *model.inputs[0].shape[1:])
    return [keras.InputSpec(shape=shape, dtype="float32", name="images")]


def predict_onnx(path: Path, images: Floats) -> Floats:
    """Return the probabilities that ONNX Runtime computes with the network in `path`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"images": images})
    return np.asarray(probabilities, np.float32)


def predict_tflite(path: Path, images: Floats) -> Floats:
    """Return the probabilities that LiteRT computes with the network in `path`."""
    import tensorflow as tf

    with warnings.catch_warnings():
        # It is to move to a package, whose dependencies have no versions for Python 3.11 and later
        # that a lock file for every system could pin.
        warnings.filterwarnings(
            "ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated"
        )
        interpreter = tf.lite.Interpreter(str(path))
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], images)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(result["index"]), np.float32)


FORMATS: dict[str, tuple[Callable[[Any, Path], None], Predict]] = {
    "model.onnx": (write_onnx, predict_onnx),
    "model.tflite": (write_tflite, predict_tflite),
}


def compare(name: str, found: Floats, expected: Floats) -> str:
    """Return how close two arrays of probabilities are, or raise StageError where not enough."""
    alike = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    difference = np.abs(found - expected).max()
    closeness = (
        f"{name}: {alike:.2%} of {len(expected)} test images predicted as by Keras, "
        f"probabilities differ by at most {difference:.1g}"
    )
    if not (alike >= AGREEMENT and difference <= DIFFERENCE):
        raise StageError(
            f"{closeness}; the bounds are {AGREEMENT:.2%} and {DIFFERENCE:.0e}, so it is not kept"
        )
    return closeness


def main() -> None:
    """Write and judge each format."""
    parameters = EvaluateParameters.read()
    classes = read_classes(DATASET)
    images, _ = read_split(TEST)
    if not (MODEL).is_file():
        raise StageError(f"{MODEL}: not found; run `make repro` to make it")

    from stages.model import runtime, storage

    runtime.configure_tensorflow(parameters.threads)
    model = storage.load(MODEL)
    expected = portable.make_portable(model, parameters.threads).predict_probabilities(
        images, parameters.batch_size
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, (write, predict) in FORMATS.items():
            path = Path(scratch) / name
            write(single(model), path)
            print(compare(name, predict(path, images), expected))
            with write_atomically(EXPORT / name) as part:
                part.write_bytes(path.read_bytes())
    write_text(EXPORT / "classes.txt", "".join(f"{name}\n" for name in classes))
    print(f"{', '.join(FORMATS)} and classes.txt are in {EXPORT}")


if __name__ == "__main__":
    run(main)
