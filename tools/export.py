"""Export the trained network to ONNX, TFLite and older Keras, and check all on the test images.

data/export/model.onnx     for ONNX Runtime and other programs that read ONNX
data/export/model.tflite   for LiteRT, formerly TensorFlow Lite, on phones and small boards
data/export/model.keras    for Keras 3.10 and later; data/model/model.keras needs Keras 3.15
data/export/classes.txt    the class names, in the order of the probabilities

All models take images (n, height, width) or, in colour, (n, height, width, 3) float32 in [0, 1],
and return probabilities (n, classes) float32. A model is saved only if it agrees with the Keras
model within limits.

    python -m tools.export
"""

import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.dataset import read_classes
from stages.core.environment import PINS
from stages.core.errors import StageError, run
from stages.core.files import Floats, write_atomically, write_text
from stages.core.paths import DATASET, MODEL, TEST
from stages.core.prepared import read_split
from stages.evaluate import EvaluateParameters

EXPORT = Path("data/export")

# For the default network, probabilities differed by at most 1e-6 and no prediction differed.
MAX_DIFFERENCE = 1e-4  # between two probabilities
MIN_AGREEMENT = 0.9995  # fraction of test images with the same prediction

# What Keras 3.11 to 3.15 added to the configuration of layers, with the default. An older Keras
# refuses keys that it does not know, even with the value that changes nothing.
NEWER_KEYS = {
    "input_axes": None,
    "output_axes": None,
    "quantization_config": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
}

Predict = Callable[[Path, Floats], Floats]


def select_main_output(model: Any) -> Any:
    """Return `model` without its auxiliary output, if it has one."""
    import keras

    from stages.model.architectures import MAIN, has_two_outputs

    return keras.Model(model.inputs, model.output[MAIN]) if has_two_outputs(model) else model


def write_onnx(model: Any, path: Path) -> None:
    """Write `model` as ONNX, using tf2onnx: `images` (n, height, width) to `probabilities`."""
    import onnx

    with warnings.catch_warnings():
        # Keras checks for the removed `np.object` on behalf of tf2onnx.
        warnings.filterwarnings("ignore", message=r"In the future `np\.object`")
        model.export(path, format="onnx", input_signature=make_signature(model), verbose=False)
    os.environ.update(PINS)  # tf2onnx changes one of these variables
    exported = onnx.load(path)
    graph = exported.graph
    found = graph.output[0].name  # tf2onnx calls it `Identity:0`
    for names in [names for node in graph.node for names in (node.input, node.output)]:
        names[:] = ["probabilities" if name == found else name for name in names]
    graph.output[0].name = "probabilities"
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(exported, path)


def write_tflite(model: Any, path: Path) -> None:
    """Write `model` as TFLite, using only operations that every TFLite runtime has."""
    import tensorflow as tf

    model.export(
        path,
        format="litert",
        input_signature=make_signature(model),
        verbose=False,
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )


def write_keras(model: Any, path: Path) -> None:
    """Write `model` as a `.keras` file without the keys that an older Keras does not know."""
    import keras

    def drop_newer_keys(entry: dict[str, Any]) -> dict[str, Any]:
        missing = object()
        return {key: value for key, value in entry.items() if NEWER_KEYS.get(key, missing) != value}

    complete = path.with_name(f"complete-{path.name}")
    keras.Model(model.inputs, model.outputs).save(complete)
    with zipfile.ZipFile(complete) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content, object_hook=drop_newer_keys)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    complete.unlink()


def predict_keras(path: Path, images: Floats) -> Floats:
    """Return the probabilities that Keras computes with the model in `path`."""
    import keras

    probabilities = keras.models.load_model(path).predict(images, verbose=0)
    return np.asarray(probabilities, np.float32)


def make_signature(model: Any) -> list[Any]:
    """Return the input signature of `model`, for any number of images."""
    import keras

    shape = (None, *model.inputs[0].shape[1:])
    return [keras.InputSpec(shape=shape, dtype="float32", name="images")]


def predict_onnx(path: Path, images: Floats) -> Floats:
    """Return the probabilities that ONNX Runtime computes with the model in `path`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": images})
    return np.asarray(probabilities, np.float32)


def predict_tflite(path: Path, images: Floats) -> Floats:
    """Return the probabilities that LiteRT computes with the model in `path`."""
    import tensorflow as tf

    with warnings.catch_warnings():
        # The successor is a separate package, whose dependencies cannot be pinned for Python 3.11
        # and later on every system.
        warnings.filterwarnings(
            "ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated"
        )
        interpreter = tf.lite.Interpreter(str(path))
    (probabilities,) = interpreter.get_signature_runner()(images=images).values()
    return np.asarray(probabilities, np.float32)


FORMATS: dict[str, tuple[Callable[[Any, Path], None], Predict]] = {
    "model.onnx": (write_onnx, predict_onnx),
    "model.tflite": (write_tflite, predict_tflite),
    "model.keras": (write_keras, predict_keras),
}


def check_agreement(name: str, found: Floats, expected: Floats) -> str:
    """Return a line on how closely two arrays of probabilities agree.

    Raises StageError if they differ by more than MAX_DIFFERENCE or in too many predictions.
    """
    agreement = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    difference = np.abs(found - expected).max()
    line = (
        f"{name}: same prediction as Keras for {agreement:.2%} of {len(expected)} test images, "
        f"probabilities differ by at most {difference:.1g}"
    )
    if not (agreement >= MIN_AGREEMENT and difference <= MAX_DIFFERENCE):
        raise StageError(
            f"{line}; the limits are {MIN_AGREEMENT:.2%} and {MAX_DIFFERENCE:.0e}, so it is not "
            "saved"
        )
    return line


def main() -> None:
    """Export, check and save each format."""
    parameters = EvaluateParameters.read()
    classes = read_classes(DATASET)
    images, _ = read_split(TEST)
    if not MODEL.is_file():
        raise StageError(f"{MODEL}: not found; run `make repro` to train it")

    # Imported here because TensorFlow takes seconds to load, and a mistake above should be reported
    # at once.
    from stages.model.runtime import configure_tensorflow, load_tensorflow

    load_tensorflow()
    from stages.model.parallel import DataParallel
    from stages.model.storage import load

    configure_tensorflow(parameters.threads)
    model = load(MODEL)
    portable = DataParallel(model, parameters.threads)
    expected = portable.predict_probabilities(images, parameters.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        for name, (write, predict) in FORMATS.items():
            path = Path(scratch) / name
            write(select_main_output(model), path)
            print(check_agreement(name, predict(path, images), expected))
            with write_atomically(EXPORT / name) as part:
                part.write_bytes(path.read_bytes())
    write_text(EXPORT / "classes.txt", "".join(f"{name}\n" for name in classes))
    print(f"Saved {', '.join(FORMATS)} and classes.txt to {EXPORT}")


if __name__ == "__main__":
    run(main)
