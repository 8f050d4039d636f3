"""Names from outside in Markdown and HTML."""

import re

import pytest

from tools.shared.report import escape, format_table, render

PLAIN = [
    *("test.accuracy", "[1, 2]", '"cosine"', "main → longer", "T-shirt/top", "feature/한글-2"),
    *("5 images fixed, 0 broken (McNemar's exact test, p = 1)", "1e-05", "99.6 % ± 0.1", "a_b"),
    *("run `dvc repro` there", "model.seed is 5 in params.yaml and 2 in dvc.lock", ""),
]
HOSTILE = [
    *("@octocat", "a @b/c", "#1", "a/b#1", "GH-12", "www.example.com", "https://example.com"),
    *("a@b.c", "![x](//e.x/p.png)", "[x](//e.x)", "[x][y]", "[x]: //e.x", "<img src=x>", "<!--"),
    *("&lt;", "`", "``", "`a``b`", "`@a` @b", "` @b", "@b `", "\\`@b`", "*a*", "_a_", "~~a~~"),
    *("$a$", ":+1:"),
]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_text_stays(name):
    assert escape(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_special_text_becomes_one_code_span(name):
    """A span ends at the next run of as many backticks, and loses a space at each end."""
    fence, inside = re.fullmatch(r"(`+)(.*?)\1", escape(name)).groups()
    assert fence not in re.findall("`+", inside)
    assert (inside[1:-1] if "`" in (name[0], name[-1]) else inside) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"`a\nb`"),
        ("\x1b[31m", r"`\x1b[31m`"),
        ("\u202e", r"`\u202e`"),
        ("a|b", r"a\|b"),
        ("@a|b", r"`@a\|b`"),
        ("a\\|@b", r"`a\\x7c@b`"),
    ],
)
def test_name_stays_in_its_line_and_cell(name, shown):
    assert escape(name) == shown


def test_table_escapes_titles_and_cells():
    lines = format_table([{"#1": "@a", "b": "1.50"}, {"#1": "a|b", "b": "2"}], "lr").splitlines()
    assert lines == [
        "| `#1`   |    b |",
        "|:-------|-----:|",
        "| `@a`   | 1.50 |",
        r"| a\|b   |    2 |",
    ]
    assert format_table([]) == ""


def test_page_shows_names_as_they_are():
    report = {
        "heading": "",
        "verdict": {"summary": "", "evidence": "", "direction": "same"},
        "base": {"name": "<img src=x>\u202e", "commit": None},
        "head": {"name": "a\nb", "commit": None},
        **dict.fromkeys(("runs", "count", "validation_differs"), 0),
        **{"shown": 0, "with_images": False, "parameters": [], "code": ["<b>"], "metrics": []},
        **{key: [] for key in ("stale", "fixed", "broken", "classes")},
    }
    page = render("compare.html.jinja", report)
    assert r"&lt;img src=x&gt;\u202e → a\nb" in page
    assert "&lt;b&gt;" in page
