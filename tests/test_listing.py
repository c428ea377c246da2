"""`setbacks list`: what can be named, with a line on each."""

import json
import re
import subprocess
from collections import Counter

import pytest

from setbacks.data.presets import SETS
from setbacks.data.sources import builtin_sets
from setbacks.plugins import installed


def test_every_part_is_listed_with_what_it_is(cli_in_process):
    listed = json.loads(cli_in_process("list", "--json").stdout)
    for kind in ("methods", "judges", "engines", "studies"):
        assert listed[kind].keys() == installed(kind).keys()
        assert all(len(summary) > 10 for summary in listed[kind].values())
    assert "xstest" in listed["presets"]
    assert listed["sets"].keys() == builtin_sets().keys()
    assert "84" in listed["sets"]["redteam"]


def test_defaults_are_marked(cli_in_process):
    listed = json.loads(cli_in_process("list", "--json").stdout)
    marked = [
        name
        for kind in listed.values()
        for name, summary in kind.items()
        if summary.endswith("(default)")
    ]
    assert sorted(marked) == ["local", "mistake_distillation", "probe"]


def test_the_notes_on_the_projects_sets_count_their_prompts():
    for name, file in builtin_sets().items():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for split, n in Counter(row["split"] for row in rows).items():
            assert re.search(rf"\b{split}: {n}\b", SETS[name]), (name, split)


def test_a_study_without_a_name_lists_them(cli_in_process):
    shown = cli_in_process("study").stdout
    assert all(name in shown for name in installed("studies"))
    assert "rlhf" not in shown


@pytest.mark.parametrize(
    ("command", "kind"), [("study", "studies"), ("compare", "methods"), ("calibrate", "judges")]
)
def test_help_ends_with_the_parts_that_a_command_names(cli_in_process, command, kind):
    """With the line that `setbacks list` has on each."""
    listed = cli_in_process("list", kind).stdout.rstrip()
    assert cli_in_process(command, "--help").stdout.rstrip().endswith(listed)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("setbacks calibrate prob", '"probe":"Gives the probability'),
        ("setbacks run --from pre", "preflight"),
        ("setbacks list stu", "studies"),
    ],
)
def test_a_shell_completes_names_with_what_they_are(command, environment, words, completed):
    asked = {"_SETBACKS_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    ran = subprocess.run(command, env=environment | asked, capture_output=True, text=True)
    assert completed in ran.stdout


@pytest.mark.parametrize(
    ("word", "says"), [("mehtods", 'Did you mean "methods"?'), ("x", "Available")]
)
def test_an_unknown_kind_is_told(cli_in_process, word, says):
    shown = cli_in_process("list", word)
    assert shown.returncode == 2 and says in shown.stderr
