"""Environment variables that make results independent of the processor.

Floating-point libraries choose a kernel for the processor that they find, and different kernels
round differently. `stages/__init__.py` imports this module first, because NumPy and TensorFlow read
these variables only once, when they are loaded.
"""

import ctypes
import os
import platform
import signal
import sys

PINS = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors and warnings only
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
if platform.machine() in ("x86_64", "AMD64"):
    PINS |= {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    }

# `configure_tensorflow` raises an error if TensorFlow was loaded before these variables were set.
TENSORFLOW_LOADED_BEFORE_PINS = "tensorflow" in sys.modules
os.environ.update(PINS)

if sys.platform == "linux" and "DVC_STAGE" in os.environ:
    # If DVC is killed with SIGKILL, its stage keeps running and would write to the same files as
    # the next run. PR_SET_PDEATHSIG (1) kills this process when its parent ends. `exec` in dvc.yaml
    # makes DVC the parent, with no shell in between.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
