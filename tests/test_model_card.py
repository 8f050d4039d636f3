import re
import shutil
import subprocess

import pandas as pd
import pytest
from helpers.project import ROOT

from stages.core.errors import StageError
from tools.model_card import CARD, METRICS, card, class_record, interval, plain


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The last commit, without what only DVC has."""
    folder = tmp_path_factory.mktemp("model_card") / "committed"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def test_the_committed_card_is_of_the_committed_run(committed):
    assert (committed / CARD).read_text() == card(committed), "run `make model-card`, and commit it"


def test_what_the_card_shows_is_in_git(committed):
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (committed / CARD).read_text())
    assert len(shown) == 2
    for picture in shown:
        assert (committed / CARD.parent / picture).is_file()


def test_results_of_another_run_are_refused(committed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(committed, other, ignore=shutil.ignore_patterns(".git"))
    (other / METRICS).write_text("{}")
    with pytest.raises(StageError, match=f"{METRICS}: not what dvc.lock records; run `make repro`"):
        card(other)
    (other / METRICS).unlink()
    with pytest.raises(StageError, match=f"{METRICS}: not found; run `make repro`"):
        card(other)


def test_a_class_is_counted_by_hand():
    actual = ["a", "a", "a", "a", "b", "b"]
    predicted = ["a", "c", "b", "c", "a", "b"]
    predictions = pd.DataFrame({"actual": actual, "predicted": predicted})
    assert class_record("a", predictions) == {
        "name": "a",
        "support": 4,
        "predicted": 2,
        "right": 1,
        "recall": 0.25,
        "taken": [("c", 2), ("b", 1)],
    }


def test_an_interval_is_wilsons_and_of_nothing_there_is_none():
    # z = 1.95996: 8 of 10 gives 0.7167 +- 0.2266 by Wilson's formula.
    assert interval(8, 10) == "80.00 % (49.02 % to 94.33 %)"
    assert interval(0, 0) == "-"


def test_a_class_name_is_shown_as_it_is_in_a_table():
    assert plain("T-shirt/top") == "T-shirt/top"
    assert plain("a|b_c*d<e>") == r"a\|b\_c\*d\<e\>"
