"""Find the recorded content of a file or folder by its hash: in git, DVC's cache or a remote."""

import hashlib
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc_verify import VerifyError
from dvc_verify.git import ask_git, run_git
from dvc_verify.lockfile import Recorded, compute_md5, match

POINTER = b"version https://git-lfs.github.com/spec/"


class Contents:
    """What the user's project has: its workspace, and DVC's cache and remotes.

    Remotes on other machines are asked only with `network`. What they have is put in `folder`.
    """

    def __init__(self, workspace: Path, network: bool, folder: Path) -> None:
        """Open the caches and remotes of the project in the folder `workspace`."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        self.places, self.folder = [workspace], folder  # projects with content, and a folder for it
        self.stores: list[Any] = []
        self.skipped: list[str] = []  # remotes that were not asked
        if not (workspace / ".dvc").is_dir():
            return
        with suppress(DvcException, OSError):
            repo = Repo(str(workspace), config={"core": {"no_scm": True}})
            self.stores += [repo.cache.local, repo.cache.legacy]
            for name, settings in repo.config["remote"].items():
                if "://" in settings.get("url", "") and not network:
                    self.skipped.append(name)
                    continue
                with suppress(Exception):  # a remote may need a package that is not installed
                    remote = repo.cloud.get_remote(name)
                    self.stores += [remote.odb, remote.legacy_odb]

    def has(self, md5: str) -> bool:
        """Return whether the cache or a remote has a file, or a folder with all its files."""
        for store in self.stores:
            with suppress(Exception):  # a remote that does not answer
                if store.fs.exists(store.oid_to_path(md5)):
                    return all(self.has(each) for each in self._list_folder(md5).values())
        return False

    def find(self, path: str, recorded: Recorded, committed: Path) -> Path | None:
        """Return where the recorded file or folder is, or None.

        It is in `committed`, a checkout of the commit; in the workspace; or it is brought from the
        cache or a remote to `folder`.
        """
        for project in (committed, *self.places):
            if match(project, project / path, recorded):
                return project / path
        place = self.folder / recorded.md5
        if place.exists() or not recorded.md5:
            return place if recorded.md5 else None
        for name, md5 in self._list_folder(recorded.md5).items():
            if not self._fetch(md5, place / name):
                shutil.rmtree(place, ignore_errors=True)
                return None
        return place if place.exists() or self._fetch(recorded.md5, place) else None

    def _list_folder(self, md5: str) -> dict[str, str]:
        """Return the MD5 of each file in a recorded folder by its path there; {} for a file."""
        listing = self.folder / "folders" / md5
        if not md5.endswith(".dir") or not (listing.exists() or self._fetch(md5, listing)):
            return {}
        entries = json.loads(listing.read_text(encoding="utf-8"))
        return {entry["relpath"]: entry["md5"] for entry in entries}

    def _fetch(self, md5: str, target: Path) -> bool:
        """Bring an object from the cache or a remote to `target`. Return whether that worked."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for store in self.stores:
            with suppress(Exception):  # a remote that does not answer
                store.fs.get_file(store.oid_to_path(md5), str(target))
                if compute_md5(target) == md5.removesuffix(".dir"):
                    return True
            target.unlink(missing_ok=True)
        return False

    def restore(self, path: str, recorded: Recorded, project: Path) -> bool:
        """Put the recorded file or folder into a checkout of the project, if it can be found."""
        source, target = self.find(path, recorded, project), project / path
        if source is None or source == target:
            return source is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return True


def restore_submodules(clone: Path, workspace: Path) -> list[str]:
    """Check out the submodules of a clone from those in the user's repository.

    Returns the paths of those that the user does not have.
    """
    missing = []
    for line in ask_git("ls-tree", "-r", "HEAD", cwd=clone).splitlines():
        if not (found := re.match(r"160000 commit (\w+)\t(.*)", line)):
            continue
        commit, path = found.groups()
        try:
            if not (workspace / path / ".git").exists():
                raise VerifyError(f"{path} is not checked out")
            source = str(workspace / path)
            run_git("clone", "--quiet", "--no-checkout", source, str(clone / path))
            run_git("checkout", "--quiet", commit, cwd=clone / path)
        except VerifyError:
            missing.append(path)
    return missing


def restore_pointers(clone: Path, workspace: Path) -> list[str]:
    """Replace Git LFS pointers in a clone by the user's files, if those have the right SHA-256.

    Returns the paths of the other pointers.
    """
    missing = []
    listed = ask_git("grep", "-l", "-z", "-I", "-e", f"^{POINTER.decode()}", "HEAD", cwd=clone)
    for name in filter(None, listed.split("\0")):
        path = name.removeprefix("HEAD:")
        content = (clone / path).read_bytes() if (clone / path).is_file() else b""
        expected = re.search(rb"^oid sha256:(\w+)$", content, re.M)
        if not content.startswith(POINTER) or not expected:
            continue
        theirs = workspace / path
        if theirs.is_file():
            with theirs.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest().encode() == expected[1]:
                    shutil.copyfile(theirs, clone / path)
                    continue
        missing.append(path)
    return missing
