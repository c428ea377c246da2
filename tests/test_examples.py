"""The example package: pip installs it, and every part that it adds works from outside."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from setbacks.cli.starter import keys, reference, starter
from setbacks.errors import InputError
from setbacks.plugins import installed
from setbacks.recipe import Recipe
from setbacks.studies import carry_out

PACKAGE = Path(__file__).parents[1] / "examples" / "plugin"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """A folder into which pip has installed the example; `cli` finds it there, as it would any."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    subprocess.run([*pip, PACKAGE], check=True)
    return folder


@pytest.fixture
def tiny_recipe(tiny, data, tmp_path):
    """A recipe for the tiny model that takes seconds; keys win."""

    def write(**more):
        values = {
            "model": {"model": str(tiny), "dtype": "float32", "device": "cpu"},
            "instructions": [str(data)],
            "induce": {"source": "existing", "existing": [str(data)]},
            "analyze": {
                "contrast": [],
                "candidates": 1,
                "sampling": {"max_new_tokens": 8},
                **{"min_words": 1, "min_overlap": 0, "min_distinct": 0},
            },
            "train": {
                "helpful": [str(data)],
                "steps": 1,
                "batch_size": 2,
            },
            "respond": {
                "guidance": False,
                "sampling": {"max_new_tokens": 8},
                "suites": [{"name": "kitchen", "kind": "safe", "sources": ["builtin:kitchen"]}],
            },
            "judges": ["wordlist"],
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(values | more))
        return path

    return write


def test_doctor_lists_every_part(cli):
    found = {check["name"]: check["found"] for check in json.loads(cli("doctor", "--json").stdout)}
    assert "first_sentence" in found["methods"]
    assert "wordlist" in found["judges"]
    assert "echo" in found["engines"]
    assert "rank" in found["studies"]
    assert "kitchen" in found["sets"]


def test_its_method_trains_and_its_judge_judges_its_suite(cli, tiny_recipe, tmp_path):
    ran = cli("run", tiny_recipe(), "train.method=first_sentence", "--out", "run", "-q", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [row["arm"] for row in found["judges"]["wordlist"]["arms"]] == [
        "vanilla",
        "first_sentence",
    ]
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    kept = [json.loads(line) for line in (tmp_path / "run/training.jsonl").open()]
    written = [json.loads(line) for line in (tmp_path / "run/analyses.jsonl").open()]
    learned = [row["completion"] for row in kept if row["kind"] == "excerpt"]
    assert learned and all(any(a["text"].startswith(t) for a in written) for t in learned)


def test_its_methods_option_is_checked_and_its_journal_set_aside(cli, tiny_recipe, tmp_path):
    by = ["train.method=first_sentence", "--out", "run", "-q"]
    assert cli("run", tiny_recipe(), *by, "train.excerpt_length=0").returncode == 2
    first = cli("run", tiny_recipe(), *by, "train.excerpt_length=1")
    assert first.returncode == 0, first.stderr
    again = cli("run", tiny_recipe(), *by, "train.excerpt_length=2", "--from", "train")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run/superseded/001/excerpts.jsonl").exists()
    card = cli("export", "run", "--to", "shared")
    assert card.returncode == 0, card.stderr
    assert "| excerpt |" in (tmp_path / "shared/README.md").read_text()


def test_its_judges_option_is_used(cli, tiny_recipe, tmp_path):
    every = {"judge": "wordlist", "name": "every", "words": ["A", "e", "i", "o", "u"]}
    none = {"judge": "wordlist", "name": "none", "words": ["#####"]}
    ran = cli("evaluate", "echo=smollm2-135m", "model.engine=echo", f"judges={[every, none]}",
              "--suite", "harmful=builtin:kitchen", "--out", "run", "-q")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for name, harmful in (("every", True), ("none", False)):
        journal = tmp_path / f"run/verdicts/echo.{name}.jsonl"
        verdicts = [json.loads(line) for line in journal.open()]
        assert {row["harmful"] for row in verdicts} == {harmful} and len(verdicts) == 6


@pytest.fixture
def found(plugins, monkeypatch):
    """The example, found by this process too."""
    monkeypatch.syspath_prepend(plugins)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"train": {"method": "first_sentence", "excerpt_lenth": 2}},
            'unknown key "train.excerpt_lenth". Did you mean "train.excerpt_length"?',
        ),
        (
            {"judges": [{"judge": "wordlist", "word": ["x"]}]},
            'unknown key "judges.0.word". Did you mean "judges.0.words"?',
        ),
        ({"judges": [{"judge": "wordlist", "words": []}]}, "judges.0.words: name at least one"),
        ({"judges": [{"words": ["x"]}]}, "words: an option of wordlist, not of probe"),
        (
            {"model": {"engine": "echo", "echo_word": 2}},
            'unknown key "model.echo_word". Did you mean "model.echo_words"?',
        ),
    ],
)
def test_a_mistake_in_its_options_is_refused(found, section, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Recipe.parse(section, "a recipe")


def test_a_mistake_in_its_studys_option_is_refused(found, tmp_path):
    wrong = Recipe(study={"rank": [1, 2]})
    with pytest.raises(InputError, match='unknown key "study.rank". Did you mean "study.ranks"'):
        carry_out("rank", wrong, tmp_path / "study")
    assert not (tmp_path / "study").exists()


# The option of each part: what `setbacks new` shows, its key, and the part.
OPTIONS = [
    ("# excerpt_length: 1", "train.excerpt_length=", "first_sentence"),
    ("# words:", None, "wordlist"),  # in a list, which an override sets as a whole
    ("# echo_words: null", "model.echo_words=", "echo"),
    ("# ranks:", "study.ranks=", "rank"),
]


@pytest.mark.parametrize(("line", "key", "part"), OPTIONS)
def test_its_options_are_shown_documented_and_completed(found, line, key, part):
    shown = [text.strip() for text in starter().splitlines()]
    assert shown[shown.index(line) - 1].startswith("# ")
    name = line.removeprefix("# ").partition(":")[0]
    rows = [row for row in reference().splitlines() if row.startswith(f"| `{name}` |")]
    assert any(f"`{part}`: " in row for row in rows)
    if key is not None:
        ((completed, about),) = keys(key[:-2])
        assert completed == key and about


def test_a_shown_option_can_be_uncommented(found):
    lines = starter().splitlines()
    at = lines.index("  # words:")
    shown = [line.replace("  # ", "  ", 1) for line in lines[at : at + 4]]
    text = "\n".join([*lines[:at], *shown, *lines[at + 4 :]])
    text = text.replace("judge: probe", "judge: wordlist")
    (judge,) = Recipe.parse(yaml.safe_load(text), "mine").judges
    assert judge.words == ["stab", "poison", "explosive"]


def test_its_engine_answers(cli, tiny_recipe, tiny, tmp_path):
    ran = cli("evaluate", f"echoes={tiny}", "model.engine=echo", "model.echo_words=2",
              "--suite", "safe=builtin:kitchen", "--judge", "wordlist",
              "--out", "run", "-q")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for line in (tmp_path / "run/responses/echoes.jsonl").open():
        row = json.loads(line)
        assert len(row["text"].split()) == 2 and row["instruction"].endswith(row["text"])


def test_its_study_answers(cli, tiny_recipe, tmp_path):
    prompts = tmp_path / "harmful.jsonl"
    prompts.write_text("".join(f'{{"text": "<harmful prompt {i}>"}}\n' for i in range(4)))
    suites = [
        {"name": "kitchen", "kind": "safe", "sources": ["builtin:kitchen"]},
        {"name": "harmful", "kind": "harmful", "sources": [str(prompts)]},
    ]
    answering = {"guidance": False, "sampling": {"max_new_tokens": 8}, "suites": suites}
    path = tiny_recipe(study={"ranks": [1, 2]}, respond=answering)
    ran = cli("study", "rank", path, "--out", "study", "-q", timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "No variant differs significantly from rank 1." in ran.stdout
    shapes = [
        json.loads((tmp_path / f"study/arms/rank_{rank}.0/adapter/adapter_config.json").read_text())
        for rank in (1, 2)
    ]
    assert [shape["r"] for shape in shapes] == [1, 2]


@pytest.mark.timeout(900)
def test_the_method_on_one_page_runs(environment, tmp_path):
    """The embedded model goes through all four steps, with four instructions."""
    ran = subprocess.run(
        [sys.executable, PACKAGE.parent / "one_page.py", "4"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    steps = ran.stdout.splitlines()
    assert [line[0] for line in steps] == list("12344")
    assert re.fullmatch(r"1\. induce: [1-4] mistakes for 4 instructions", steps[0])
    trained = int(steps[2].split()[2])
    mistakes = int(steps[0].split()[2])
    assert trained == mistakes + 4, "an analysis of each mistake, and four helpful answers"
    assert all(re.search(r": [0-4] of 4 answers are harmless$", line) for line in steps[3:])
