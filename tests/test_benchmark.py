"""The benchmark's tables of results made by hand, what it measures anew, and a small real run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT, STAGES, Project

from stages.core.errors import StageError
from stages.sources import idx
from tools.benchmark import __main__ as benchmark
from tools.benchmark import tables

TIMED = ROOT / "tools/benchmark/timed.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project with a tiny convolutional network and prepared digits."""
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
    """The same, as the current folder."""
    monkeypatch.chdir(project.folder)
    return project.folder


def runs(accuracies, seconds, images, **more):
    return [
        {
            "accuracy": accuracy,
            "fit": fit,
            "all": fit + 20,
            "images": images,
            "mebibytes": 1000.0,
            **more,
        }
        for accuracy, fit in zip(accuracies, seconds, strict=True)
    ]


def cells(markdown):
    """Return the cells of a Markdown table's rows by what the first says."""
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_recipes_against_the_page_by_hand():
    results = {
        "recipes": {
            "page": runs([0.97, 0.98, 0.975], [40, 30, 20], 3000),
            "fast": runs([0.99, 0.98, 1.0], [10, 60, 15], 4500),
        }
    }
    found = cells(tables.recipes(results))
    # Medians of 30 and 15 seconds, in all 50 and 35; deviations by n - 1.
    page, fast = found["the course page's script"], found["recipe `fast`"]
    assert page == ["97.50 ± 0.50", "30.0 (1.00)", "50.0 (1.00)", "100", "1,000"]
    assert fast == ["99.00 ± 1.00", "15.0 (0.50)", "35.0 (0.70)", "300", "1,000"]
    del results["recipes"]["page"]
    assert cells(tables.recipes(results))["recipe `fast`"][1:3] == ["15.0", "35.0"]


def test_costs_by_hand_with_goals_missed_and_met():
    default = runs([0.99] * 3, [10, 60, 15], 4500, status=2.0, nothing=2.6, plot=5.0)
    steps = [
        {
            "project": {"images_a_second": 90.0},
            "PyTorch, default": {"images_a_second": 50.0},
            "PyTorch, channels_last": {"images_a_second": 100.0},
        }
    ]
    fitting = {
        "fit": [{"fit": 11.0, "bare": 10.0}],
        "pins": [{"pinned": 12.0, "like": 10.0, "free": 24.0}],
    }
    found = cells(
        tables.costs(
            {
                "recipes": {"page": runs([0.97], [50], 3000), "default": default},
                "fit": fitting,
                "step": {"against": steps},
            }
        )
    )
    assert [*found.values()][2:] == [
        ["20 s", "at most 25"],
        ["0.5 times", "at most 2.5"],
        ["1.3 times", "at most 1.2: missed"],
        ["5 s", "at most 6"],
        ["1000 MiB", "at most 1536"],
        ["1.1 times", "at most 1.1"],
        ["1.2 times", "at most 1.05: missed"],
        ["0.5 times", ""],
        ["0.9 times", "at least 1: missed"],
    ]


def test_step_by_hand():
    project = {"images_a_second": 50.0, "operations": 2_000_000_000, "peak": 2e11}
    project |= {"batch_size": 8, "threads": 2}
    theirs = {"images_a_second": 25.0, "version": "9.9"}
    markdown = tables.step({"step": {"x": [{"project": project, "PyTorch, default": theirs}]}})
    assert cells(markdown)["project"] == ["50", "100", "50%"]
    assert cells(markdown)["PyTorch 9.9, default"] == ["25", "50", "25%"]
    assert "2000.0 million operations an image; the peak, 200 GFLOP/s" in markdown


def test_growth_tells_a_straight_line_from_another():
    def grown(seconds):
        return {
            str(factor): [{"images": 1000 * factor, "fit": value}]
            for factor, value in zip((1, 2, 4, 8), seconds, strict=True)
        }

    (slope, start), deviation = tables.straight_line(grown([3, 5, 9, 17]), "fit")
    assert (slope, start, deviation) == pytest.approx((0.002, 1, 0))
    _, deviation = tables.straight_line(grown([1, 4, 16, 64]), "fit")
    assert deviation > 0.5


def test_memory_and_exit_code_are_the_commands_own(tmp_path):
    ballast = bytearray(300 * 2**20)  # of this process, and must not count
    codes = {"small": "pass", "large": "bytearray(200 * 2**20)", "failing": "exit(3)"}
    found = {}
    for name, code in codes.items():
        command = [sys.executable, TIMED, tmp_path / "record", name, sys.executable, "-c", code]
        found[name] = subprocess.run(command, check=False).returncode
    lines = map(json.loads, (tmp_path / "record").read_text().splitlines())
    peak = {line["name"]: line["mebibytes"] for line in lines}
    assert found == {"small": 0, "large": 0, "failing": 3}
    del ballast
    assert peak["small"] < 100 < 200 < peak["large"] < 300


def test_what_is_known_is_not_measured_again_and_what_changed_is(here, tmp_path):
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
        return benchmark.measured([trial], 2, {"machine": machine}, tmp_path / "records")

    stop = 2
    with pytest.raises(StageError, match="interrupted"):
        run()
    assert measured == [1]
    stop = None
    results = {"recipes": {"x": [{"seconds": 1.0}, {"seconds": 2.0}]}}
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


def test_slow_recipes_take_two_seeds_and_other_parts_one():
    def seeds(part, name):
        return benchmark.Trial(part, name, "", (), lambda *_: {}).seeds(5)

    assert [seeds("recipes", name) for name in ("fast", "page", "best")] == [5, 5, 2]
    assert seeds("growth", "4 times the digits") == 1
    assert benchmark.Trial("recipes", "best", "", (), lambda *_: {}).seeds(1) == 1


def test_the_fastest_turn_counts(monkeypatch, tmp_path):
    rates, seconds = iter([50.0, 90.0, 70.0]), iter([9.0, 5.0, 4.0, 7.0, 6.0, 4.0, 8.0, 5.0, 3.0])

    def timed(project, name, *command):
        if command[-1] == "step":
            return {"step": {"images_a_second": next(rates)}}
        return {"fit": {"seconds": next(seconds)}} if "train" in command else {}

    monkeypatch.setattr(benchmark, "timed", timed)
    assert benchmark.step(None, tmp_path, 1) == {"project": {"images_a_second": 90.0}}
    assert benchmark.pins(tmp_path, 1) == {"pinned": 7.0, "like": 5.0, "free": 3.0}
    assert [*rates, *seconds] == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--recipes",
            "error: no recipe 'nothing' to measure; there are page, mnist_convnet, default",
        ),
        ("--parts", "error: no part 'nothing' to measure; there are recipes, fit, step, growth"),
    ],
)
def test_unknown_name_gets_one_line(here, option, message):
    command = [sys.executable, "-m", "tools.benchmark", option, "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_operations_by_hand(model_with, tensorflow):
    from stages.model import architectures
    from tools.benchmark import pieces

    model = architectures.build(model_with(crop=2), (28, 28), 10)
    # Values times positions: 5x5x1x4 in 20x20, 3x3x4x6 in 8x8; then 8x8x6 to 8, and 8 to 10.
    forward = [2 * 100 * 400, 2 * 216 * 64, 2 * 384 * 8, 2 * 8 * 10]
    assert pieces.operations(model) == 3 * sum(forward) - forward[0]


def test_pieces_measure_the_small_network(here, tensorflow, tmp_path):
    from tools.benchmark import pieces

    pieces.step(tmp_path / "record")
    pieces.fit(tmp_path / "record")
    raw = here / "data/raw"
    before = {path: path.read_bytes() for path in raw.iterdir()}
    try:
        pieces.grow(tmp_path / "record", "2")
        images = idx.read(raw / "train-images-idx3-ubyte", 3)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    lines = map(json.loads, (tmp_path / "record").read_text().splitlines())
    found = {line["name"]: line for line in lines}
    kinds = [layer["kind"] for layer in found["step"]["layers"]]
    assert kinds[:4] == ["InputLayer", "Reshape", "Conv2D", "MaxPooling2D"]
    assert found["step"]["trainable"] == 100 + 8 + 216 + 12 + 600 * 8 + 16 + 90
    assert found["step"]["peak"] > found["step"]["images_a_second"] * found["step"]["operations"]
    assert min(found["fit"]["seconds"], found["bare"]["seconds"]) > 0
    assert found["grow"]["images"] == len(images) == 3000
    assert (images[:1500] != images[1500:]).any(axis=(1, 2)).all()


def test_unpinned_training_leaves_the_stages_pins_out(project, tmp_path):
    record = tmp_path / "record"
    code = (
        "import sys, os; from tools.benchmark import pieces;"
        f"pieces.train(pieces.Path({str(record)!r}), 'like');"
        "import tensorflow as tf; from tensorflow.python.framework import config;"
        "print(config.is_op_determinism_enabled(), os.environ.get('ONEDNN_MAX_CPU_ISA'),"
        "os.environ.get('KERAS_BACKEND'), tf.config.threading.get_intra_op_parallelism_threads(),"
        "tf.config.threading.get_inter_op_parallelism_threads())"
    )
    printed = project.run("python", "-c", code).stdout
    assert printed.splitlines()[-1] == "False AVX2 None 1 2"
    assert json.loads(record.read_text())["images"] == 1350


def test_real_run_writes_the_tables_and_goes_on_from_them(project):
    command = ("python", "-m", "tools.benchmark", "--seeds", "1", "--recipes", "page,default")
    project.run(*command, "--parts", "recipes", "--docs")
    records = (project.folder / "reports/benchmark.jsonl").read_text()
    report = (project.folder / "reports/benchmark.md").read_text()
    found = cells(report)
    assert float(found["the course page's script"][0]) > 80  # a real training of 1,500 digits
    assert {"`params.yaml`", *(f"`{stage}`" for stage in STAGES)} <= found.keys()
    documented = (project.folder / "docs/benchmark.md").read_text()
    for table in report.split("\n\n")[2:]:
        assert table.strip() in documented
    second = project.run(*command, "--parts", "recipes").stdout
    assert second.count("measured before") == 2
    assert (project.folder / "reports/benchmark.jsonl").read_text() == records
