"""What a person or a CI job runs around the pipeline."""

import stages  # noqa: F401  # first of all: it sets what NumPy and TensorFlow read when loaded
