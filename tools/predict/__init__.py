"""The command `python -m tools.predict`: classify image files with the trained model."""
