"""The former place of dvc_verify.lockfile, for tools.predict until it imports that."""

from dvc_verify.lockfile import compute_md5, list_files, read_lock

__all__ = ["compute_md5", "list_files", "read_lock"]
