"""Run a stage and print what it really used: `python -m tests.helpers.spy -m stages.train`.

It watches every file that Python opens, every module that is loaded and every section of
params.yaml that is read, so it also finds what a reader of the code would miss.
"""

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

ROOT = Path.cwd()
READS: Counter[str] = Counter()
WRITES: set[str] = set()


def watch_files(event, arguments):
    """Count each file of the project that is opened; a hook for sys.addaudithook."""
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = Path(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100  # resolves no link
    writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if path.is_relative_to(ROOT) and (writes or path.is_file()):
        name = path.relative_to(ROOT).as_posix().removesuffix(".part")
        if writes:
            WRITES.add(name)
        else:
            READS[name] += 1


def watch_sections(section_class):
    """Return a list. When a section of params.yaml is read later, its name is added to the list."""
    names = []
    read = section_class.read.__func__

    def watched_read(section, *arguments):
        names.append(section.section)
        return read(section, *arguments)

    section_class.read = classmethod(watched_read)
    return names


def list_loaded_modules():
    """Return the files of the project's loaded modules, and the file that pins its libraries."""
    paths = {Path(getattr(module, "__file__", None) or "/") for module in sys.modules.values()}
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.is_relative_to(ROOT) and path.suffix == ".py"
    }
    if any("site-packages" in path.parts for path in paths):
        modules.add("requirements.txt")
    return modules


def main(stage):
    sys.dont_write_bytecode = True
    from stages.core.settings import Section

    sections = watch_sections(Section)
    sys.addaudithook(watch_files)
    sys.argv = [stage]
    runpy.run_module(stage, run_name="__main__", alter_sys=True)

    modules = list_loaded_modules() | {stage.replace(".", "/") + ".py"}
    # A stage that reads params.yaml without a Section could use keys of any section.
    other_reads = READS.pop("params.yaml", 0) > len(sections)
    READS.pop("dvc.yaml", 0)  # train looks up its own deps, which DVC compares
    files = {
        name
        for name in modules | set(READS)
        if not name.startswith("tests/") and not name.endswith(".pyc")
    }
    used = {
        "deps": sorted(files - WRITES),
        "outputs": sorted(WRITES),
        "params": sorted({*sections}) + (["params.yaml, not by a section"] if other_reads else []),
    }
    print(f"USED BY {stage}: {json.dumps(used)}")


if __name__ == "__main__":
    main(sys.argv[2])
