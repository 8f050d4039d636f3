"""Load and configure TensorFlow so that results do not depend on the machine."""

import gc
import os
import platform
import re
import sys
import tempfile

from stages.core import environment
from stages.core.errors import StageError
from stages.core.machine import read_processor


def load_tensorflow() -> None:
    """Import TensorFlow without the notices that it writes to standard error while it loads.

    An example is the notice that oneDNN is on. The notices come from C++ code that runs before any
    setting can turn them off. Everything else that TensorFlow writes while it loads is shown.

    Raises StageError if the processor lacks instructions. Without AVX, the system would end the
    process; without FMA, products would round differently.
    """
    _, instructions = read_processor()
    needed = ("avx", "fma") if platform.machine() == "x86_64" and instructions else ()
    if missing := next((name for name in needed if name not in instructions), ""):
        raise StageError(
            f"this processor has no {missing.upper()} instructions, which the results depend on; "
            "use another machine, or give the virtual machine its host's processor"
        )
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        # TensorFlow's modules are never garbage. Without a search for garbage in them, the import,
        # each epoch and the end of the process are faster.
        gc.disable()
        try:
            import tensorflow  # noqa: F401
        finally:
            gc.enable()
            gc.freeze()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written.read().decode(errors="replace").splitlines():
                if not re.match(r"I\d{4} |WARNING: All log messages before absl::Init", line):
                    print(line, file=sys.stderr)


def configure_tensorflow(threads: int) -> None:
    """Make every later operation deterministic, and run up to `threads` operations at a time.

    Each operation runs in one thread. An operation in several threads would add numbers in an order
    that depends on the number of threads. Instead, `parallel.DataParallel` runs several operations
    at the same time. Call this function before any other use of TensorFlow.

    Raises StageError if TensorFlow was loaded before the environment variables that it reads were
    set.
    """
    changed = [name for name, value in environment.PINS.items() if os.environ.get(name) != value]
    if changed or environment.TENSORFLOW_LOADED_BEFORE_PINS:
        raise StageError(
            "TensorFlow was loaded with other settings than this project's; run `import stages` "
            "before `import tensorflow`"
            + (f" and do not change {', '.join(changed)}" if changed else "")
        )
    import keras
    import tensorflow as tf

    # A user's own keras.json and environment may hold other values.
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    # Grappler would rewrite x / sqrt(y) as x * rsqrt(y). Processors approximate rsqrt in hardware,
    # and the approximation differs between vendors. Grappler also costs a second at start-up
    # without a speed-up.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
