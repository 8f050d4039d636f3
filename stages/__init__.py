"""A complete MNIST pipeline: the five scripts in this folder are the stages that DVC runs.

What they share is in `core` (used by every stage), `sources` (where raw data comes from), `model`
(the network and its training) and `cluster` (training on several workers).
"""

import stages.core.environment  # noqa: F401  # first: it sets variables that NumPy and TensorFlow read
