"""Check that clones get the custom dataset."""

from pathlib import Path

from dvc_verify.git import ask_git
from stages.core.errors import StageError
from stages.download import DownloadParameters
from stages.sources.folder import expand
from stages.sources.parts import is_visible

TRACK = "add it with `git add`, or with `dvc add` if it is large, and commit"


def find_dvc_file(folder: Path) -> Path | None:
    """Return the .dvc file that tracks a folder of the project or one above it, if there is one."""
    for place in (folder, *folder.parents):
        if place.name and (found := place.with_name(f"{place.name}.dvc")).is_file():
            return found
    return None


def check_dataset(parameters: DownloadParameters) -> None:
    """Raise StageError unless every clone of the last commit finds the custom dataset.

    Nothing is checked if the dataset lies outside the project or is not a custom one.
    """
    if parameters.dataset != "custom" or parameters.folder is None:
        return
    folder = expand(parameters.folder)
    named = f"download.folder is {parameters.folder!r}"
    if folder.is_absolute():
        return  # the same in every clone on this machine
    if ".." in folder.parts:
        raise StageError(
            f"{named}, which a clone in another place does not find; use an absolute path, or a "
            "folder of the project"
        )
    if dvc_file := find_dvc_file(folder):
        if not ask_git("ls-files", "--", str(dvc_file)):
            raise StageError(f"{named}, and git does not have {dvc_file}; add it and commit")
        return
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
