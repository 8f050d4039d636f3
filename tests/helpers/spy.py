"""Run a stage and print, as JSON, what it really used: `python tests/helpers/spy.py stages.train`.

It watches every file that Python opens, every module loaded and every section of params.yaml that
is read, so it also finds what reading the code would not.
"""

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

ROOT = Path.cwd()
opened = {"reads": Counter(), "writes": Counter()}


def watch_files(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = Path(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100  # links stay links
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if path.is_relative_to(ROOT) and (writes or path.is_file()):
            name = path.relative_to(ROOT).as_posix().removesuffix(".part")
            opened["writes" if writes else "reads"][name] += 1


def main(stage):
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    from stages.core.settings import Section

    declared = set()
    read, check = Section.read.__func__, Section.check.__func__
    sections_read = []

    def watched_read(section, *arguments):
        sections_read.append(section.section)
        return read(section, *arguments)

    def watched_check(section, *arguments):
        declared.update(f"{section.section}.{name}" for name in section.model_fields)
        return check(section, *arguments)

    Section.read = classmethod(watched_read)
    Section.check = classmethod(watched_check)
    sys.addaudithook(watch_files)
    runpy.run_module(stage, run_name="__main__", alter_sys=True)

    modules = {stage.replace(".", "/") + ".py"}
    for module in list(sys.modules.values()):
        file = Path(getattr(module, "__file__", None) or "/")
        if file.is_relative_to(ROOT) and file.suffix == ".py" and "tests" not in file.parts:
            modules.add(file.relative_to(ROOT).as_posix())
    # Every look into params.yaml must go through a section, or its keys would not be declared.
    beside = opened["reads"].pop("params.yaml") - len(sections_read)
    data = {name for name in opened["reads"] if not name.endswith((".py", ".pyc"))}
    print(
        "USED",
        json.dumps(
            {
                "deps": sorted({*modules, *data, "requirements.txt"} - set(opened["writes"])),
                "outputs": sorted(opened["writes"]),
                "params": sorted(declared) + ["params.yaml, past its section"] * beside,
            }
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1])
