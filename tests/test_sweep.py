"""Grids of experiments on real Dask workers, and the tables made from them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import trustme
from helpers.checks import get_refusal
from helpers.parameters import DEFAULTS, change_file
from helpers.project import ROOT, Project, allow_interrupts

from benchmarks import techniques
from stages.core.errors import StageError
from stages.core.machine import collect_fingerprint
from stages.core.settings import read_yaml
from tools import sweep
from tools.shared import dask_worker, table
from tools.shared.dask_cluster import connect, find_reason, keep
from tools.shared.runs import Combination, Run, expand_grid, make_combinations

SWEEP = ("python", "-m", "tools.sweep")
DASK = str(Path(sys.executable).with_name("dask"))
UP_TO_DATE = "Data and pipelines are up to date"


@pytest.fixture(scope="module")
def project(small_project):
    return small_project


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    return project


def list_experiments(project: Project) -> dict[str, dict]:
    """Return commit, tree and parameters of each experiment, by name."""
    listed = project.run("git", "for-each-ref", "--format=%(refname) %(objectname) %(tree)").stdout
    found = {}
    for line in listed.splitlines():
        reference, commit, tree = line.split()
        if reference.startswith("refs/exps/") and "/exec/" not in reference:
            text = project.run("git", "show", f"{commit}:params.yaml").stdout
            found[Path(reference).name] = {"commit": commit, "tree": tree, "parameters": text}
    return found


def find_experiment(project: Project, text: str) -> tuple[str, dict]:
    """Return name and content of the only experiment with this text in params.yaml."""
    (found,) = [item for item in list_experiments(project).items() if text in item[1]["parameters"]]
    return found


def run_serially(project: Project, folder: Path, override: str) -> str:
    """Run `dvc exp run --temp` in a copy of the project, and return the tree of its commit."""
    copy = project.copy(folder)
    copy.run("dvc", "exp", "run", "--temp", "--name", "serial", "-S", override)
    return list_experiments(copy)["serial"]["tree"]


def start(project: Project, *arguments: str) -> subprocess.Popen:
    """Start a sweep in a process of its own, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, *SWEEP[1:], *arguments],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=allow_interrupts,
    )


# Which runs


def test_grid_has_the_syntax_of_dvc():
    settings = ["train.epochs=2,4", "model.filters=[[4],[6]]", "train.seed=choice(1,2)"]
    assert expand_grid(settings) == [
        (f"train.epochs={epochs}", "model.filters=[[4],[6]]", f"train.seed={seed}")
        for epochs in (2, 4)
        for seed in (1, 2)
    ]
    assert get_refusal(expand_grid, ["train.epochs=2,,4"]).startswith("-S: ")


def test_combinations_have_a_run_for_each_seed(here):
    grid = [(), *expand_grid(["train.epochs=2,3"])]
    base, longer = make_combinations(grid, [1, 2], name=lambda *what: f"{len(what[0])}-{what[1]}")
    assert base.overrides == ()  # main has 2 epochs, so it is the first value as well
    assert (longer.overrides, longer.parameters["train.epochs"]) == (("train.epochs=3",), 3)
    assert [run.name for run in (*base.runs, *longer.runs)] == ["0-1", "0-2", "1-1", "1-2"]
    assert longer.runs[1].overrides == ("train.epochs=3", "model.seed=2", "train.seed=2")
    assert longer.runs[1].label == "train.epochs=3, seed 2"


@pytest.mark.parametrize(
    ("settings", "seeds", "named"),
    [
        (
            ["train.epochs=0,2,3", "train.label_smoothing=0,2"],
            [],
            ["4 of 6", "train.epochs=0, train.label_smoothing=0: ", "train.label_smoothing is 2"],
        ),
        (["train.momentum=0.5"], [], ["1 of 1", "train.momentum=0.5: train.momentum is 0.5"]),
        (["train.epoch=2"], [], ["train.epoch=2: ", "'train.epoch'"]),
        (["train.seed=5"], [1], ["train.seed=5 contradicts the seeds"]),
        (["download.folder=datasets/mine", "download.dataset=custom"], [], ["lacks all"]),
    ],
)
def test_refused_combinations_are_named(here, settings, seeds, named):
    message = get_refusal(make_combinations, expand_grid(settings), seeds)
    assert [part for part in named if part not in message] == []


def test_nothing_starts_with_a_refused_combination(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", "-S", "train.epochs=0,3", "--seeds", "2"])
    monkeypatch.setattr(sweep, "run_all", lambda *_: pytest.fail("it started"))
    assert "train.epochs=0: " in get_refusal(sweep.main)
    here.set({"train.epochs": 4})
    assert "the workspace differs from the last commit" in get_refusal(sweep.main)
    here.restore()


# Runs on this machine


@pytest.mark.slow
def test_local_workers_give_the_bytes_of_serial_runs(project, tmp_path):
    before = project.run("git", "status", "--short").stdout
    with project.undo_changes():
        command = (*SWEEP, "-S", "train.epochs=1,3", "--jobs", "2")
        assert "2 of 2 done, 0 running, 0 failed" in project.run(*command).stdout
        name, found = find_experiment(project, "epochs: 3")
        assert found["tree"] == run_serially(project, tmp_path / "serial", "train.epochs=3")

        # The same command runs nothing, and DVC's own commands know the experiments.
        experiments = list_experiments(project)
        assert "3 of 3 runs were done before\n\n|" in project.run(*command).stdout
        assert list_experiments(project) == experiments
        assert name in project.run("dvc", "exp", "show", "--csv").stdout
        compared = project.run("python", "-m", "tools.compare", "main", name).stdout
        assert re.search(r"\| train.epochs +\| 2 +\| 3 +\|", compared)
        project.run("dvc", "exp", "apply", name)
        assert project.run("dvc", "status").stdout.startswith(UP_TO_DATE)
        reports = project.folder / "reports"
        assert len((reports / "sweep.csv").read_text().splitlines()) == 1 + 3
        assert (reports / "sweep.png").stat().st_size > 5000
    assert project.run("git", "status", "--short").stdout == before


@pytest.mark.slow
def test_interrupted_sweep_goes_on(project):
    """The runs differ in the plots only, so they are short."""
    with start(project, "-S", "plot.dpi=51,52,53") as process:
        for line in process.stdout:
            if line.startswith("1 of 3 done"):
                process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 1
    assert message.startswith("error: interrupted; 1 of 3 runs are done and kept")
    assert message.count("\n") == 1
    kept = list_experiments(project)
    longer = project.run(*SWEEP, "-S", "plot.dpi=51,52,53,54").stdout
    assert "2 of 5 runs were done before\n0 of 3 done, 1 running" in longer
    assert "3 of 3 done, 0 running" in longer
    assert kept.items() <= list_experiments(project).items()


@pytest.mark.slow
def test_failed_run_does_not_stop_the_others(project):
    grid = ("-S", "preprocess.validation_fraction=0.0001,0.1", "-S", "plot.dpi=55")
    done = project.run(*SWEEP, *grid, code=1)
    assert "1 of 2 done, 0 running, 1 failed" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: preprocess.validation_fraction=0.0001, plot.dpi=55: ")
    log = line.partition("all output: ")[2].rstrip(")")
    assert "Running stage 'preprocess'" in (project.folder / log).read_text()
    assert done.stderr == "error: 1 runs failed for the reasons above\n"
    find_experiment(project, "dpi: 55")


@pytest.mark.slow
def test_two_sweeps_at_once_in_a_folder_with_any_name(project, tmp_path):
    """Both do the same run under the same name. DVC's writer of settings knows only ASCII."""
    other = project.copy(tmp_path / "한글 'é' +#%&,\"🙂")
    (other.folder / ".dvc/config.local").write_text("[core]\n    autostage = true  # 한글\n")
    sweeps = [start(other, "--seeds", "1") for _ in range(2)]
    ended = [(sweep.communicate(), sweep.returncode) for sweep in sweeps]
    assert [code for _, code in ended] == [0, 0], ended
    (name,) = [name for name in list_experiments(other) if name.startswith("seed1-")]
    cached = list((other.folder / ".dvc/cache").rglob("*"))
    other.run("dvc", "exp", "apply", name)
    assert list((other.folder / ".dvc/cache").rglob("*")) == cached  # the runs used it
    assert "autostage" in (other.folder / ".dvc/config.local").read_text()


# Runs on a cluster that was started by hand


@contextmanager
def start_cluster(folder: Path, count: int):
    """Start a scheduler and workers, as users do; yield the address and all processes.

    They have no copy of the project, not even on the path, and use the TLS options that
    docs/sweeps.md shows.
    """
    folder.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    file = folder / "scheduler.json"

    def start(*arguments):
        command = [DASK, *arguments, "--scheduler-file", str(file), "--no-dashboard"]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=folder, env=clean, stdout=log, stderr=log)

    def read_address():
        with suppress(OSError, ValueError):  # it is not there, or not complete
            return json.loads(file.read_text())["address"]

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0")]
    try:
        address = wait_for(read_address, "scheduler")
        for number in range(count):
            options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
            local = ("--local-directory", str(folder / f"worker{number}"))
            processes.append(start("worker", *options, *local))
        assert address.startswith("tls://127.0.0.1:")
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """Dask's settings for TLS, as docs/sweeps.md shows them, for this test's child processes."""
    text = (ROOT / "docs/sweeps.md").read_text()
    shown = re.search(r"^```yaml\n(distributed:\n.*?)^```$", text, re.M | re.S)[1]
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    settings = tmp_path / "distributed.yaml"
    settings.write_text(re.sub(r"(\w+\.pem)", rf"{tmp_path}/\1", shown))
    monkeypatch.setenv("DASK_CONFIG", str(settings))


def wait_for(find, what: str):
    """Return what `find` returns as soon as it is true."""
    for _ in range(1200):
        if found := find():
            return found
        time.sleep(0.1)
    return pytest.fail(f"there is no {what} after two minutes")


def find_stages(folder: Path) -> list[psutil.Process]:
    """Return the processes of DVC and its stages in the clones that workers made in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if "/clone" in process.cwd() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.linux
def test_cluster_survives_a_killed_worker(project, tmp_path, tls):
    """It also does so after Ctrl-C. The result has the serial bytes, and its model comes along.

    At last the scheduler ends during a run.
    """
    user = project.copy(tmp_path / "user")
    shutil.rmtree(user.folder / ".dvc/cache")  # nothing to copy results from
    seen: set[Path] = set()  # a clone may be there for a moment after its processes

    def find_training() -> Path | None:
        found = set(tmp_path.glob("cluster/*/*/*/run-*/clone/data/processed/train.npz")) - seen
        seen.update(found)
        return next(iter(found), None)

    with start_cluster(tmp_path / "cluster", 2) as (address, (scheduler, *workers)):
        options = ("--models", "--cluster", address)
        with start(user, "-S", "train.epochs=4", *options) as process:
            wait_for(find_training, "training")
            process.send_signal(signal.SIGINT)
            assert "error: interrupted; 0 of 1 runs are done" in process.communicate()[1]
        wait_for(lambda: not find_stages(tmp_path), "end of the stages after Ctrl-C")

        with start(user, "-S", "train.epochs=4", *options) as process:
            training = wait_for(find_training, "training")
            number = int(training.relative_to(tmp_path / "cluster").parts[0][-1])
            stages = find_stages(training.parents[3])
            workers[number].kill()
            assert stages
            wait_for(lambda: not any(map(psutil.Process.is_running, stages)), "end of its stages")
            assert "1 of 1 done, 0 running, 0 failed" in process.communicate()[0]
        assert process.returncode == 0

        with start(user, "-S", "train.epochs=5", *options) as process:
            wait_for(find_training, "training")
            scheduler.kill()
            assert "scheduler no longer answers; 0 of 1" in process.communicate()[1]

    name, found = find_experiment(user, "epochs: 4")
    assert found["tree"] == run_serially(project, tmp_path / "serial", "train.epochs=4")
    user.run("dvc", "exp", "apply", name)
    lock = (user.folder / "dvc.lock").read_text()
    (model,) = (user.folder / ".dvc/cache/files/md5").glob("*/*")
    assert f"{model.parent.name}{model.name}" in lock.partition("data/model/model.keras")[2]
    assert (user.folder / "data/model/model.keras").read_bytes() == model.read_bytes()


@pytest.mark.slow
@pytest.mark.linux
def test_cluster_uses_the_remote(project, tmp_path, tls, monkeypatch):
    """The worker gets the raw data from it, and sends the outputs to it."""
    user = project.copy(tmp_path / "user")
    user.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "remote"))
    user.run("dvc", "push", "--quiet", "download")
    user.commit("remote")
    clone = Project(tmp_path / "clone")
    user.run("git", "clone", "-q", ".", str(clone.folder))
    monkeypatch.chdir(clone.folder)
    assert dask_worker.pull_raw_data()
    assert clone.run("dvc", "status", "download").stdout.startswith(UP_TO_DATE)
    clone.run("dvc", "remote", "remove", "storage")
    assert not dask_worker.pull_raw_data()

    pushed = len([*(tmp_path / "remote").rglob("*")])
    with start_cluster(tmp_path / "cluster", 1) as (address, _):
        printed = user.run(*SWEEP, "-S", "plot.dpi=56", "--cluster", address).stdout
    assert "1 of 1 done, 0 running, 0 failed" in printed
    assert len([*(tmp_path / "remote").rglob("*")]) > pushed
    shutil.rmtree(user.folder / ".dvc/cache")
    (user.folder / "data/model/model.keras").unlink()
    user.run("git", "checkout", "-q", find_experiment(user, "dpi: 56")[1]["commit"])
    user.run("dvc", "pull", "--quiet")
    assert user.run("dvc", "status").stdout.startswith(UP_TO_DATE)


@pytest.mark.parametrize("speaks", [b"", b"SSH-2.0-OpenSSH", None])
def test_missing_scheduler_is_one_line(speaks):
    """Another program listens, which waits, as the dashboard, or speaks; or nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(speaks)
                connection.recv(1) if not speaks else None

        if speaks is None:
            listening.close()
        else:
            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StageError) as refused, connect(1, address):
            pass
    assert [part for part in (address, "8786", "8787") if part not in str(refused.value)] == []


def test_model_is_kept_under_its_own_md5(here):
    """Whatever a worker says. DVC's cache has what dvc.lock names, or nothing."""
    commit = here.run("git", "rev-parse", "HEAD").stdout.strip()
    reference = "refs/exps/te/st/kept"
    here.run("git", "update-ref", reference, commit)
    here.run("git", "bundle", "create", "-q", "kept.bundle", reference)
    done = {"bundle": Path("kept.bundle").read_bytes(), "model": b"a model"}
    Path("kept.bundle").unlink()
    keep(reference, done)
    keep(reference, done)  # a second sweep at the same time
    here.run("git", "update-ref", "-d", reference)
    kept = Path(".dvc/cache/files/md5/fe/2dbffd447a970c1a42dac39791f114")
    assert kept.read_bytes() == b"a model"
    assert kept.stat().st_mode & 0o777 == 0o444
    kept.unlink()


def test_worker_with_another_library_is_named():
    here = collect_fingerprint()
    assert dask_worker.find_difference(here, here) == ""
    there = here | {"libraries": here["libraries"] | {"keras": "2.0"}}
    found = dask_worker.find_difference(here, there)
    assert found == f"keras is 2.0 instead of {here['libraries']['keras']}"
    here |= {"machine": "x86_64", "system": "Linux", "vector_instructions": "avx2 fma"}
    old = here | {"vector_instructions": "avx", "processor": "Sandy Bridge"}
    assert "its processor is Sandy Bridge" in dask_worker.find_difference(here, old)
    assert dask_worker.find_difference(old, here) == ""
    arm = here | {"machine": "aarch64", "vector_instructions": "", "processor": "Neoverse"}
    assert dask_worker.find_difference(here, arm) == ""


def test_reason_is_the_message_of_the_stage():
    log = "Running stage 'train'\nerror: too small\nERROR: failed to reproduce 'train'\n"
    assert find_reason(log) == "too small"
    assert find_reason("") == "no output"
    assert find_reason("one\n\ntwo\n") == "two"


# The techniques page


@pytest.fixture
def page(project):
    """The project with a page that needs two short runs, committed; undone afterwards."""
    files = {
        "docs/evidence/techniques.md": "",
        "recipes/tiny.yaml": "plot:\n  dpi: 61\n",
        "benchmarks/techniques.yaml": "recipe: tiny\nseeds: 1\ntables:\n  mistakes:\n"
        "    base: plot.samples=5\n    rows: [plot.mistakes=3]\n    metrics: [train.epochs]\n"
        "    picture: {file: m.png, title: Curves, columns: [loss, val_loss]}\n",
        "docs/techniques.md": "".join(
            f"Text.\n<!-- techniques: {name} -->\n<!-- end -->\n"
            for name in ("summary", "machine", "p-values", "mistakes")
        ),
    }
    with project.undo_changes():
        for name, content in files.items():
            (project.folder / name).write_text(content)
        project.commit("tiny page")
        yield project


@pytest.mark.slow
def test_page_is_written_from_its_description(page):
    printed = page.run("python", "-m", "benchmarks.techniques", "--jobs", "2").stdout
    assert "2 of 2 done, 0 running, 0 failed" in printed
    text = (page.folder / "docs/techniques.md").read_text()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if "65.33" in line]
    assert rows == [
        ["base", "65.33", "", "1.0832", "2"],
        ["`plot.mistakes=3`", "65.33", "+0.00", "1.0832", "2"],
    ]
    assert re.search(r"\| \+0.0000 +\| \+0.00 +\|$", text, re.M)  # the last column has seed 1
    assert "![Curves](m.png)\n<!-- end -->\n" in text
    assert (page.folder / "docs/m.png").stat().st_size > 5000
    commit = page.run("git", "rev-parse", "--short=7", "HEAD").stdout.strip()
    assert f"Measured on commit {commit}, with 1 seeds a row" in text
    names = {f"samples-5{rest}-seed1" for rest in ("", "-mistakes-3")}
    assert names <= set(list_experiments(page))


def test_insignificant_differences_are_in_parentheses():
    """And losses of different kinds are not compared."""
    metric = "validation.loss"
    row = {f"{metric} difference": 0.5, f"{metric} p": 0.05}
    significant = row | {f"{metric} p": 0.049}
    assert techniques.format_difference("`a.b=1`", row, metric) == "(+0.5000)"
    assert techniques.format_difference("`a.b=1`", significant, metric) == "+0.5000"
    shown = techniques.format_difference("`a.b=1`", row, metric, with_p_value=True)
    assert shown == "+0.5000 (p = 0.05)"
    assert techniques.format_difference("`train.loss=x`", row, metric) == "not comparable"


def test_description_of_the_page_is_valid(tmp_path, monkeypatch):
    """With the default parameters, with which the page was measured."""
    for name in ("params.yaml", "dvc.yaml", "recipes/techniques.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    change_file(tmp_path / "params.yaml", DEFAULTS)
    monkeypatch.chdir(tmp_path)
    description = read_yaml(ROOT / techniques.DESCRIPTION) | {"seeds": 1}
    tables = techniques.read_tables(description)
    text = (ROOT / techniques.DOCS / "techniques.md").read_text()
    for each in tables:
        assert f"<!-- techniques: {each.name} -->\n" in text
        if each.name != "seeds":  # its first row is not a change
            changes = each.combinations[1].overrides[len(each.base) :]
            command = " ".join(f"-S '{c}'" if "[" in c else f"-S {c}" for c in changes)
            assert f"$ dvc exp run {command}\n" in text
    runs = [run for each in tables for found in each.combinations for run in found.runs]
    names = {run.text: run.name for run in reversed(runs)}  # the first one counts
    assert len(set(names.values())) == len(names)
    assert {"base-seed1", "dropout-0.3-seed1", "schedule.name-cosine-seed1"} <= set(names.values())


# Tables


def make_sweep(accuracies, parameters=None):
    """Return combinations and results with these validation accuracies, a list for each."""
    parameters = parameters or [{"train.epochs": number} for number in range(len(accuracies))]
    combinations, results = [], {}
    for number, (values, changed) in enumerate(zip(accuracies, parameters, strict=True)):
        runs = tuple(Run((), f"{number} {seed}", "") for seed in range(len(values)))
        overrides = tuple(f"{key}={value}" for key, value in changed.items() if number)
        combinations.append(Combination(overrides, changed, runs))
        for run, accuracy in zip(runs, values, strict=True):
            metrics = dict.fromkeys(table.METRICS, 1 - accuracy)
            metrics |= {"validation.accuracy": accuracy, "test.accuracy": accuracy / 2}
            results[run.text] = SimpleNamespace(metrics=metrics)
    return combinations, results


def test_table_by_hand():
    """The first difference has t = sqrt(6), with 4 degrees of freedom as the spreads are equal."""
    combinations, results = make_sweep([[0.90, 0.92, 0.94], [0.94, 0.96, 0.98], [0.91, 0.92, 0.93]])
    rows = table.compute_rows(combinations, results)
    base, better, same = rows
    assert base["validation.accuracy"] == pytest.approx(0.92)
    assert base["validation.accuracy sd"] == pytest.approx(0.02)
    assert better["validation.accuracy difference"] == pytest.approx(0.04)
    assert better["validation.accuracy p"] == pytest.approx(2 * 0.0704839954)
    assert same["validation.accuracy p"] == pytest.approx(1)
    report = table.format_report(combinations, rows)
    assert "| 92.00 ± 2.00    |" in report
    assert "| +4.00 (p = 0.14) | 0.0400 ± 0.0200   | -0.0400 (p = 0.14) |" in report
    assert "+0.0000 (p = 1)" in report
    assert "Holm's correction for 2 combinations" in report
    assert "Best by validation accuracy: train.epochs=1." in report
    csv = table.list_values(combinations).join(pd.DataFrame(rows))
    assert list(csv["train.epochs"]) == ["0", "1", "2"]
    assert csv["test.accuracy"].tolist() == pytest.approx([0.46, 0.48, 0.46])


def test_table_of_single_and_failed_runs():
    combinations, results = make_sweep([[0.5], [0.75], [0.25]])
    del results["2 0"]
    report = table.format_report(combinations, table.compute_rows(combinations, results))
    found = [part in report for part in ("| +25.00   |", "One run each", "failed", "p =", "nan")]
    assert found == [True, True, True, False, False]
    assert "Best by validation accuracy: train.epochs=1." in report


def test_plot_has_a_point_for_each_run():
    combinations, results = make_sweep([[0.90, 0.92], [0.95, 0.96]])
    (axes,) = table.plot_accuracy(combinations, results).axes
    line, points = axes.lines
    assert list(points.get_xdata()) == ["0", "0", "1", "1"]
    assert list(points.get_ydata()) == pytest.approx([90, 92, 95, 96])
    assert list(line.get_ydata()) == pytest.approx([91, 95.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert table.plot_accuracy(combinations[:1], results) is None


def test_plot_joins_combinations_that_differ_in_one_parameter():
    values = [{"x.n": n, "x.k": k} for k in "ab" for n in "12"]
    first, _ = table.plot_accuracy(*make_sweep([[0.0], [0.1], [0.2], [0.3]], values)).axes
    assert [line.get_label() for line in first.lines[::2]] == ["x.k=a", "x.k=b"]
    for line, expected in zip(first.lines[::2], ([0, 10], [20, 30]), strict=True):
        assert list(line.get_ydata()) == pytest.approx(expected)
