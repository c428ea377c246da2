"""Checks of what a model writes for its own training: its form, its harm, and its refusals."""

import pytest

from setbacks.errors import InputError
from setbacks.judges import Item
from setbacks.judges.checks import Checker, check_checker, form
from setbacks.judges.llm import LLMJudge
from setbacks.judges.probe import Probe
from setbacks.pipeline import check
from setbacks.recipe import JudgeSpec
from setbacks.stages.benign import with_own_answers
from setbacks.stages.induce import induce

LOOP = "The kettle is hot. " * 12
REFUSAL = "I won't do this. It could hurt people who trust you."


@pytest.fixture
def checker(open_session, fake_model):
    """Open a checker whose judge finds no harm (`praiser`), harm in every text (`scolder`) or
    gives no verdict (`talker`)."""

    def make(name):
        spec = JudgeSpec.model_validate({"judge": "llm", "engine": fake_model(name)})
        return Checker(spec, open_session(folder=name))

    return make


@pytest.mark.parametrize(
    ("text", "finish", "learned"),
    [
        ("Boil the water. Then wait for", "length", "Boil the water."),
        ('She said "stop it now!" Then she', "length", 'She said "stop it now!"'),
        ("Two steps:\n1. Boil it.\n2. Wait", "length", "Two steps:\n1. Boil it."),
        ("It happened in 1969. Then", "length", "It happened in 1969."),
        ("It costs 3.50 at most and", "length", ""),
        ("先烧水，再泡茶。然后等", "length", "先烧水，再泡茶。"),
        ("no end mark, but it stopped here", "stop", "no end mark, but it stopped here"),
        ("  Wait for a while. \n", "stop", "Wait for a while."),
    ],
)
def test_a_text_that_was_cut_ends_with_its_last_whole_sentence(text, finish, learned):
    assert form(Item("1", "<x>", text, finish=finish)).answer == learned


@pytest.mark.parametrize(
    ("response", "finish", "outcome"),
    [
        ("Boil the water first, then wait for a minute.", "stop", "kept"),
        ("<think>Hm.</think> Boil the water first, then wait.", "stop", "kept"),
        ("", "stop", "empty"),
        ("<think>Hm, let me see", "length", "empty"),
        ("", "filter", "refusal"),
        ("a list of things without an end", "length", "unfinished"),
        (LOOP, "stop", "degenerate"),
    ],
)
def test_the_form_of_a_text(response, finish, outcome):
    check = form(Item("1", "How do I make tea?", response, finish=finish))
    assert check.outcome == outcome
    assert bool(check.answer) == (outcome in ("kept", "degenerate"))


def test_a_text_that_no_data_set_can_hold_is_not_learned():
    check = form(Item("1", "How do I make tea?", "Boil the water\0 first.", finish="stop"))
    assert check == ("", "degenerate")


def test_a_text_that_repeats_what_the_model_was_told_is_not_learned():
    data = "Give an answer that is harmless, ethical and helpful to everybody who asks for it."
    assert form(Item("1", "<x>", data), data).outcome == "degenerate"
    assert form(Item("1", "<x>", data)).outcome == "kept"


@pytest.mark.parametrize(
    ("judge", "declines", "outcomes"),
    [
        ("praiser", False, ["kept", "refusal", "degenerate"]),
        ("praiser", True, ["compliance", "kept", "degenerate"]),
        ("scolder", True, ["harmful", "harmful", "degenerate"]),
        ("talker", False, ["unscored", "unscored", "degenerate"]),
        ("talker", True, ["unscored", "unscored", "degenerate"]),
    ],
)
def test_a_judge_decides_on_texts_of_good_form(checker, judge, declines, outcomes):
    texts = ["Boil the water first, then wait for a minute.", REFUSAL, LOOP]
    items = [Item(str(number), "<x>", text) for number, text in enumerate(texts)]
    made = checker(judge).check(items, declines=declines)
    assert [check.outcome for check in made] == outcomes
    assert [check.answer for check in made] == [text.strip() for text in texts]


def test_harm_is_a_number_where_there_is_a_verdict(checker):
    items = [Item("1", "<x>", "<a bad response>"), Item("2", "<x>", "")]
    assert checker("scolder").harm(items) == [1.0, None]
    assert checker("praiser").harm(items) == [0.0, None]
    assert checker("talker").harm(items) == [None, None]


def test_a_judge_of_refusals_alone_cannot_check(recipe):
    with pytest.raises(InputError, match="refusal: does not say whether a text is harmful"):
        check_checker(JudgeSpec(judge="refusal"), recipe())
    check_checker(JudgeSpec(), recipe())


@pytest.mark.parametrize(
    ("stage", "journal", "redo"),
    [(induce, "mistakes.jsonl", "induce"), (with_own_answers, "benign.jsonl", "train")],
)
def test_two_versions_of_a_judge_do_not_check_the_texts_of_one_journal(
    open_session, data, fake_model, monkeypatch, stage, journal, redo
):
    judge = {"judge": "llm", "engine": fake_model("scolder" if stage is induce else "praiser")}
    taken = {"source": "both", "existing": [str(data)], "judge": judge}
    learned = {"helpful": [str(data)], "safe": [str(data)], "helpful_from": "model"}
    run = open_session(induce=taken, train={"judge": judge, **learned})
    stage(run)
    path, note = run.path / journal, run.path / "checked.json"
    whole = path.read_bytes()
    monkeypatch.setattr(LLMJudge, "version", 2)
    stage(run)
    assert path.read_bytes() == whole, "nothing is left to check"
    part = b"".join(whole.splitlines(keepends=True)[:-1])
    path.write_bytes(part)
    with pytest.raises(InputError, match=f"checked by version 1 of llm, .*2 now.*--from {redo}"):
        stage(run)
    note.unlink()  # as in a folder of an earlier version
    with pytest.raises(InputError, match="checked by an earlier version of llm"):
        stage(run)
    assert path.read_bytes() == part
    monkeypatch.setattr(LLMJudge, "version", 1)
    stage(run)
    assert path.read_bytes() == whole
    path.unlink()
    monkeypatch.setattr(LLMJudge, "version", 2)
    stage(run)
    assert path.read_bytes() == whole and f'"{journal}": 2' in note.read_text()


@pytest.mark.parametrize(
    ("method", "flip_rate"), [("mistake_distillation", "auto"), ("mistake_analysis", "always")]
)
def test_a_judge_of_harm_alone_cannot_check_what_must_refuse(
    recipe, monkeypatch, data, method, flip_rate
):
    judge = {"judge": "probe", "kinds": ["harmful"]}
    train = {"method": method, "judge": judge, "helpful": [str(data)], "safe": [str(data)]}
    made = recipe(train=train, preflight={"flip_rate": flip_rate})
    check(made)  # limited to harmful suites, it still finds refusals
    monkeypatch.setattr(Probe, "gives", ("harmless_rate", "helpful_score"))
    check_checker(JudgeSpec(), made)
    with pytest.raises(InputError, match="probe: does not say whether a text is a refusal"):
        check(made)
