import re
import shutil
import subprocess

import pandas as pd
import pytest
from helpers.project import ROOT
from ruamel.yaml import YAML

from stages.core.errors import StageError
from stages.core.files import read_json
from stages.core.paths import DATASET, LOCK, METRICS
from tools.model_card import CARD, count_classes, format_interval, make_card


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A clone of the last commit, without anything from DVC's cache."""
    folder = tmp_path_factory.mktemp("model_card") / "committed"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture
def copy(committed, tmp_path):
    return shutil.copytree(committed, tmp_path / "copy")


def test_committed_card_matches_the_committed_results(committed):
    card = (committed / CARD).read_text()
    assert card == make_card(committed), "run `make model-card`"
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)
    assert len(shown) == 2
    assert [image for image in shown if not (committed / CARD.parent / image).is_file()] == []


def test_words_of_a_person_stay(copy):
    """Whatever else has changed in the page."""
    text = (copy / CARD).read_text()
    words = "Written by **me** `here`.\n\nTwice | <b>.\n"
    mine = re.sub("(<!-- words on the data: .*-->\n)", rf"\g<1>{words}", text)
    assert mine != text
    (copy / CARD).write_text(mine.replace("## Accuracy", "## Precision"))
    assert make_card(copy) == mine
    (copy / CARD).unlink()
    assert make_card(copy) == text


def test_metadata_has_the_licence_library_dataset_and_metrics(committed):
    text = (committed / CARD).read_text()
    found = YAML(typ="safe").load(text.split("---\n")[1])
    keys = ("license", "library_name", "pipeline_tag", "metrics")
    expected = ["mit", "keras", "image-classification", ["accuracy"]]
    assert [found[key] for key in keys] == expected
    (model,) = found["model-index"]
    (result,) = model["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    test = read_json(committed / METRICS)["test"]
    assert values == {name: test[name] for name in ("accuracy", "loss")}
    assert result["dataset"]["name"] == read_json(committed / DATASET)["title"]


def test_model_hub_reads_the_metadata(committed):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(committed / CARD).data
    accuracy, loss = data.eval_results
    assert (data.license, data.library_name) == ("mit", "keras")
    assert (accuracy.metric_type, loss.metric_type) == ("accuracy", "loss")


def test_lock_without_a_result_is_rejected(committed, tmp_path):
    """As after `dvc repro preprocess`, before the other stages have run."""
    text = (committed / LOCK).read_text()
    (tmp_path / LOCK).write_text(text[: text.index("  evaluate:")])
    with pytest.raises(StageError, match=f"{LOCK} does not record .*; run `make repro`"):
        make_card(tmp_path)


def test_results_of_another_run_are_rejected(copy):
    (copy / METRICS).write_text("{}")
    with pytest.raises(StageError, match=f"{METRICS}: not the file that dvc.lock records; run"):
        make_card(copy)
    (copy / METRICS).unlink()
    with pytest.raises(StageError, match=f"{METRICS}: not found; run `make repro`"):
        make_card(copy)


def test_class_is_counted_by_hand():
    actual = ["a", "a", "a", "a", "b", "b"]
    predicted = ["a", "c", "b", "c", "a", "b"]
    predictions = pd.DataFrame({"actual": actual, "predicted": predicted})
    first, _, last = count_classes(["a", "b", "c"], predictions)
    assert first == {
        "name": "a",
        "support": 4,
        "predicted": 2,
        "correct": 1,
        "recall": 0.25,
        "confused": [("c", 2), ("b", 1)],
    }
    assert (last["support"], last["recall"], last["predicted"]) == (0, 0, 2)


def test_interval_is_wilsons():
    # z = 1.95996: 8 of 10 gives 0.7167 +- 0.2266 by Wilson's formula.
    assert format_interval(8, 10) == "80.00% (49.02% to 94.33%)"
    assert format_interval(0, 0) == "-"
