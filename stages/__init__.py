"""The five stages that DVC runs, and the modules they share.

Floating-point libraries choose their kernels by the processor they find, and two kernels round
differently. Python imports this file before any other module of the package, and so before NumPy
and TensorFlow, which read these variables once, when they are loaded.
"""

import os
import sys

PINS = {
    # oneDNN's convolutions and matrix products, and AVX2 ones on every processor.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # TensorFlow's notices about those choices, not its errors
}

os.environ.update(PINS)

if "tensorflow" in sys.modules:
    raise ImportError("import stages before tensorflow: it pins what tensorflow reads when loaded")
