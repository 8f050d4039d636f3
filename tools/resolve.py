"""After a merge with conflicts, resolve the files that stages wrote, and name all other conflicts.

dvc.lock keeps what one side has changed, and loses each stage that both have changed: `make
resolve` then runs these stages, or takes their results from DVC's cache. Of the other files that
stages wrote, one side stays until the stages write them again. Files that you have edited until
they had no mark of git are added to the commit.

Imports nothing of the project, because its code can have conflicts, too.

    python tools/resolve.py
    python tools/resolve.py --driver BASE OURS THEIRS PATH    # as git's merge driver
"""

import io
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

LOCK = "dvc.lock"
WRITTEN = (LOCK, "fingerprint.json", "docs/model-card.md")  # and all in data


def run_git(*arguments: str) -> str:
    """Return what git prints. Ends with git's own error if it fails."""
    done = subprocess.run(["git", *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"error: git {arguments[0]} failed (see above)")
    return done.stdout.decode("utf-8", "surrogateescape")


def list_conflicts() -> dict[str, set[str]]:
    """Return the files in conflict, and which versions of each exist: 1 base, 2 ours, 3 theirs."""
    found = defaultdict(set)
    for entry in filter(None, run_git("ls-files", "--unmerged", "-z").split("\0")):
        version, path = entry.split(" ", 2)[2].split("\t", 1)
        found[path].add(version)
    return found


def merge_locks(base: str, ours: str, theirs: str) -> str:
    """Return a dvc.lock without the stages that both sides have changed in different ways."""
    yaml = YAML()
    yaml.default_flow_style = False  # as DVC writes it
    locks = [yaml.load(text) or {} for text in (base, ours, theirs)]
    old, here, there = (lock.get("stages") or {} for lock in locks)
    merged: dict[str, Any] = {}
    for name in here | there:
        versions = [stages.get(name) for stages in (old, here, there)]
        if versions[1] == versions[2] or versions[0] == versions[2]:
            chosen = versions[1]
        else:
            chosen = versions[2] if versions[0] == versions[1] else None
        if chosen is not None:
            merged[name] = chosen
    stream = io.StringIO()
    yaml.dump({"schema": "2.0", "stages": merged}, stream)
    return stream.getvalue()


def resolve(path: str, versions: set[str]) -> bool:
    """Resolve the conflict in a file if that is possible, and return whether it was."""
    if path == LOCK:
        texts = [run_git("show", f":{i}:./{path}") if i in versions else "" for i in "123"]
        Path(path).write_text(merge_locks(*texts), encoding="utf-8")
    elif path in WRITTEN or path.startswith("data/"):
        run_git("checkout", "--ours" if "2" in versions else "--theirs", "--", path)
    elif not versions >= {"2", "3"} or b"\n<<<<<<< " in b"\n" + Path(path).read_bytes():
        return False
    run_git("add", "--", path)
    return True


def main() -> None:
    """Resolve what is possible. Exits with status 1 if conflicts remain."""
    if sys.argv[1:2] == ["--driver"]:
        base, ours, theirs, path = sys.argv[2:]
        if Path(path).name == LOCK:
            texts = [Path(file).read_text(encoding="utf-8") for file in (base, ours, theirs)]
            Path(ours).write_text(merge_locks(*texts), encoding="utf-8")
        return
    left = [path for path, versions in list_conflicts().items() if not resolve(path, versions)]
    if left:
        sys.exit(
            f"error: these conflicts are yours: {', '.join(left)}. Edit each file and run "
            "`git add` on it, or delete it with `git rm`. Then run `make resolve` again"
        )


if __name__ == "__main__":
    main()
