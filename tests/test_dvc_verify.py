"""`dvc-verify` on projects that have nothing to do with this one."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers import six_projects
from helpers.six_projects import commit, run, start, write

from dvc_verify.compare import compare_outputs
from dvc_verify.contents import find_programs
from dvc_verify.project import read_project
from dvc_verify.run import choose_offset
from dvc_verify.stale import find_stale

ROOT = Path(__file__).parents[1]
RANDOM, REPEATS = "not deterministic", "repeats here but not as recorded"


def verify(folder, *arguments):
    """Run the command. Return its exit code, what it printed, and its report, if there is one."""
    report = folder / "reports/verify.json"
    report.unlink(missing_ok=True)
    ended = subprocess.run(
        [sys.executable, "-m", "dvc_verify", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    found = json.loads(report.read_text()) if report.exists() else None
    return ended.returncode, ended.stdout + ended.stderr, found


# name, variant: the verdict, the exit code, the verdict of stages, and what notes say
SAME, ENDS, NOT_RUN = "identical", "identical after line ends", "not run"
PROJECTS = [
    ("exact", "", SAME, 0, {"make": SAME, "score": SAME, "retired": NOT_RUN},
     ["stale: only dvc.lock has this stage"]),
    ("exact", "fails", "partly checked", 2,
     {"split": SAME, "train": NOT_RUN, "score": NOT_RUN, "retired": NOT_RUN},
     ["No module named 'not_there'", "score: its input from train is missing"]),
    ("windows", "", ENDS, 0, {"pipeline/dvc.yaml:texts": ENDS},
     ["recorded with other line ends, as on Windows: out/texts, out/table.csv"]),
    ("windows", "changed", "different", 1,
     {"pipeline/dvc.yaml:texts": REPEATS, "pipeline/dvc.yaml:summary": ENDS},
     ["texts: out/table.csv differs", "line ends, as on Windows: out/texts\n"]),
    ("versions", "", "different", 1,
     {"train@scaler": REPEATS, "train@forest": REPEATS, "score": "equivalent"},
     ["the recorded file but for the version of scikit-learn in it, 1.5.2 instead of",
      "forest.pkl differs: the recorded content is neither in git nor in DVC's cache",
      "scores.json differs: mean differs by at most",
      "plot.png differs: the same pixels, other metadata", "| 1.5.2 (pinned) |"]),
    ("random", "", "different", 1,
     {**dict.fromkeys(("make@1", "fit@1", "evaluate@1"), SAME),
      **dict.fromkeys(("make@0", "fit@0", "evaluate@0"), RANDOM)},
     ["two runs here differ: no seed?", "evaluate@0: its inputs differ, from make@0 on"]),
    ("environment", "", "different", 1, dict.fromkeys(("words", "stamp", "place"), RANDOM),
     ["words.txt differs: lines differs in ",
      "the same entries in another order: the order of a set or of files (hash seed)?",
      "stamped differs: the same contents under other names",
      "the name of a file holds the time", "stamp.json differs: made differs",
      "it holds the time", "it holds the path of the project",
      "table.csv.gz differs: the same content; the header of the gzip file holds the time"]),
    ("cannot_run", "", "partly checked", 2,
     {**dict.fromkeys(("old/dvc.yaml:count", "hidden", "download", "frozen"), NOT_RUN),
      "always": SAME, "use": SAME},
     ["old/dvc.lock: it has the first schema, which DVC no longer reads",
      "behind.csv is only behind behind.csv.dvc",
      "download: it needs the network, which was cut off; --network allows it",
      "frozen: it is frozen in dvc.yaml"]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.parametrize(("name", "variant", "verdict", "expected", "stages", "notes"), PROJECTS)
def test_report_of_a_project(tmp_path, name, variant, verdict, expected, stages, notes):
    folder = tmp_path / "project"
    getattr(six_projects, f"make_{name}")(folder, **({variant: True} if variant else {}))
    code, printed, report = verify(folder)
    found = {each["stage"]: each["verdict"] for each in report["stages"]}
    assert (report["verdict"], code, found) == (verdict, expected, found | stages), printed
    assert [note for note in notes if note not in printed] == []


# Every construct that public projects use, in one graph.
CONSTRUCTS = {
    "dvc.yaml": """
vars: [{name: hello}, extra.yaml]
stages:
  bare: {cmd: 'true'}
  only-outs: {cmd: echo 1 > only.txt, outs: [only.txt]}
  listed:
    cmd: [echo 1 > first.txt, "cat first.txt | tr 1 2 > second.txt && echo ok"]
    outs: [first.txt, second.txt]
  each:
    foreach: {a: {x: 1}, b: {x: 2}}
    do: {cmd: "echo ${item.x} > ${key}.txt", outs: ["${key}.txt"]}
  grid:
    matrix: {m: [1, 2], n: [{k: x}]}
    cmd: echo ${item.m}${item.n.k} ${name} ${other} > ${item.m}.grid
    outs: ["${item.m}.grid"]
  placed: {cmd: cat ../only.txt > here.txt, wdir: sub, deps: [../only.txt], outs: [here.txt]}
  kinds:
    cmd: 'true'
    params: [a, nested.b, {p.toml: [t]}, {p.json: [j]}, {p.py: [K.v]}, {whole.yaml: null}]
  always: {cmd: echo x > always.txt, always_changed: true, outs: [always.txt]}
  kept: {cmd: echo y >> kept.txt, outs: [kept.txt: {persist: true, cache: false}]}
  measured:
    cmd: echo '{"m":1}' > m.json; printf 'a,b\\n1,2\\n' > 'p q.csv'
    metrics: [m.json: {cache: false}]
    plots: ["p q.csv": {x: a, y: b}]
  folder: {cmd: mkdir -p out && echo 1 > out/1 && echo 2 > out/2, outs: [out]}
  frozen: {cmd: echo 1 > frozen.txt, frozen: true, outs: [frozen.txt]}
  later: {cmd: wc -l out/1 frozen.txt > later.txt, deps: [out, frozen.txt], outs: [later.txt]}
metrics: [m.json]
plots: [p q.csv: {x: a}]
artifacts: {model: {path: only.txt}}
""",
    "extra.yaml": "other: 5\n",
    "params.yaml": "a: 1\nnested: {b: [1, {c: 2}]}\n",
    "p.toml": "t = 1.5\n",
    "p.json": '{"j": null}',
    "p.py": "class K:\n    v = (1, 2)\n",
    "whole.yaml": "w: 1\n",
    "sub/.gitkeep": "",
    "more/dvc.yaml": """
stages:
  other: {cmd: cat ../only.txt > o.txt, deps: [../only.txt], outs: [o.txt]}
""",
    "plots only/dvc.yaml": "plots: [{x.csv: {x: a}}]\n",
    "empty/dvc.yaml": "stages:\n",
}


@pytest.mark.slow
@pytest.mark.linux
def test_every_construct_of_dvc(tmp_path):
    folder = tmp_path / "a project"
    start(folder, CONSTRUCTS | {"empty/dvc.yaml": "stages: {}\n"})
    text = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text.replace("frozen: true, ", ""))
    run(folder, "dvc", "repro", "-q", "--all-pipelines")
    (folder / "dvc.yaml").write_text(text)
    commit(folder)
    assert verify(folder, "lock")[:2] == (0, "dvc.lock belongs to this commit\n")
    write(folder, {"empty/dvc.yaml": "stages:\n", "p.py": "class K:\n    v = (1, 3)\n"})
    write(folder, {"whole.yaml": "w: 1\nx: 2\n"})
    commit(folder)
    code, printed, _ = verify(folder, "lock")
    assert code == 1
    assert "K.v is [1, 3] in p.py and [1, 2] in dvc.lock" in printed
    assert "only dvc.yaml lists x in whole.yaml in params of kinds" in printed
    assert "DVC cannot read empty/dvc.yaml" in printed
    code, printed, report = verify(folder)
    found = {each["stage"]: each["verdict"] for each in report["stages"]}
    wrong = {name: verdict for name, verdict in found.items() if verdict != "identical"}
    assert wrong == {"kinds": "different", "frozen": "not run"}, printed
    assert found.keys() >= {"each@a", "grid@1-n0", "more/dvc.yaml:other", "placed", "later"}


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: None, "this folder is not a git repository"),
        (lambda folder: run(folder, "git", "init", "-q"), "has no commit yet"),
        (lambda folder: start(folder, {"a": ""}) or commit(folder), "does not have dvc.yaml"),
        (
            lambda folder: start(folder, {"dvc.yaml": "plots: [a.csv]\n"}) or commit(folder),
            "no dvc.yaml in the last commit has stages",
        ),
        (
            lambda folder: start(folder, {"dvc.yaml": "stages:\n"}) or commit(folder),
            "DVC cannot read dvc.yaml",
        ),
    ],
)
def test_what_is_no_project_is_one_line(tmp_path, prepare, said):
    prepare(tmp_path)
    for action in ("lock", "run"):
        code, printed, _ = verify(tmp_path, action)
        assert (code, printed.count("\n")) == (2, 1)
        assert said in printed


def test_what_cannot_be_had_is_one_line_each(tmp_path):
    start(tmp_path / "other", {"x": "1"})
    commit(tmp_path / "other")
    folder = tmp_path / "project"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 12\n"
    graph = "stages:\n  a: {cmd: mkdir a && cat sub/x big.bin > a/a, deps: [big.bin], outs: [a]}\n"
    start(folder, {"dvc.yaml": graph, "big.bin": pointer})
    allow = ("-c", "protocol.file.allow=always")
    run(folder, "git", *allow, "submodule", "--quiet", "add", "../other", "sub")
    run(folder, "dvc", "repro", "-q")
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    run(folder, "dvc", "push", "-q")
    commit(folder)
    shutil.rmtree(folder / ".dvc/cache")
    assert verify(folder, "lock", "--outputs")[0] == 0
    shutil.rmtree(tmp_path / "store")
    code, printed, _ = verify(folder, "lock", "--outputs")
    assert (code, printed.splitlines()[0]) == (
        1,
        "a is neither in DVC's cache nor in a remote: dvc push",
    )
    shutil.rmtree(folder / "sub")
    code, printed, report = verify(folder)
    assert (code, report["stages"][0]["verdict"]) == (2, "not run"), printed
    assert report["notes"][:2] == [
        "the submodule sub is not here: git submodule update --init",
        "big.bin is only a Git LFS pointer here: git lfs pull",
    ]


def test_every_field_of_the_clock_moves():
    now = datetime(2026, 11, 30, 23, 58, 40, tzinfo=UTC)
    for recorded in (now - timedelta(minutes=1), now - timedelta(days=400, hours=4)):
        moved = now + choose_offset(now, recorded)
        for name in ("year", "month", "day", "hour", "minute", "second"):
            assert getattr(moved, name) not in (getattr(now, name), getattr(recorded, name))
        assert moved.weekday() not in (now.weekday(), recorded.weekday())


CLOCK = "import time; print(time.gmtime().tm_mon, file=open('a.txt', 'w'))"
CORES = "import os; print(os.cpu_count(), len(os.sched_getaffinity(0)), file=open('b.txt', 'w'))"
HOST = "import socket; print(socket.gethostname(), file=open('c.txt', 'w'))"


@pytest.mark.slow
@pytest.mark.linux
def test_perturb_finds_what_a_stage_reads(tmp_path):
    stages = {"a": CLOCK, "b": CORES, "c": HOST}
    lines = [f"  {n}: {{cmd: python {n}.py, outs: [{n}.txt]}}" for n in stages]
    graph = "\n".join(["stages:", *lines, ""])
    start(tmp_path, {"dvc.yaml": graph, **{f"{n}.py": text for n, text in stages.items()}})
    run(tmp_path, "dvc", "repro", "-q")
    commit(tmp_path)
    code, printed, report = verify(tmp_path, "--perturb")
    assert code == 1
    assert {each["verdict"] for each in report["stages"]} == {RANDOM}, printed
    assert report["stages"][0]["notes"][-1] == "it changes with: clock"


@pytest.mark.parametrize(
    ("name", "old", "new", "equivalent", "note"),
    [
        ("a.json", '{"x": [1, 2.5]}', '{"x": [1, 2.5000000000001]}', True, "x.1 differs by"),
        ("a.json", '{"x": 1}', '{"x": 1.1}', False, "x differs by at most 0.1, 0.091 of"),
        ("a.json", '{"x": 1}', '{"y": 1}', False, "y is new"),
        ("a.json", '{"x": "a"}', '{"x": "b"}', False, "x is b instead of a"),
        ("a.csv", "a,b\n1,x\n", "a,b\n1.0000000000001,x\n", True, "a differs by"),
        ("a.csv", "a,b\n1,x\n2,y\n", "a,b\n1,x\n", False, "has the shape (1,) instead of (2,)"),
        ("a.txt", "one\ntwo\n", "two\none\n", False, "lines differs in 2 of 2 entries"),
    ],
)
def test_values_are_compared(tmp_path, name, old, new, equivalent, note):
    for side, text in (("old", old), ("new", new)):
        write(tmp_path / side, {name: text})
    found = compare_outputs(tmp_path / "old" / name, tmp_path / "new" / name, {})
    assert (found.equivalent, note in found.notes[0]) == (equivalent, True), found


def test_programs_of_a_command():
    command = "exec python -m a && FOO=1 wget -q x | tee y; cd z && ./run.sh 'b c'\nRscript x.R"
    assert find_programs(command) == ["python", "wget", "tee", "cd", "./run.sh", "Rscript"]


def test_project_without_a_dvc_folder_in_git(tmp_path):
    write(tmp_path, {"dvc.yaml": "stages:\n  a: {cmd: 'true', deps: [x]}\n", "x": "1"})
    assert find_stale(read_project(tmp_path)) == {"a": ["only dvc.yaml has the stage a"]}
