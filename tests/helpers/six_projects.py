"""Six small DVC projects as public ones are, with what keeps such projects from reproducing.

Each function fills an empty folder, records dvc.lock with DVC, and commits.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dvc_verify.compare import replace_text
from dvc_verify.lockfile import hash_folder

from .project import AUTHOR


def run(folder, *command, code=0):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == code, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")


def start(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, files)
    run(folder, "git", "init", "-q", "--initial-branch=main")
    run(folder, "dvc", "init", "-q")


def commit(folder, message="change"):
    run(folder, "git", "add", "-A")
    run(folder, "git", *AUTHOR, "commit", "-q", "--allow-empty", "-m", message)


def edit(path, *pairs):
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text, (path, old)
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8", newline="")


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# Nothing is wrong, but dvc.lock still has a stage of the past.

EXACT = {
    "dvc.yaml": """
vars: [settings.toml]
stages:
  make: {cmd: "python code/make.py ${rows}", deps: [code/make.py], outs: [data/all.csv],
         params: [{settings.toml: [seed, rows]}]}
  split: {cmd: python code/split.py, deps: [code/split.py, data/all.csv], outs: [data/parts]}
  train: {cmd: python code/train.py, deps: [code/train.py, data/parts], outs: [model.json]}
  score: {cmd: cat data/parts/test model.json > score.json, deps: [data/parts, model.json],
          metrics: [score.json: {cache: false}]}
""",
    "settings.toml": "seed = 3\nrows = 12\n",
    "code/make.py": """
import random, sys, tomllib
rng = random.Random(tomllib.load(open("settings.toml", "rb"))["seed"])
open("data/all.csv", "w").writelines(f"{rng.random()}\\n" for _ in range(int(sys.argv[1])))
""",
    "code/split.py": """
from pathlib import Path
lines = Path("data/all.csv").read_text().splitlines(keepends=True)
Path("data/parts").mkdir()
Path("data/parts/train").write_text("".join(lines[:8]))
Path("data/parts/test").write_text("".join(lines[8:]))
""",
    "code/train.py": """
import json
values = [float(line) for line in open("data/parts/train")]
json.dump({"mean": sum(values) / len(values)}, open("model.json", "w"))
""",
    "data/.gitignore": "",
}


def make_exact(folder, fails=False):
    """`fails`: the training ends with an error in the committed state."""
    start(folder, EXACT)
    run(folder, "dvc", "repro", "-q")
    with (folder / "dvc.lock").open("a") as lock:
        entry = "  retired:\n    cmd: python old.py\n    outs:\n    - path: old.csv\n"
        lock.write(f"{entry}      hash: md5\n      md5: {'ab' * 16}\n")
    if fails:
        edit(folder / "code/train.py", ("import json", "import not_there, json"))
    commit(folder)


# Recorded on Windows.

WINDOWS = {
    "pipeline/dvc.yaml": """
stages:
  texts: {wdir: ../src, deps: [texts.sh, ../raw.csv], outs: [../out/texts, ../out/table.csv],
          cmd: mkdir -p ../out/texts && cp ../raw.csv ../out/table.csv && sh texts.sh}
  summary: {wdir: ../src, deps: [../out/texts], outs: [../out/summary.json],
            cmd: "tail -qn 1 ../out/texts/* > ../out/summary.json"}
""",
    "raw.csv": "name,value\na,1.5\nb,2.5\n",
    "src/texts.sh": "echo 'a\n1.5' > ../out/texts/a.txt\necho 'b\n2.5' > ../out/texts/b.txt\n",
    "out/.gitignore": "",
}


def make_windows(folder, changed=False):
    """`changed`: the recorded table also has another number."""
    start(folder, WINDOWS)
    run(folder, "dvc", "repro", "-q", "pipeline/dvc.yaml:summary")

    def convert(path):
        return md5((folder / path).read_bytes().replace(b"\n", b"\r\n"))

    texts = [f"out/texts/{name}.txt" for name in "ab"]
    old = hash_folder({Path(path).name: md5((folder / path).read_bytes()) for path in texts})
    new = hash_folder({Path(path).name: convert(path) for path in texts})
    lock = folder / "pipeline/dvc.lock"
    text = lock.read_text().replace(old, new)
    # An entry as DVC 2 wrote it.
    script = md5((folder / "src/texts.sh").read_bytes())
    text, count = re.subn(rf"hash: md5\n +(md5: {script})", r"\1", text)
    assert count == 1
    for path in ("raw.csv", "out/summary.json"):
        text = text.replace(md5((folder / path).read_bytes()), convert(path))
    if changed:  # raw.csv and table.csv have the same content, so only one of them is replaced
        other = md5(b"name,value\r\na,1.5\r\nb,2.75\r\n")
        text = re.sub(
            r"(path: ../out/table.csv\n\s+hash: md5\n\s+md5: )\w+", rf"\g<1>{other}", text
        )
    lock.write_text(text)
    commit(folder)


# Recorded with other versions of libraries.

VERSIONS = {
    "dvc.yaml": """
stages:
  train:
    foreach: [scaler, forest]
    do: {cmd: "python train.py ${item}", deps: [train.py], outs: ["${item}.pkl"]}
  score:
    cmd: python score.py
    deps: [score.py, scaler.pkl, forest.pkl]
    metrics: [scores.json: {cache: false}]
    plots: [plot.png: {cache: false}]
""",
    "requirements.txt": "scikit-learn==1.5.2\n",
    "train.py": """
import pickle, sys
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
made = (StandardScaler if sys.argv[1] == "scaler" else MaxAbsScaler)().fit([[0.1], [0.3]])
pickle.dump(made, open(f"{sys.argv[1]}.pkl", "wb"))
""",
    "score.py": """
import json
from PIL import Image
from PIL.PngImagePlugin import PngInfo
json.dump({"mean": 1 / 3, "spread": 2 / 3}, open("scores.json", "w"))
note = PngInfo()
note.add_text("Software", "version 2")
Image.new("L", (8, 8), 99).save("plot.png", pnginfo=note)
""",
}


def make_versions(folder):
    import sklearn
    from PIL import Image

    start(folder, VERSIONS)
    run(folder, "dvc", "repro", "-q")
    files = {
        name: folder / name for name in ("scaler.pkl", "forest.pkl", "scores.json", "plot.png")
    }
    before = [path.read_bytes() for path in files.values()]
    others = [replace_text(content, sklearn.__version__, "1.5.2") for content in before[:2]]
    others[1] += b" trained otherwise"
    edit(files["scores.json"], (repr(1 / 3), repr((1 + 1e-12) / 3)))
    with Image.open(files["plot.png"]) as image:
        image.save(files["plot.png"])
    others += [files[name].read_bytes() for name in ("scores.json", "plot.png")]
    edit(folder / "dvc.lock", *zip(map(md5, before), map(md5, others), strict=True))
    shutil.rmtree(folder / ".dvc/cache")
    for name in ("scaler.pkl", "forest.pkl"):
        files[name].unlink()
    commit(folder)


# Without a seed in one branch of a matrix.

RANDOM = {
    "dvc.yaml": """
stages:
  make:
    matrix: &seeds {seed: [1, 0]}
    cmd: python make.py ${item.seed} > data${item.seed}.csv
    deps: [make.py]
    outs: ["data${item.seed}.csv"]
  fit:
    matrix: *seeds
    cmd: python make.py ${item.seed} > forest${item.seed}.txt
    deps: [make.py, "data${item.seed}.csv"]
    outs: ["forest${item.seed}.txt"]
  evaluate:
    matrix: *seeds
    cmd: cat data${item.seed}.csv forest${item.seed}.txt > f1_${item.seed}.json
    deps: ["data${item.seed}.csv", "forest${item.seed}.txt"]
    metrics: ["f1_${item.seed}.json": {cache: false}]
""",
    "make.py": """
import random, sys
print("epoch,hash", f"1,{random.Random(int(sys.argv[1]) or None).random()}", sep="\\n")
""",
    "pyproject.toml": '[tool.dvc-verify]\ntrace = "data0.csv"\n',
}


def make_random(folder):
    start(folder, RANDOM)
    run(folder, "dvc", "repro", "-q")
    commit(folder)


# What the surroundings write into outputs.

ENVIRONMENT = {
    "dvc.yaml": """
stages:
  words:
    cmd: [python words.py, cat words.txt | sort > sorted.txt]
    deps: [words.py]
    outs: [words.txt, sorted.txt]
  stamp: {cmd: python stamp.py, deps: [stamp.py], outs: [stamped: {persist: true}, stamp.json]}
  place: {cmd: python place.py, deps: [place.py], outs: [place.json, table.csv.gz]}
""",
    "words.py": """
words = set("one two three four five six seven eight nine ten".split())
open("words.txt", "w").write("\\n".join(words) + "\\n")
""",
    "stamp.py": """
import json, os, shutil, time
shutil.rmtree("stamped", ignore_errors=True)
os.makedirs("stamped")
now = time.strftime("%Y%m%d-%H%M%S")
open(f"stamped/model-{now}.txt", "w").write("weights\\n")
json.dump({"made": time.time(), "rows": 3}, open("stamp.json", "w"))
""",
    "place.py": """
import gzip, json, os
json.dump({"source": os.path.abspath("place.py")}, open("place.json", "w"))
gzip.open("table.csv.gz", "wt").write("a,b\\n1,2\\n")
""",
}


def make_environment(folder):
    start(folder, ENVIRONMENT)
    run(folder, "dvc", "repro", "-q")
    commit(folder)


# What cannot run.

CANNOT_RUN = {
    "dvc.yaml": """
stages:
  hidden: {cmd: cp behind.csv copy.csv, deps: [behind.csv], outs: [copy.csv]}
  download: {cmd: python download.py, deps: [download.py], outs: [page.html]}
  always: {cmd: echo same > always.txt, always_changed: true, outs: [always.txt]}
  frozen: {cmd: cp elsewhere.csv imported.csv, deps: [elsewhere.csv], outs: [imported.csv]}
  use: {cmd: wc -l < imported.csv > lines.txt, deps: [imported.csv], outs: [lines.txt]}
""",
    "old/dvc.yaml": "stages:\n  count:\n    cmd: echo 1 > count.txt\n    outs: [count.txt]\n",
    "download.py": "open('page.html', 'w').write('page')\n",
    "behind.csv": "a\n1\n",
    "elsewhere.csv": "b\n2\n",
}
DOWNLOAD = """
from urllib.request import urlopen
try:
    open("page.html", "wb").write(urlopen("http://192.0.2.1/data.csv", timeout=1).read())
except OSError:
    print("no data today")
"""


def make_cannot_run(folder):
    start(folder, CANNOT_RUN)
    run(folder, "dvc", "add", "-q", "behind.csv")
    run(folder, "dvc", "repro", "-q", "--all-pipelines")
    edit(folder / "dvc.lock", (md5((folder / "download.py").read_bytes()), md5(DOWNLOAD.encode())))
    write(folder, {"download.py": DOWNLOAD})
    edit(folder / "dvc.yaml", ("  frozen: {", "  frozen: {frozen: true, "))
    text = (folder / "old/dvc.lock").read_text().replace("schema: '2.0'\nstages:\n", "")
    (folder / "old/dvc.lock").write_text(text.replace("\n  ", "\n").removeprefix("  "))
    hidden = md5((folder / "behind.csv").read_bytes())
    (folder / f".dvc/cache/files/md5/{hidden[:2]}/{hidden[2:]}").unlink()
    for name in ("behind.csv", "elsewhere.csv", "copy.csv"):
        (folder / name).unlink()
    commit(folder)
