"""`setbacks list`: what can be named, with a line on each."""

import json

import pytest

from setbacks.plugins import installed


def test_every_part_is_listed_with_what_it_is(typed):
    listed = json.loads(typed("list", "--json").stdout)
    for kind in ("methods", "judges", "engines", "studies"):
        assert listed[kind].keys() == installed(kind).keys()
        assert all(len(summary) > 10 for summary in listed[kind].values())
    assert "xstest" in listed["presets"] and "redteam" in listed["sets"]


def test_a_study_without_a_name_lists_them(typed):
    shown = typed("study").stdout
    assert all(name in shown for name in installed("studies"))
    assert "rlhf" not in shown


@pytest.mark.parametrize(
    ("word", "says"), [("mehtods", 'Did you mean "methods"?'), ("x", "Available")]
)
def test_an_unknown_kind_is_told(typed, word, says):
    shown = typed("list", word)
    assert shown.returncode == 2 and says in shown.stderr
