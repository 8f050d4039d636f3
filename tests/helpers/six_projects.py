"""Six small DVC projects as public ones are, with what keeps such projects from reproducing.

Each function fills an empty folder, records dvc.lock with DVC, and commits.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from dvc_verify.compare import replace_text
from dvc_verify.lockfile import hash_folder

AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@localhost")


def run(folder, *command, code=0):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
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
  make:
    cmd: python code/make.py ${rows}
    deps: [code/make.py]
    params: [{settings.toml: [seed, rows]}]
    outs: [data/all.csv]
  split:
    cmd: python code/split.py
    deps: [code/split.py, data/all.csv]
    outs: [data/parts]
  train:
    cmd: python code/train.py
    deps: [code/train.py, data/parts]
    outs: [model.joblib]
  score:
    cmd: python code/score.py
    deps: [code/score.py, data/parts, model.joblib]
    metrics: [score.json: {cache: false}]
""",
    "settings.toml": "seed = 3\nrows = 120\n",
    "code/make.py": """
import sys, tomllib
import numpy as np, pandas as pd
seed = tomllib.load(open("settings.toml", "rb"))["seed"]
x = np.random.default_rng(seed).normal(size=(int(sys.argv[1]), 3))
frame = pd.DataFrame(x, columns=list("abc")).assign(y=(x.sum(axis=1) > 0).astype(int))
frame.to_csv("data/all.csv", index=False)
""",
    "code/split.py": """
import os
import pandas as pd
frame = pd.read_csv("data/all.csv")
os.makedirs("data/parts", exist_ok=True)
frame[:80].to_csv("data/parts/train.csv", index=False)
frame[80:].to_csv("data/parts/test.csv", index=False)
""",
    "code/train.py": """
import joblib, pandas as pd
from sklearn.linear_model import LogisticRegression
frame = pd.read_csv("data/parts/train.csv")
joblib.dump(LogisticRegression().fit(frame[["a", "b", "c"]], frame["y"]), "model.joblib")
""",
    "code/score.py": """
import json, joblib, pandas as pd
frame = pd.read_csv("data/parts/test.csv")
accuracy = joblib.load("model.joblib").score(frame[["a", "b", "c"]], frame["y"])
json.dump({"accuracy": accuracy}, open("score.json", "w"))
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
    commit(folder)
    if fails:
        edit(folder / "code/train.py", ("import joblib", "import not_there, joblib"))
        commit(folder)


# Recorded on Windows.

WINDOWS = {
    "pipeline/dvc.yaml": """
stages:
  texts:
    cmd: python texts.py
    wdir: ../src
    deps: [texts.py, ../raw.csv]
    outs: [../out/texts, ../out/table.csv]
  summary:
    cmd: python summary.py
    wdir: ../src
    deps: [summary.py, ../out/texts]
    outs: [../out/summary.json]
""",
    "raw.csv": "name,value\na,1.5\nb,2.5\n",
    "src/texts.py": """
import os, shutil
os.makedirs("../out/texts", exist_ok=True)
for line in open("../raw.csv").read().splitlines()[1:]:
    name, value = line.split(",")
    open(f"../out/texts/{name}.txt", "w").write(f"{name}\\n{value}\\n")
shutil.copy("../raw.csv", "../out/table.csv")
""",
    "src/summary.py": """
import json, os
names = sorted(os.listdir("../out/texts"))
found = {name: open(f"../out/texts/{name}").read().split()[1] for name in names}
json.dump(found, open("../out/summary.json", "w"), indent=1)
""",
    "out/.gitignore": "",
}


def make_windows(folder, changed=False):
    """`changed`: the recorded table also has another number."""
    start(folder, WINDOWS)
    run(folder, "dvc", "repro", "-q", "pipeline/dvc.yaml:summary")

    def convert(path):
        return md5((folder / path).read_bytes().replace(b"\n", b"\r\n"))

    lock = folder / "pipeline/dvc.lock"
    names = ["a.txt", "b.txt"]
    old = hash_folder({name: md5((folder / "out/texts" / name).read_bytes()) for name in names})
    new = hash_folder({name: convert(f"out/texts/{name}") for name in names})
    table = md5((folder / "out/table.csv").read_bytes())
    windows = convert("out/table.csv") if not changed else md5(b"name,value\r\na,1.5\r\nb,2.75\r\n")
    text = lock.read_text().replace(old, new)
    for path in ("raw.csv", "src/texts.py", "src/summary.py", "out/summary.json"):
        text = text.replace(md5((folder / path).read_bytes()), convert(path))
    # raw.csv and table.csv have the same content, so one of them is replaced by its place.
    text = re.sub(r"(path: ../out/table.csv\n\s+hash: md5\n\s+md5: )\w+", rf"\g<1>{windows}", text)
    # An entry as DVC 2 wrote it.
    text = re.sub(
        r"(path: summary.py\n)\s+hash: md5\n(\s+md5: )\w+",
        rf"\g<1>\g<2>{md5((folder / 'src/summary.py').read_bytes())}",
        text,
    )
    assert table
    lock.write_text(text)
    commit(folder)


# Recorded with other versions of libraries.

VERSIONS = {
    "dvc.yaml": """
stages:
  train:
    foreach: [scaler, forest]
    do:
      cmd: python train.py ${item}
      deps: [train.py]
      outs: ["${item}.pkl"]
  score:
    cmd: python score.py
    deps: [score.py, scaler.pkl, forest.pkl]
    metrics: [scores.json: {cache: false}]
    plots: [plot.png: {cache: false}]
""",
    "requirements.txt": "scikit-learn==1.5.2\n",
    "train.py": """
import pickle, sys
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler
x = np.random.default_rng(0).normal(size=(60, 2))
if sys.argv[1] == "scaler":
    made = StandardScaler().fit(x)
else:
    made = RandomForestClassifier(3, random_state=0).fit(x, x[:, 0] > 0)
pickle.dump(made, open(f"{sys.argv[1]}.pkl", "wb"))
""",
    "score.py": """
import json, pickle
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
mean = pickle.load(open("scaler.pkl", "rb")).mean_
json.dump({"mean": mean[0], "spread": mean[1]}, open("scores.json", "w"))
note = PngInfo()
note.add_text("Software", "version 2")
Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("plot.png", pnginfo=note)
""",
}


def make_versions(folder):
    start(folder, VERSIONS)
    run(folder, "dvc", "repro", "-q")
    import sklearn

    lock, changes = folder / "dvc.lock", []
    for name in ("scaler.pkl", "forest.pkl"):
        content = (folder / name).read_bytes()
        other = replace_text(content, sklearn.__version__, "1.5.2")
        if name == "forest.pkl":
            other += b" trained otherwise"
        changes.append((md5(content), md5(other)))
    scores, plot = folder / "scores.json", folder / "plot.png"
    before = [md5(path.read_bytes()) for path in (scores, plot)]
    value = re.search(r"[\d.e-]+(?=,)", scores.read_text())[0]
    edit(scores, (value, repr(float(value) * (1 + 1e-12))))
    from PIL import Image

    with Image.open(plot) as image:
        image.save(plot)
    changes += zip(before, [md5(path.read_bytes()) for path in (scores, plot)], strict=True)
    edit(lock, *changes)
    import shutil

    shutil.rmtree(folder / ".dvc/cache")
    for name in ("scaler.pkl", "forest.pkl"):
        (folder / name).unlink()
    commit(folder)


# Without a seed in one branch of a matrix.

RANDOM = {
    "dvc.yaml": """
stages:
  make:
    matrix: {seed: [1, 0]}
    cmd: python make.py ${item.seed}
    deps: [make.py]
    outs: ["data${item.seed}.csv"]
  fit:
    matrix: {seed: [1, 0]}
    cmd: python fit.py ${item.seed}
    deps: [fit.py, "data${item.seed}.csv"]
    outs: ["forest${item.seed}.pkl"]
  evaluate:
    matrix: {seed: [1, 0]}
    cmd: python evaluate.py ${item.seed}
    deps: [evaluate.py, "data${item.seed}.csv", "forest${item.seed}.pkl"]
    metrics: ["f1_${item.seed}.json": {cache: false}]
""",
    "make.py": """
import sys
import numpy as np, pandas as pd
seed = int(sys.argv[1]) or None
x = np.random.default_rng(seed).normal(size=(60, 2))
frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": (x.sum(axis=1) > 0).astype(int)})
frame.to_csv(f"data{sys.argv[1]}.csv", index=False)
""",
    "fit.py": """
import pickle, sys
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
frame = pd.read_csv(f"data{sys.argv[1]}.csv")
made = RandomForestClassifier(3, random_state=int(sys.argv[1]) or None)
made.fit(frame[["a", "b"]], frame["y"])
pickle.dump(made, open(f"forest{sys.argv[1]}.pkl", "wb"))
""",
    "evaluate.py": """
import json, pickle, sys
import pandas as pd
frame = pd.read_csv(f"data{sys.argv[1]}.csv")
forest = pickle.load(open(f"forest{sys.argv[1]}.pkl", "rb"))
share = forest.predict_proba(frame[["a", "b"]])[:, 1].mean() + frame["a"].mean()
json.dump({"f1": share}, open(f"f1_{sys.argv[1]}.json", "w"))
""",
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
    cmd:
    - python words.py
    - cat words.txt | sort > sorted.txt
    deps: [words.py]
    outs: [words.txt, sorted.txt]
  stamp:
    cmd: python stamp.py
    deps: [stamp.py]
    outs: [stamped: {persist: true}, stamp.json]
  place:
    cmd: python place.py
    deps: [place.py]
    outs: [place.json, table.csv.gz]
""",
    "words.py": """
names = "one two three four five six seven eight nine ten".split()
words = {word: i for i, word in enumerate(set(names))}
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
import gzip, json, os, time
json.dump({"source": os.path.abspath("place.py")}, open("place.json", "w"))
with gzip.open("table.csv.gz", "wt") as file:
    file.write("a,b\\n1,2\\n")
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
  hidden:
    cmd: cp behind.csv copy.csv
    deps: [behind.csv]
    outs: [copy.csv]
  download:
    cmd: python download.py
    deps: [download.py]
    outs: [page.html]
  always:
    cmd: echo same > always.txt
    always_changed: true
    outs: [always.txt]
  frozen:
    cmd: cp elsewhere.csv imported.csv
    frozen: true
    deps: [elsewhere.csv]
    outs: [imported.csv]
  use:
    cmd: wc -l < imported.csv > lines.txt
    deps: [imported.csv]
    outs: [lines.txt]
""",
    "old/dvc.yaml": "stages:\n  count:\n    cmd: echo 1 > count.txt\n    outs: [count.txt]\n",
    "download.py": """
from urllib.request import urlopen
try:
    open("page.html", "wb").write(urlopen("http://192.0.2.1/data.csv", timeout=1).read())
except OSError:
    print("no data today")
""",
    "behind.csv": "a\n1\n",
    "elsewhere.csv": "b\n2\n",
}


def make_cannot_run(folder):
    start(folder, CANNOT_RUN)
    run(folder, "dvc", "add", "-q", "behind.csv")
    page = "\nfrom pathlib import Path\nPath('page.html').write_text('page')\n"
    with (folder / "download.py").open("a") as file:
        file.write(page)
    edit(folder / "dvc.yaml", ("    frozen: true\n", ""))
    run(folder, "dvc", "repro", "-q")
    run(folder, "dvc", "repro", "-q", "old/dvc.yaml")
    edit(folder / "download.py", (page, ""))
    edit(folder / "dvc.yaml", ("    cmd: cp elsewhere", "    frozen: true\n    cmd: cp elsewhere"))
    with_page, without = (md5((CANNOT_RUN["download.py"] + each).encode()) for each in (page, ""))
    edit(folder / "dvc.lock", (with_page, without))
    text = (folder / "old/dvc.lock").read_text().replace("schema: '2.0'\nstages:\n", "")
    (folder / "old/dvc.lock").write_text(text.replace("\n  ", "\n").removeprefix("  "))
    (folder / "behind.csv").unlink()
    (folder / "elsewhere.csv").unlink()
    listed = (folder / "behind.csv.dvc").read_text()
    hidden = re.search(r"md5: (\w{2})(\w+)", listed)
    (folder / f".dvc/cache/files/md5/{hidden[1]}/{hidden[2]}").unlink()
    (folder / "copy.csv").unlink()
    commit(folder)
