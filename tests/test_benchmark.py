"""The benchmark: tables from results made by hand, when it measures again, and a small real run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.checks import get_refusal
from helpers.project import ROOT, STAGES, Project

from benchmarks import __main__ as benchmark
from benchmarks import tables
from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone with a tiny convolutional network and prepared data."""
    values = {
        "download.dataset": "digits",
        "model.filters": [[4], [6]],
        "model.hidden_units": [8],
        "train.epochs": 1,
        "plot.dpi": 60,
    }
    project = Project.create(tmp_path_factory.mktemp("benchmark"), values)
    project.run_stages(*STAGES[:2])
    return project


@pytest.fixture
def here(project, monkeypatch):
    """The same clone as the current folder."""
    monkeypatch.chdir(project.folder)
    return project.folder


@pytest.fixture
def list_trials(here):
    """A function that returns the trials of a part by name."""
    return lambda part: {trial.name: trial for trial in benchmark.list_trials([part], [])}


def make_runs(values_by_name):
    """Return a table with columns such as `train_seconds`; a list has a value for each seed."""
    frames = (pd.DataFrame({"name": name, **each}) for name, each in values_by_name.items())
    return pd.concat(list(frames), ignore_index=True)


def read_cells(markdown):
    """Return the cells of each row of a Markdown table, by the row's first cell."""
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def make_recipe(accuracies, seconds, images, **more):
    return {
        "metrics_test_accuracy": accuracies,
        "training_seconds": seconds,
        "first_seconds": [each + 20 for each in seconds],
        "training_images": images,
        **more,
    }


PAGE = make_recipe([0.97, 0.98, 0.975], [40, 30, 20], 3000, first_mebibytes=1000.0)
COSTS = {"status_seconds": 2.0, "nothing_seconds": 2.6, "alone_seconds": 5.0}


def test_recipes_table_by_hand():
    """The medians are 30 and 15 s, 50 and 35 in total; the deviations divide by n - 1."""
    fast = make_recipe([0.99, 0.98, 1.0], [10, 60, 15], 4500, train_mebibytes=900.0)
    found = read_cells(tables.tabulate_recipes(make_runs({"page": PAGE, "fast": fast})))
    page = ["97.50 ± 0.50", "30.0 (1.00)", "50.0 (1.00)", "100", "1,000"]
    assert found["the course page's script"] == page
    assert found["recipe `fast`"] == ["99.00 ± 1.00", "15.0 (0.50)", "35.0 (0.70)", "300", "900"]
    found = read_cells(tables.tabulate_recipes(make_runs({"fast": fast})[:1]))
    assert found["recipe `fast`"] == ["99.00", "10.0", "30.0", "450", "900"]


def test_costs_table_by_hand():
    default = make_recipe([0.99] * 3, [10, 60, 15], 4500, **COSTS)
    found = read_cells(tables.tabulate_costs(make_runs({"page": PAGE, "default": default})))
    assert [*found.values()][2:] == [["20.0 s"], ["1.30 times"], ["5.0 s"]]
    assert tables.tabulate_costs(make_runs({"page": PAGE})) == ""


def test_stages_table_by_hand(here):
    stages = {f"{stage}_seconds": 2.0 for stage in STAGES}
    memory = {f"{stage}_mebibytes": 1000.0 for stage in STAGES}
    default = make_recipe([0.99, 0.99], [10, 20], 1000, **stages, **memory)
    found = read_cells(tables.tabulate_stages(make_runs({"default": default})))
    assert found["`train`"] == ["2.0", "1,000"]
    assert found["DVC itself"] == ["25.0", ""]  # 30 and 40 s without 5 stages of 2 s
    assert tables.tabulate_stages(make_runs({"page": PAGE})) == ""


def make_growth(seconds):
    """Return results for 1,000 images and more, of which only the training times are given."""
    memory = {f"{stage}_anonymous": 500.0 for stage in STAGES}
    runs = {}
    for factor, training in zip((1, 2, 4, 8), seconds, strict=True):
        runs[str(factor)] = {
            "grown_images": [1000 * factor],
            "training_images": 900 * factor,
            "training_seconds": training,
            **{f"{stage}_seconds": 1.0 for stage in STAGES},
            **memory,
        }
    runs["8"]["train_anonymous"] = 1000.0
    return make_runs(runs)


def test_growth_table_by_hand(here):
    report = tables.tabulate_growth(make_growth([3.0, 5.0, 9.0, 17.0]))
    cells = read_cells(report)["8,000"]
    assert (cells[:2], cells[4]) == (["17.0", "424"], "1.0; 1,000")
    assert "1.0 s plus 120.00 s for every 60,000 images" in report
    assert "at most 0%" in report
    assert "`preprocess` 1.00, `train` 2.00" in report
    curved = tables.take_medians(make_growth([1.0, 4.0, 16.0, 64.0]))
    assert tables.find_best_line(curved, "training_seconds")[1] > 0.5


def make_steps(*seconds, **exchanges):
    steps = {"steps_seconds": seconds, "steps_bytes": 812_345.0, "steps_weights": 203_000}
    return steps | exchanges


def test_workers_tables_by_hand():
    """In turns: 1.2, 1.1 and 1.0 times as long; the ratio of the medians would be another."""
    exchange = {"steps_exchanges_1000000": 0.005}
    runs = make_runs(
        {
            "2 replicas on 1 worker": make_steps(0.010, 0.020, 0.030),
            "2 replicas on 2 workers": make_steps(0.012, 0.022, 0.030),
            "4 replicas on 1 worker": make_steps(0.010),
            "4 replicas on 2 workers": make_steps(0.010, **exchange),
            "4 replicas on 4 workers": make_steps(0.010, **exchange),
        }
    )
    report = tables.tabulate_workers(runs)
    expected = ["22.0 (12.0 to 30.0)", "1.10 (1.00 to 1.20)", "812"]
    assert read_cells(report)["2 replicas on 2 workers"] == expected
    assert "203,000" in report
    # 2 machines: 2 / 1 * 5 ms, and 2 * 32 Mbit: 64 ms at 1 Gbit/s. 4: 4 / 3 * 5 ms and 128 ms.
    networks = read_cells(tables.tabulate_networks(runs))
    assert networks["2"] == ["1,000,000", "5.0", "74", "16"]
    assert networks["4"] == ["1,000,000", "5.0", "135", "19"]


def test_sweep_table_by_hand():
    runs = make_runs({"alone": {"sweep_seconds": [120.0]}, "jobs": {"sweep_seconds": [80.0]}})
    cells = read_cells(tables.tabulate_sweep(runs))
    assert cells["alone"] == ["6", "120.0", "180 (1.00)"]
    assert cells["jobs"] == ["6", "80.0", "270 (1.50)"]


def test_tables_replace_what_is_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- benchmark: x -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("no tables", encoding="utf-8")
    expected = "a\n<!-- benchmark: x -->\nnew ±\n<!-- end -->\nb\n"
    for path in (page, tmp_path):
        tables.insert_tables(path, {"x": "new ±\n"})
        assert page.read_text(encoding="utf-8") == expected
    assert "'y'" in get_refusal(tables.insert_tables, page, {"x": "newer\n", "y": "\n"})
    assert page.read_text(encoding="utf-8") == expected


def test_memory_and_exit_code_are_those_of_the_command(tmp_path, run_python):
    ballast = bytearray(300 * 2**20)  # memory of this process, which must not count
    (tmp_path / "copy").mkdir()
    codes = {"small": "pass", "large": "bytearray(200 * 2**20)", "failing": "exit(3)"}
    found = {}
    for name, code in codes.items():
        command = [sys.executable, "-m", "benchmarks.timers", "command", name]
        command += [sys.executable, "-c", code]
        ended = subprocess.run(
            command, cwd=tmp_path / "copy", env={"PYTHONPATH": str(ROOT)}, check=False
        )
        found[name] = ended.returncode
    lines = map(json.loads, (tmp_path / "record.jsonl").read_text().splitlines())
    peak = {line["name"]: line["mebibytes"] for line in lines}
    assert found == {"small": 0, "large": 0, "failing": 3}
    del ballast
    assert peak["small"] < 100 < 200 < peak["large"] < 300


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_only_changed_trials_are_measured_again(here, tmp_path, monkeypatch):
    measured = []

    def measure(trial, seed):
        if seed == stop:
            raise StageError("interrupted")
        measured.append(seed)
        return {"first": {"seconds": float(seed)}}

    monkeypatch.setattr(benchmark.Trial, "measure", measure)
    parameters = (here / "params.yaml").read_text()

    def run(machine="this", parameters=parameters, **fields):
        measured.clear()
        trial = benchmark.Trial("recipes", "x", parameters, (), **fields)
        results = benchmark.measure_trials([trial], 2, {"machine": machine}, tmp_path / "records")
        assert list(results["first_seconds"]) == [1.0, 2.0]
        return list(measured)

    stop = 2
    with pytest.raises(StageError, match="interrupted"):
        run()
    assert measured == [1]
    stop = None
    assert run() == [2]
    assert run() == []
    assert run(machine="another") == [1, 2]
    other = parameters.replace("batch_size: 256", "batch_size: 64")
    assert run(parameters=other) == [1, 2]
    assert run(sections=("download",)) == [1, 2]
    assert run(parameters=other, sections=("download",)) == []
    code = here / "stages/train.py"
    before = code.read_bytes()
    try:
        code.write_bytes(before + b"# another\n")
        assert run() == [1, 2]
    finally:
        code.write_bytes(before)
    assert run() == []


@pytest.mark.parametrize(
    ("part", "name", "asked", "expected"),
    [
        ("recipes", "fast", 5, 5),
        ("recipes", "best", 5, 2),
        ("recipes", "best", 1, 1),
        ("growth", "4 times", 5, 1),
        ("sweep", "2 jobs", 5, 1),
    ],
)
def test_slow_trials_take_fewer_seeds(part, name, asked, expected):
    assert benchmark.Trial(part, name, "", ()).count_seeds(asked) == expected


def test_unknown_names_are_rejected(here):
    for arguments in ((["nothing"], []), (["recipes"], ["nothing"])):
        assert "'nothing'" in get_refusal(benchmark.list_trials, *arguments)


def test_recorded_is_the_fastest_with_the_metrics(here, monkeypatch):
    """The command is `true`: what it records, and data/metrics.json, are written here."""

    def run_timed(project, name, seconds, seed):
        assert seed == "3"
        assert "seed: 3" in (project / "params.yaml").read_text()
        assert ("benchmarks.timers" in (project / "dvc.yaml").read_text()) == trial.stages
        with (project / benchmark.RECORD).open("a") as record:
            record.write(json.dumps({"name": name, "seconds": float(seconds)}) + "\n")
        (project / benchmark.METRICS).parent.mkdir(exist_ok=True)
        (project / benchmark.METRICS).write_text('{"test": {"accuracy": 1.0}, "train": {}}')

    monkeypatch.setattr(benchmark, "run_timed", run_timed)
    commands = tuple(("status", seconds, "{seed}") for seconds in "534")
    for stages in (True, False):
        parameters = (here / "params.yaml").read_text()
        trial = benchmark.Trial("sweep", "x", parameters, commands, stages=stages)
        assert trial.measure(3) == {
            "status": {"seconds": 3.0},
            "metrics": {"test": {"accuracy": 1.0}},
        }


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_growth_trains_on_a_larger_training_set(list_trials, here, monkeypatch):
    original = idx.read(here / "data/raw" / TRAIN_IMAGES, 3)
    images = []
    run_timed = benchmark.run_timed

    def run_and_read(project, *command):
        run_timed(project, *command)
        images.append(idx.read(project / "data/raw" / TRAIN_IMAGES, 3))

    monkeypatch.setattr(benchmark, "run_timed", run_and_read)
    found = list_trials("growth")["2 times the training set"].measure(1)
    grown = images[-1]
    assert found["grown"]["images"] == len(grown) == 2 * len(original)
    np.testing.assert_array_equal(grown[: len(original)], original)
    assert (grown[len(original) :] != original).any(axis=(1, 2)).all()
    assert found["training"]["images"] == 0.9 * len(grown)  # the others validate
    assert 0 < found["training"]["seconds"] < found["train"]["seconds"]
    if sys.platform == "linux":
        assert all(0 < found[stage]["anonymous"] < found[stage]["mebibytes"] for stage in STAGES)


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_real_run_writes_the_tables_and_continues(here, monkeypatch, capsys):
    arguments = ["--seeds", "1", "--recipes", "page,default", "--parts", "recipes", "--docs"]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    benchmark.main()
    records, report = Path("reports/benchmark.jsonl"), Path("reports/benchmark.md").read_text()
    before = records.read_text()
    found = read_cells(report)
    assert float(found["the course page's script"][0]) > 80  # really trained, on 1,500 images
    assert {"`params.yaml`", *(f"`{stage}`" for stage in STAGES)} <= found.keys()
    documented = "".join(page.read_text(encoding="utf-8") for page in Path("docs").rglob("*.md"))
    written = report.split("\n\n")[1:]  # without the title
    assert written[0].startswith("Measured on commit ")
    for table in written:
        assert table.strip() in documented
    capsys.readouterr()
    benchmark.main()
    assert capsys.readouterr().out.count("already measured") == 2
    assert records.read_text() == before


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.xdist_group("test_benchmark")
def test_workers_send_their_sums_in_each_step(list_trials):
    """Each of two workers sends the sum of its gradients, 4 bytes a weight, and little else."""
    trial = list_trials("workers")["2 replicas on 2 workers"]
    small = trial.parameters.replace("batch_size: 256", "batch_size: 8")
    found = replace(trial, parameters=small).measure(1)["steps"]
    assert found["seconds"] > 0
    assert 4 * found["weights"] < found["bytes"] < 4 * found["weights"] + 4_000
    assert [*found["exchanges"]] == ["100000", "1000000", "10000000"]
    assert 0 < found["exchanges"]["100000"] < found["exchanges"]["10000000"]


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_runs_of_a_sweep_are_timed(list_trials, monkeypatch):
    monkeypatch.setattr(tables, "RUNS", 1)
    report = ("check", "grep", "The first row is the committed", "reports/sweep.md")
    trial = list_trials("sweep")["`tools.sweep --jobs 1`"]
    found = replace(trial, commands=(*trial.commands, report)).measure(1)
    assert found["sweep"]["seconds"] > 1


def test_every_table_has_a_place_in_the_docs():
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))
    for part, names in tables.TABLES.items():
        for name in (f"{part} machine", *names):
            assert f"<!-- benchmark: {name} -->" in pages


def test_make_help_lists_what_measures():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    maintainers = listed.stdout.partition("For maintainers")[2]
    for name in ("benchmark", "techniques", "verify-cpus"):
        assert f"make {name}" in maintainers
