"""Commands around the pipeline: each name in this folder is one, as in `python -m tools.doctor`."""

import stages  # noqa: F401  # first: it sets variables that NumPy and TensorFlow read when loaded
