"""Check whether a DVC project reproduces its dvc.lock."""


class VerifyError(OSError):
    """git, DVC or a file keeps the check from being made. Users read its message, one line."""
