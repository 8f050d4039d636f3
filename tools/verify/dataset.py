"""Check that clones get the custom dataset, and copy to a clone what DVC tracks."""

import shutil
from pathlib import Path

from stages.core.errors import StageError
from stages.core.settings import read_yaml
from stages.download import DownloadParameters
from stages.sources.folder import expand
from stages.sources.parts import is_visible
from tools.verify.lockfile import hash_tree
from tools.verify.repository import ask_git

TRACK = "add it with `git add`, or with `dvc add` if it is large, and commit"


def find_dvc_file(folder: Path) -> Path | None:
    """Return the .dvc file that tracks a folder of the project or one above it, if there is one."""
    for place in (folder, *folder.parents):
        if place.name and (found := place.with_name(f"{place.name}.dvc")).is_file():
            return found
    return None


def check_dataset(parameters: DownloadParameters) -> Path | None:
    """Raise StageError unless every clone of the last commit finds the custom dataset.

    Returns the .dvc file that tracks it, or None if there is nothing to bring into a clone: git
    tracks the dataset, it lies outside the project, or the dataset is not a custom one.
    """
    if parameters.dataset != "custom" or parameters.folder is None:
        return None
    folder = expand(parameters.folder)
    named = f"download.folder is {parameters.folder!r}"
    if folder.is_absolute():
        return None  # the same in every clone on this machine
    if ".." in folder.parts:
        raise StageError(
            f"{named}, which a clone in another place does not find; use an absolute path, or a "
            "folder of the project"
        )
    if dvc_file := find_dvc_file(folder):
        if not ask_git("ls-files", "--", str(dvc_file)):
            raise StageError(f"{named}, and git does not have {dvc_file}; add it and commit")
        return dvc_file
    if not ask_git("ls-files", "--", str(folder)):
        raise StageError(
            f"{named}, which is neither in git nor in DVC, so no clone has it; {TRACK}"
        )
    others = ask_git("ls-files", "--others", "-z", "--", str(folder)).split("\0")
    if others := [path for path in others if path and is_visible(Path(path).name)]:
        raise StageError(
            f"{named}: {len(others)} of its files are not in git, such as {others[0]}, so no clone "
            f"has them; {TRACK}"
        )
    return None


def copy_dataset(dvc_file: Path, clone: Path) -> None:
    """Copy what `dvc_file` tracks from this workspace to `clone`, after checking its MD5.

    Raises StageError if the workspace lacks it, or has it with changes.
    """
    (out,) = read_yaml(dvc_file)["outs"]
    source = dvc_file.parent / out["path"]
    if not source.exists():
        raise StageError(f"{source} is not here; get it: dvc pull {dvc_file}")
    if hash_tree(source) != out["md5"]:
        raise StageError(
            f"{source} differs from {dvc_file}; go back with `dvc checkout {dvc_file}`, or run "
            f"`dvc add {source}` and `make repro`, and commit"
        )
    if not (clone / dvc_file).exists() or read_yaml(clone / dvc_file)["outs"] != [out]:
        raise StageError(f"{dvc_file} has changes; commit them")
    target = clone / source
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)
