"""The five stages that DVC runs, and the modules they share.

Floating-point libraries choose their kernels by the processor they find, and two kernels round
differently. Python imports this file before any other module of the package, and so before NumPy
and TensorFlow, which read these variables once, when they are loaded.
"""

import ctypes
import os
import platform
import signal
import sys

PINS = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors, not notices about the choices below
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
if platform.machine() in ("x86_64", "AMD64"):
    PINS |= {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    }

if "tensorflow" in sys.modules:
    raise ImportError("import stages before tensorflow: it pins what tensorflow reads when loaded")
os.environ.update(PINS)

if sys.platform == "linux" and "DVC_STAGE" in os.environ:
    # DVC killed outright cannot stop its stage, which would go on to write beside the next run's.
    # PR_SET_PDEATHSIG: this process is killed when its parent ends. `exec` in dvc.yaml makes that
    # DVC, not a shell in between.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
