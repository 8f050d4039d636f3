"""The command `python -m tools.compare`: compare the results of two revisions."""
