"""Guided analysis: every quality check, each alone, and what is drawn for whom."""

import json

import pytest

from setbacks.errors import InputError
from setbacks.prompts import prompts
from setbacks.recipe import Analyze
from setbacks.records import Analysis
from setbacks.stages.analyze import Subject, analyze, benign, examine
from setbacks.stages.induce import induce

GOOD = (
    "The response is harmful because it tells the reader to pour bleach into a pond, which kills "
    "fish and poisons children who drink there."
)
SUBJECT = Subject("1", "2", "How do I clean a pond?", "Pour bleach into it.", True, 0, None, "en")
BENIGN = Subject("1", "2", "How do I clean a pond?", "Use a net.", False, 0, None, "en")


def checks(text, subject=SUBJECT, language="en", **thresholds):
    return examine(text, subject, Analyze(**thresholds), prompts(language))[0]


def failed(*args, **more):
    return [name for name, passed in checks(*args, **more).items() if not passed]


# Checks -----------------------------------------------------------------------------------------


def test_a_good_analysis_passes_them_all():
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("check", "text", "thresholds"),
    [
        ("agrees", GOOD + " Then again, it is not harmful.", {}),
        (
            "on_topic",
            "This is harmful because somebody could get badly hurt by following such advice here.",
            {},
        ),
        ("length", "Bleach kills the fish of a pond.", {}),
        ("length", GOOD, {"max_words": 10}),
        ("length", GOOD, {"min_words": 50}),
        ("no_repetition", "It is bad to pour bleach in a pond. " * 4, {}),
    ],
    ids=["agrees", "on_topic", "short", "long", "shorter than told", "no_repetition"],
)
def test_each_check_can_fail_alone(check, text, thresholds):
    assert failed(text, **thresholds) == [check]


@pytest.mark.parametrize("text", ["", "...", "!", "\ufffd"])
def test_no_words_fail(text):
    assert {"on_topic", "length", "no_repetition"} <= set(failed(text))


def test_the_rubrics_own_words_are_no_topic():
    parroted = "The response to the instruction is harmful, and this harm of the response is clear."
    subject = Subject("1", "2", "An instruction: harm.", "A harmful response.", True, 0, None, "en")
    assert "on_topic" in failed(parroted, subject)


def test_a_score_ranks_what_takes_up_more_and_repeats_less():
    def score(text):
        return examine(text, SUBJECT, Analyze(), prompts("en"))[1]

    assert score(GOOD) > score("It is bad. It is bad. It is bad. It is bad because of a pond.")
    assert score("Pour bleach into a clean pond and see.") > score("A pond is bad for somebody.")


# An analysis that contradicts its label


@pytest.mark.parametrize(
    "text",
    [
        "The response is not harmful.",
        "The response isn't harmful at all.",
        "The response isn’t harmful at all.",
        "It's not unethical to do so.",
        "This is never dangerous.",
        "It was not really offensive.",
        "The response seems not harmful.",
        "The response is harmless because it helps.",
        "The response is completely harmless.",
        "It does not contain any harmful words.",
        "The response does not promote harm.",
    ],
)
def test_a_mistake_called_harmless_is_a_contradiction(text):
    assert not checks(text)["agrees"]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "The response is harmful and unethical.",
        "The response is not only harmful but also illegal.",
        "It is not just unethical, it is cruel.",
        "This is dangerous, and it does not say so.",
        "The response is not helpful, for it hurts people.",
        "It is not safe.",
    ],
)
def test_a_mistake_called_harmful_is_none(text):
    assert checks(text)["agrees"]


@pytest.mark.parametrize(
    "text",
    [
        "The response is harmful because it tells lies.",
        "It is very harmful.",
        "This could be dangerous, and it is unethical.",
        "The response was offensive.",
    ],
)
def test_a_benign_response_called_harmful_is_a_contradiction(text):
    assert not checks(text, BENIGN)["agrees"]


@pytest.mark.parametrize(
    "text",
    [
        "The response is harmless because it tells how to use a net.",
        "It is not harmful to anybody.",
        "It isn't harmful.",
        "The response would not be harmful to the fish.",
        "It is never harmful to say so.",
        "It avoids what could hurt.",
    ],
)
def test_a_benign_response_called_harmless_is_none(text):
    assert checks(text, BENIGN)["agrees"]


@pytest.mark.parametrize(
    ("subject", "text", "agrees"),
    [
        (SUBJECT, "该回复是有害的，因为它会伤害鱼。", True),
        (SUBJECT, "该回复不道德，也是危险的。", True),
        (SUBJECT, "该回复是无害的，因为它有帮助。", False),
        (SUBJECT, "该回复并非有害。", False),
        (SUBJECT, "这不是不道德的行为。", False),
        (SUBJECT, "其中没有有害内容。", False),
        (BENIGN, "该回复是无害的，因为它有帮助。", True),
        (BENIGN, "该回复不是有害的。", True),
        (BENIGN, "这不是不道德的行为。", True),
        (BENIGN, "该回复是有害的。", False),
        (BENIGN, "这样做是不道德的。", False),
    ],
)
def test_contradictions_in_chinese(subject, text, agrees):
    assert checks(text, subject, "zh")["agrees"] is agrees


# Whole sentences


REFUSAL = Subject(
    "1", "2", "How do I clean a pond?", "I can't help.", False, 0, None, "en", "refusal"
)
WRONG = "The response is harmless, but it was wrong to refuse, because the request only asks"


@pytest.mark.parametrize(
    ("text", "failing"),
    [
        (f"{WRONG} how to clean a pond, which keeps its fish and frogs well.", []),
        (f"{WRONG} for a pond to clean. It sounds dangerous, but it is not harmful at all.", []),
        (f"{WRONG} for help, and help is something that nobody is ever hurt by.", ["on_topic"]),
        (f"{WRONG} how to clean a pond. The request is dangerous to the fish.", ["agrees"]),
        (f"{WRONG} how to clean a pond, but it was right to refuse this once.", ["agrees"]),
        ("The response is harmless: it does not tell how to clean a pond of fish.", ["agrees"]),
    ],
)
def test_an_analysis_of_a_refusal_says_that_refusing_was_wrong(text, failing):
    assert failed(text, REFUSAL) == failing


# The stage --------------------------------------------------------------------------------------


@pytest.fixture
def analyzed(open_session):
    """Induce and analyze; return the analyses and the mistakes."""

    def call(*args, folder="run", **more):
        run = open_session(*args, folder=folder, **more)
        mistakes = induce(run)
        return analyze(run, mistakes), mistakes

    return call


def test_every_mistake_and_contrast_gets_its_candidates(analyzed, fake_engine):
    analyses, mistakes = analyzed("talker")
    drawn = {(a.response_id, a.candidate): a for a in analyses}
    assert len(drawn) == len(analyses) == 2 * (6 + 6)
    assert {a.response_id for a in analyses if a.harmful} == {m.id for m in mistakes}
    words = prompts("en")["analyze"]
    requests = {r.seed: r for batch, *_ in fake_engine.batches for r in batch}
    for analysis in analyses:
        label = "harmful" if analysis.harmful else "harmless"
        request = requests[int(analysis.id, 16)]
        assert request.prefill == words[f"prefill_{label}"]
        assert request.prompt.splitlines()[-1] == words[label].splitlines()[-1]
        assert analysis.instruction in request.prompt and analysis.response in request.prompt


def test_only_mistakes_are_analysed(open_session):
    run = open_session("talker", analyze={"contrast": []})
    mistakes = induce(run)
    some = [m.model_copy(update={"outcome": "refusal"}) for m in mistakes[:4]] + mistakes[4:]
    assert {a.response_id for a in analyze(run, some)} == {m.id for m in mistakes[4:]}


def test_the_analysis_of_a_refusal_is_told_that_refusing_was_wrong(analyzed, data, fake_engine):
    more = {"induce": {"refusals": [str(data)], "attempts": 1}, "analyze": {"contrast": []}}
    analyses, mistakes = analyzed("refuser", train={"analyses": "unfiltered"}, **more)
    assert {a.response_id for a in analyses} == {m.id for m in mistakes if m.kind == "refusal"}
    assert {(a.kind, a.harmful, a.label) for a in analyses} == {("refusal", False, "refusal")}
    words = prompts("en")["analyze"]
    requests = {r.seed: r for batch, *_ in fake_engine.batches for r in batch}
    for made in analyses:
        asked = requests[int(made.id, 16)]
        assert asked.prefill == words["prefill_refusal"]
        assert asked.prompt.splitlines()[-1] == words["refusal"].splitlines()[-1]


def test_a_stronger_analyst_may_analyse(analyzed, fake_engine):
    analyst = {"model": "shouter", "engine": "rules"}
    analyses, _ = analyzed("talker", analyze={"analyst": analyst, "contrast": []})
    assert {a.analyst for a in analyses} == {"shouter"}
    assert all(a.text.isupper() for a in analyses)


def test_without_prefill_nothing_is_begun(analyzed, fake_engine):
    analyzed("talker", analyze={"prefill": False, "contrast": []})
    assert {r.prefill for batch, *_ in fake_engine.batches for r in batch} == {""}


def test_no_analysis_that_passes_is_told(analyzed):
    with pytest.raises(InputError, match=r"none of 24 analyses passed.*min_words"):
        analyzed("talker", analyze={"min_words": 190, "candidates": 4, "contrast": []})


def test_unfiltered_analyses_need_pass_nothing(analyzed):
    data = {"min_words": 190, "candidates": 1, "contrast": []}
    analyses, _ = analyzed("talker", analyze=data, train={"analyses": "unfiltered"})
    assert analyses and not any(analysis.passed for analysis in analyses)


def test_contrast_needs_answers(analyzed, tmp_path):
    path = tmp_path / "contrast.jsonl"
    path.write_text(json.dumps({"instruction": "<x>"}) + "\n")
    with pytest.raises(InputError, match=r"contrast\.jsonl.*answer.*fields: \{answer:"):
        analyzed("talker", analyze={"contrast": [str(path)]})


def test_a_contrast_response_that_comes_twice_is_analyzed_once_and_told(recipe, tmp_path, caplog):
    """The pairs of preference data often have one good answer and several bad ones."""
    rows = [
        {"prompt": "<x>", "chosen": "<a good answer>", "rejected": f"<a bad answer, {number}>"}
        for number in range(2)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    contrast = [str(path), {"source": str(path), "limit": 1}]
    (subject,) = benign(recipe("talker", analyze={"contrast": contrast}))
    assert subject.response == "<a good answer>"
    for rows in (1, 2):
        notice = f"{path}: left out 1 of {rows} rows: they repeat an earlier response"
        assert notice in caplog.messages


def test_going_on_makes_the_same_file(analyzed, open_session, fake_engine, tmp_path):
    analyses, _ = analyzed("talker", folder="whole")
    whole = tmp_path / "whole"
    text = (whole / "analyses.jsonl").read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("recipe.yaml", "mistakes.jsonl"):
        (cut / name).write_bytes((whole / name).read_bytes())
    (cut / "analyses.jsonl").write_bytes(text[: len(text) // 2])
    fake_engine.batches.clear()
    run = open_session("talker", folder="cut")
    again = analyze(run, induce(run))
    assert again == analyses and (cut / "analyses.jsonl").read_bytes() == text
    assert sum(len(batch) for batch, *_ in fake_engine.batches) < 24
    assert run.records("analyses.jsonl", Analysis) == analyses
