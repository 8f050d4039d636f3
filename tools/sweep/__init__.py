"""The command `python -m tools.sweep`: run a grid of experiments in parallel and compare them."""
