"""The command `python -m tools.benchmark`: measure accuracy over seeds, speed and memory."""
