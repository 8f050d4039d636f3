"""The benchmark: tables from results made by hand, when it measures again, and a small real run."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.checks import get_refusal
from helpers.project import ROOT, STAGES, Project

from benchmarks import __main__ as benchmark
from benchmarks import tables
from stages.core.errors import StageError
from stages.sources import idx
from stages.sources.catalogue import TRAIN_IMAGES

TIME_COMMAND = ROOT / "benchmarks/time_command.py"


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
    for stage in STAGES[:2]:
        project.run("python", "-m", f"stages.{stage}")
    return project


@pytest.fixture
def here(project, monkeypatch):
    """The same clone as the current folder."""
    monkeypatch.chdir(project.folder)
    return project.folder


def make_results(accuracies, seconds, images, **more):
    return [
        {
            "commit": "abc",
            "accuracy": accuracy,
            "training": training,
            "total": training + 20,
            "images": images,
            "mebibytes": 1000.0,
            **more,
        }
        for accuracy, training in zip(accuracies, seconds, strict=True)
    ]


def read_cells(markdown):
    """Return the cells of each row of a Markdown table, by the row's first cell."""
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_recipes_table_by_hand():
    results = {
        "recipes": {
            "page": make_results([0.97, 0.98, 0.975], [40, 30, 20], 3000),
            "fast": make_results([0.99, 0.98, 1.0], [10, 60, 15], 4500),
        }
    }
    found = read_cells(tables.tabulate_recipes(results))
    # The medians are 30 and 15 seconds, 50 and 35 in total; the deviations divide by n - 1.
    page, fast = found["the course page's script"], found["recipe `fast`"]
    assert page == ["97.50 ± 0.50", "30.0 (1.00)", "50.0 (1.00)", "100", "1,000"]
    assert fast == ["99.00 ± 1.00", "15.0 (0.50)", "35.0 (0.70)", "300", "1,000"]
    del results["recipes"]["page"]
    assert read_cells(tables.tabulate_recipes(results))["recipe `fast`"][1:3] == ["15.0", "35.0"]


def test_costs_table_by_hand():
    default = make_results([0.99] * 3, [10, 60, 15], 4500, status=2.0, nothing=2.6, plot=5.0)
    page = make_results([0.97], [50], 3000)
    found = read_cells(tables.tabulate_costs({"recipes": {"page": page, "default": default}}))
    assert [*found.values()][2:] == [["20.0 s"], ["1.30 times"], ["5.0 s"]]
    assert tables.tabulate_costs({"recipes": {"page": page}}) == ""


def make_growth(seconds):
    """Return results for 1,000 images and more, of which only the training times are given."""
    stages = {
        "preprocess": {"seconds": 1.0, "anonymous": 500.0},
        "train": {"seconds": 2.0, "anonymous": 800.0},
    }
    results = {
        str(factor): [
            {
                "images": 1000 * factor,
                "seen": 900 * factor,
                "training": training,
                "stages": copy.deepcopy(stages),
            }
        ]
        for factor, training in zip((1, 2, 4, 8), seconds, strict=True)
    }
    results["8"][0]["stages"]["train"]["anonymous"] = 1000.0
    return results


def test_growth_table_by_hand():
    report = tables.tabulate_growth({"growth": make_growth([3.0, 5.0, 9.0, 17.0])})
    assert read_cells(report)["8,000"] == ["17.0", "424", "1.0; 500", "2.0; 1,000"]
    assert (
        "- training for an epoch: 1.0 s plus 120.00 s for every 60,000 images; the measured times "
        "differ from that line by at most 0%.\n"
    ) in report
    assert "divided by that with 1,000: `preprocess` 1.00, `train` 1.25.\n" in report


def test_times_that_are_not_on_a_line_have_a_large_error():
    _, error = tables.find_best_line(make_growth([1.0, 4.0, 16.0, 64.0]), "training")
    assert error > 0.5


def make_steps(seconds, **exchanges):
    return [
        {"commit": "abc", "seconds": each, "bytes": 812_345.0, "weights": 203_000, **exchanges}
        for each in seconds
    ]


def test_workers_tables_by_hand():
    """In turns: 1.2, 1.1 and 1.0 times as long; the ratio of the medians would be another."""
    exchanges = {"exchanges": {"1000000": 0.005}}
    found = {
        "2 replicas on 1 worker": make_steps([0.010, 0.020, 0.030]),
        "2 replicas on 2 workers": make_steps([0.012, 0.022, 0.030]),
        "4 replicas on 1 worker": make_steps([0.010]),
        "4 replicas on 2 workers": make_steps([0.010], **exchanges),
        "4 replicas on 4 workers": make_steps([0.010], **exchanges),
    }
    report = tables.tabulate_workers({"workers": found})
    assert read_cells(report)["2 replicas on 2 workers"] == [
        "22.0 (12.0 to 30.0)",
        "1.10 (1.00 to 1.20)",
        "812",
    ]
    assert "has 203,000 weights" in report
    networks = tables.tabulate_networks({"workers": found}).splitlines()
    # 2 machines: 2 / 1 * 5 ms, and 2 * 32 Mbit: 64 ms at 1 Gbit/s. 4: 4 / 3 * 5 ms and 128 ms.
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in networks[2:]]
    assert rows == [
        ["2", "1,000,000", "5.0", "74", "16"],
        ["4", "1,000,000", "5.0", "135", "19"],
    ]


def test_sweep_table_by_hand():
    found = {"one by one": [{"runs": 6, "seconds": 120.0}], "jobs": [{"runs": 6, "seconds": 80.0}]}
    cells = read_cells(tables.tabulate_sweep({"sweep": found}))
    assert cells["one by one"] == ["6", "120.0", "180 (1.00)"]
    assert cells["jobs"] == ["6", "80.0", "270 (1.50)"]


def test_tables_replace_what_is_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- benchmark: x -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    tables.insert_tables(page, {"x": "new ±\n"})
    expected = "a\n<!-- benchmark: x -->\nnew ±\n<!-- end -->\nb\n"
    assert page.read_text(encoding="utf-8") == expected
    with pytest.raises(StageError, match=r"page\.md: has no place for the table 'y'"):
        tables.insert_tables(page, {"x": "newer\n", "y": "\n"})
    assert page.read_text(encoding="utf-8") == expected


def test_memory_and_exit_code_are_those_of_the_command(tmp_path):
    ballast = bytearray(300 * 2**20)  # memory of this process, which must not count
    codes = {"small": "pass", "large": "bytearray(200 * 2**20)", "failing": "exit(3)"}
    found = {}
    for name, code in codes.items():
        command = [sys.executable, TIME_COMMAND, tmp_path / "record", name]
        done = subprocess.run([*command, sys.executable, "-c", code], check=False)
        found[name] = done.returncode
    lines = map(json.loads, (tmp_path / "record").read_text().splitlines())
    peak = {line["name"]: line["mebibytes"] for line in lines}
    assert found == {"small": 0, "large": 0, "failing": 3}
    del ballast
    assert peak["small"] < 100 < 200 < peak["large"] < 300


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_only_changed_trials_are_measured_again(here, tmp_path):
    measured = []

    def measure(project, seed):
        assert f"seed: {seed}" in (project / "params.yaml").read_text()
        if seed == stop:
            raise StageError("interrupted")
        measured.append(seed)
        return {"seconds": float(seed)}

    parameters = (here / "params.yaml").read_text()

    def run(machine="this", parameters=parameters):
        measured.clear()
        trial = benchmark.Trial("recipes", "x", parameters, (Path("stages"),), measure)
        results = benchmark.measure_trials([trial], 2, {"machine": machine}, tmp_path / "records")
        return [result["seconds"] for result in results["recipes"]["x"]]

    stop = 2
    with pytest.raises(StageError, match="interrupted"):
        run()
    assert measured == [1]
    stop = None
    results = [1.0, 2.0]
    assert (run(), measured) == (results, [2])
    assert (run(), measured) == (results, [])
    assert (run(machine="another"), measured) == (results, [1, 2])
    other = parameters.replace("batch_size: 256", "batch_size: 64")
    assert (run(parameters=other), measured) == (results, [1, 2])
    code = here / "stages/train.py"
    before = code.read_bytes()
    try:
        code.write_bytes(before + b"# another\n")
        assert (run(), measured) == (results, [1, 2])
    finally:
        code.write_bytes(before)
    assert (run(), measured) == (results, [])


def test_slow_recipes_take_two_seeds_and_long_parts_one():
    def count_seeds(part, name):
        return benchmark.Trial(part, name, "", (), lambda *_: {}).count_seeds(5)

    assert [count_seeds("recipes", name) for name in ("fast", "page", "best")] == [5, 5, 2]
    assert count_seeds("growth", "4 times the training set") == 1
    assert count_seeds("sweep", "2 jobs") == 1
    assert benchmark.Trial("recipes", "best", "", (), lambda *_: {}).count_seeds(1) == 1


def test_unknown_names_are_rejected(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert get_refusal(benchmark.list_trials, ["nothing"], []) == (
        "unknown part 'nothing'; choose from recipes, growth, workers, sweep"
    )
    assert get_refusal(benchmark.list_trials, ["recipes"], ["nothing"]).startswith(
        "unknown recipe 'nothing'; choose from page, mnist_convnet, default, "
    )


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_growth_trains_on_a_larger_training_set(here):
    original = idx.read(here / "data/raw" / TRAIN_IMAGES, 3)
    with benchmark.copy_project((here / "params.yaml").read_text()) as project:
        found = benchmark.measure_growth(2, project, 1)
        images = idx.read(project / "data/raw" / TRAIN_IMAGES, 3)
    assert found["images"] == len(images) == 2 * len(original)
    np.testing.assert_array_equal(images[: len(original)], original)
    assert (images[len(original) :] != original).any(axis=(1, 2)).all()
    assert found["seen"] == 0.9 * found["images"]  # the validation images are not trained on
    assert 0 < found["training"] < found["stages"]["train"]["seconds"]
    if sys.platform == "linux":
        assert all(
            0 < stage["anonymous"] < stage["mebibytes"] for stage in found["stages"].values()
        )


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_real_run_writes_the_tables_and_continues(project):
    command = ("python", "-m", "benchmarks", "--seeds", "1", "--recipes", "page,default")
    project.run(*command, "--parts", "recipes", "--docs")
    records = (project.folder / "reports/benchmark.jsonl").read_text()
    report = (project.folder / "reports/benchmark.md").read_text()
    found = read_cells(report)
    assert float(found["the course page's script"][0]) > 80  # really trained, on 1,500 images
    assert {"`params.yaml`", *(f"`{stage}`" for stage in STAGES)} <= found.keys()
    documented = "".join(page.read_text() for page in (project.folder / "docs").rglob("*.md"))
    written = report.split("\n\n")[1:]  # without the title
    assert written[0].startswith("Measured on commit ")
    for table in written:
        assert table.strip() in documented
    second = project.run(*command, "--parts", "recipes").stdout
    assert second.count("already measured") == 2
    assert (project.folder / "reports/benchmark.jsonl").read_text() == records


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.xdist_group("test_benchmark")
def test_workers_send_their_sums_in_each_step(here):
    """Each of two workers sends the sum of its gradients, 4 bytes a weight, and little else."""
    parameters = (here / "params.yaml").read_text().replace("batch_size: 256", "batch_size: 8")
    with benchmark.copy_project(parameters) as project:
        found = benchmark.measure_workers(2, project, 1)
    assert found["seconds"] > 0
    assert 4 * found["weights"] < found["bytes"] < 4 * found["weights"] + 4_000
    assert [*found["exchanges"]] == ["100000", "1000000", "10000000"]
    assert 0 < found["exchanges"]["100000"] < found["exchanges"]["10000000"]


@pytest.mark.slow
@pytest.mark.xdist_group("test_benchmark")
def test_runs_of_a_sweep_are_timed(here, monkeypatch):
    monkeypatch.setattr(benchmark, "RUNS", 1)
    with benchmark.copy_project((here / "params.yaml").read_text()) as project:
        found = benchmark.measure_sweep(1, project, 1)
        assert "The first row is the committed" in (project / "reports/sweep.md").read_text()
    assert found["runs"] == 1
    assert found["seconds"] > 1


def test_every_table_has_a_place_in_the_docs():
    text = "".join(page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))
    for part, tables_of_part in benchmark.PARTS.items():
        for name in (f"{part} machine", *tables_of_part):
            assert text.count(f"<!-- benchmark: {name} -->") == 1
