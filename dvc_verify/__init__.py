"""Check whether a DVC project reproduces its dvc.lock."""


class VerifyError(Exception):
    """The check cannot be made. The message is the one line that the user reads."""
