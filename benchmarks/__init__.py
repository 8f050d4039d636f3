"""The command `python -m benchmarks`: measure accuracy over seeds, speed and memory."""
