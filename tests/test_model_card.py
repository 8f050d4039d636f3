import re
import shutil
import subprocess

import pandas as pd
import pytest
from helpers.project import ROOT

from stages.core.errors import StageError
from stages.core.paths import LOCK, METRICS
from tools.model_card import CARD, count_class, format_interval, make_card


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A clone of the last commit, without anything from DVC's cache."""
    folder = tmp_path_factory.mktemp("model_card") / "committed"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def test_committed_card_matches_the_committed_results(committed):
    assert (committed / CARD).read_text() == make_card(committed), "run `make model-card`"


def test_images_of_the_card_are_in_git(committed):
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (committed / CARD).read_text())
    assert len(shown) == 2
    for image in shown:
        assert (committed / CARD.parent / image).is_file()


def test_lock_without_a_result_is_rejected(committed, tmp_path):
    """As after `dvc repro preprocess`, before the other stages have run."""
    text = (committed / LOCK).read_text()
    (tmp_path / LOCK).write_text(text[: text.index("  evaluate:")])
    with pytest.raises(StageError, match=f"{LOCK} does not record .*; run `make repro`"):
        make_card(tmp_path)


def test_results_of_another_run_are_rejected(committed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(committed, other, ignore=shutil.ignore_patterns(".git"))
    (other / METRICS).write_text("{}")
    with pytest.raises(StageError, match=f"{METRICS}: not the file that dvc.lock records; run"):
        make_card(other)
    (other / METRICS).unlink()
    with pytest.raises(StageError, match=f"{METRICS}: not found; run `make repro`"):
        make_card(other)


def test_class_is_counted_by_hand():
    actual = ["a", "a", "a", "a", "b", "b"]
    predicted = ["a", "c", "b", "c", "a", "b"]
    predictions = pd.DataFrame({"actual": actual, "predicted": predicted})
    assert count_class("a", predictions) == {
        "name": "a",
        "support": 4,
        "predicted": 2,
        "correct": 1,
        "recall": 0.25,
        "confused": [("c", 2), ("b", 1)],
    }


def test_interval_is_wilsons():
    # z = 1.95996: 8 of 10 gives 0.7167 +- 0.2266 by Wilson's formula.
    assert format_interval(8, 10) == "80.00% (49.02% to 94.33%)"
    assert format_interval(0, 0) == "-"
