"""The environment of this process and of every program that it starts.

Importing this module sets variables that make results independent of the processor: NumPy and
OpenBLAS choose a kernel for the processor that they find, and different kernels round differently.
TensorFlow's do not, as `stages/model/arithmetic.py` uses them. It also removes variables that other
programs left. Stages, tools and tests import this module first, so git, DVC, npm and Python get the
same environment. `stages/__init__.py` imports it before NumPy and TensorFlow, because they read
these variables only once, when they are loaded.
"""

import ctypes
import getpass
import os
import platform
import signal
import sys

PINS = {
    "KERAS_BACKEND": "tensorflow",
    # A notebook sets a backend of its own, which is not installed here.
    "MPLBACKEND": "agg",
    # Python 3.13 colours tracebacks, and stages/core/terminal.py would show the codes as text.
    "PYTHON_COLORS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors and warnings only
    # On arm64, oneDNN's kernels depend on the processor; TensorFlow's own do not.
    "TF_ENABLE_ONEDNN_OPTS": "1" if platform.machine() in ("x86_64", "AMD64") else "0",
}
if platform.machine() in ("x86_64", "AMD64"):
    PINS |= {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    }

LEFTOVERS = (
    # git sets these for its hooks (githooks(5); `git rev-parse --local-env-vars` lists them). Under
    # them, git in a temporary clone would change the user's repository and index instead.
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_CONFIG_COUNT"),
    *("GIT_CONFIG_PARAMETERS", "GIT_DIR", "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE"),
    *("GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_NO_REPLACE_OBJECTS"),
    *("GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE"),
    *("GIT_SHALLOW_FILE", "GIT_WORK_TREE"),
    # These change what git prints, or how it reads paths and makes repositories.
    *("GIT_DEFAULT_HASH", "GIT_DIFF_OPTS", "GIT_EXTERNAL_DIFF", "GIT_GLOB_PATHSPECS"),
    *("GIT_ICASE_PATHSPECS", "GIT_LITERAL_PATHSPECS", "GIT_NAMESPACE", "GIT_NOGLOB_PATHSPECS"),
    "GIT_TEMPLATE_DIR",
    # An IDE, ROS or a module system sets these for another Python. PYTHONSAFEPATH hides `stages`.
    *("PYTHONHOME", "PYTHONINSPECT", "PYTHONIOENCODING", "PYTHONOPTIMIZE", "PYTHONPATH"),
    *("PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONWARNINGS"),
    # NumPy refuses this one beside NPY_DISABLE_CPU_FEATURES.
    "NPY_ENABLE_CPU_FEATURES",
    # DVC runs commands with $SHELL, which can be nologin or read start-up files. Without it, DVC
    # uses /bin/sh.
    *("BASH_ENV", "ENV", "SHELL"),
)

# `configure_tensorflow` raises an error if TensorFlow was loaded before these variables were set.
TENSORFLOW_LOADED_BEFORE_PINS = "tensorflow" in sys.modules
REMOVED = {name: os.environ.pop(name) for name in LEFTOVERS if name in os.environ}
os.environ.update(PINS)

try:
    getpass.getuser()
except (KeyError, OSError, ImportError):  # a container may run under a number without a name
    os.environ["LOGNAME"] = "user"  # DVC needs one

if sys.platform == "linux" and "DVC_STAGE" in os.environ:
    # If DVC is killed with SIGKILL, its stage keeps running and would write to the same files as
    # the next run. PR_SET_PDEATHSIG (1) kills this process when its parent ends. `exec` in dvc.yaml
    # makes DVC the parent, with no shell in between.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
