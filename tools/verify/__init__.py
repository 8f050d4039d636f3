"""The former place of dvc_verify; see lockfile.py."""
