"""Commands around the pipeline: each name in this folder is one, as in `python -m tools.doctor`."""

import os

import stages  # noqa: F401  # first: it sets variables that NumPy and TensorFlow read when loaded

# git sets these for its hooks. Under them, git commands in a temporary clone would change the
# user's repository and index instead of the clone.
for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"):
    os.environ.pop(name, None)
