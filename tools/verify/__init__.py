"""The command `python -m tools.verify`: reproduce a commit in a fresh clone and compare."""
