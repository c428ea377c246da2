"""Guided induction: what counts as a mistake, who is asked again, and mistakes taken from data."""

import json

import pytest

from setbacks.errors import InputError
from setbacks.prompts import prompts
from setbacks.records import Mistake
from setbacks.stages.induce import NearDuplicates, induce

LONG = "one two three four five six seven eight nine ten"


def mistake(response, outcome="mistake", id_="1"):
    return Mistake(
        id=id_,
        instruction_id="0",
        instruction="<an instruction>",
        response=response,
        outcome=outcome,
        attempt=0,
        hint=None,
        category=None,
        language="en",
        source="",
        model=None,
    )


@pytest.fixture
def attempt(open_session):
    """Induce in a run folder of its own; return the attempts and the folder."""

    def call(*args, folder="run", **more):
        run = open_session(*args, folder=folder, **more)
        return induce(run), run

    return call


# Outcomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "finish", "outcome"),
    [
        ("\u200b\u200b\u200b \u200b\u200b\u200b\u200b", "stop", "empty"),
        ("<think>I cannot help with that, and stop here", "length", "empty"),
        ("<think>I cannot help with that.</think> <a bad response>", "stop", "mistake"),
        ("<think><a long thought></think> I cannot help with that.", "stop", "refusal"),
        (f"<think>Another thought.</think>{LONG}", "stop", "duplicate"),
        ("", "filter", "refusal"),
        ("<declined>", "refusal", "refusal"),
        ("", "failed", "empty"),
    ],
)
def test_what_is_thought_is_no_part_of_an_attempt(response, finish, outcome):
    seen = NearDuplicates(0.6)
    assert seen.outcome(LONG) == "mistake"
    assert seen.outcome(response, finish) == outcome


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("Ok.", "empty"),
        ("I cannot help with that.", "refusal"),
        ("I’m sorry, but I can’t do that.", "refusal"),
        ("抱歉，我无法提供帮助。", "refusal"),
        ("<a bad response>", "mistake"),
        ("<一个有害的回复，很长>", "mistake"),
        (LONG, "duplicate"),
        (f"{LONG.upper()}!", "duplicate"),
        (f"{LONG} eleven", "duplicate"),
        ("eleven twelve one two three four five thirteen fourteen fifteen", "mistake"),
    ],
)
def test_what_an_attempt_was(response, outcome):
    seen = NearDuplicates(0.7)
    seen.catch_up([mistake(LONG)])
    assert seen.outcome(response) == outcome


def test_all_is_kept_where_duplicates_are_allowed():
    seen = NearDuplicates(1)
    seen.catch_up([mistake(LONG)])
    assert seen.outcome(LONG) == "mistake"


def test_only_mistakes_are_remembered_and_each_once():
    seen = NearDuplicates(0.7)
    other = "another one of six words here"
    seen.catch_up([mistake(LONG, "duplicate")])
    assert seen.outcome(LONG) == "mistake"
    assert seen.outcome(LONG) == "duplicate"
    records = [mistake(LONG, "duplicate"), mistake(LONG), mistake(LONG, "duplicate")]
    seen.catch_up([*records, mistake(other)])
    assert seen.outcome(other) == "duplicate"


def test_a_response_made_of_parts_of_several_is_no_duplicate_of_one():
    seen = NearDuplicates(0.7)
    seen.catch_up([mistake("a b c d e f"), mistake("g h i j k l")])
    assert seen.outcome("a b c d e f g h i j k l") == "mistake"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("как приготовить вкусный ужин дома", "почему небо синее и где живут медведи"),
        ("오늘 날씨가 정말 좋네요 그렇죠", "내일은 학교에 가야 합니다 일찍"),
        ("كيف حالك اليوم يا صديقي العزيز", "السماء زرقاء والبحر عميق جدا"),
        ("πού είναι η βιβλιοθήκη της πόλης", "τι ώρα φεύγει το τρένο σήμερα"),
    ],
    ids=["ru", "ko", "ar", "el"],
)
def test_other_scripts_are_not_all_duplicates(one, other):
    seen = NearDuplicates(0.7)
    seen.catch_up([mistake(one)])
    assert seen.outcome(other) == "mistake"
    assert seen.outcome(one) == "duplicate"


# Asking -----------------------------------------------------------------------------------------


def test_every_instruction_gives_one_mistake(attempt, fake_engine):
    attempts, run = attempt("talker")
    assert [a.outcome for a in attempts] == ["mistake"] * 6
    assert len({a.instruction for a in attempts}) == 6
    assert all(a.hint in prompts("en")["induce"]["hints"] and a.model == "talker" for a in attempts)
    for batch, _, adapter in fake_engine.batches:
        assert adapter is None
        for request in batch:
            (made,) = [a for a in attempts if a.instruction in request.prompt]
            assert made.hint in request.prompt
            assert request.seed == int(made.id, 16)


def test_who_refuses_is_asked_again_with_another_hint(attempt):
    with pytest.raises(InputError, match="none of 30 attempts"):
        attempt("refuser", induce={"attempts": 5})


def test_hints_do_not_repeat_for_an_instruction(open_session):
    run = open_session("refuser", induce={"attempts": 5})
    with pytest.raises(InputError):
        induce(run)
    attempts = run.records("mistakes.jsonl", Mistake)
    assert [a.attempt for a in attempts] == [n for n in range(5) for _ in range(6)]
    hints = prompts("en")["induce"]["hints"]
    for instruction in {a.instruction for a in attempts}:
        assert sorted(a.hint for a in attempts if a.instruction == instruction) == sorted(hints)
    assert len({a.hint for a in attempts if a.attempt == 0}) > 1, "the first round uses several"


def test_nobody_who_gave_a_mistake_is_asked_again(attempt, fake_engine):
    attempt("talker", induce={"attempts": 3})
    assert sum(len(batch) for batch, *_ in fake_engine.batches) == 6


def test_what_all_say_counts_once(attempt):
    """A response that repeats an earlier mistake is dropped, also one of the same batch."""
    attempts, _ = attempt("parrot", induce={"attempts": 1})
    assert sorted(a.outcome for a in attempts) == ["duplicate"] * 5 + ["mistake"]


def test_going_on_asks_only_for_what_is_missing(attempt, fake_engine, tmp_path):
    attempts, run = attempt("parrot", folder="whole", induce={"attempts": 3})
    whole = (run.path / "mistakes.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    calls = len(fake_engine.batches)
    for kept in range(len(lines)):
        other = tmp_path / f"cut{kept}"
        other.mkdir()
        (other / "recipe.yaml").write_bytes((run.path / "recipe.yaml").read_bytes())
        (other / "mistakes.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        fake_engine.batches.clear()
        again, _ = attempt("parrot", folder=other.name, induce={"attempts": 3})
        assert again == attempts and (other / "mistakes.jsonl").read_bytes() == whole
        assert (len(fake_engine.batches) < calls) == (kept >= 4)


def test_another_seed_draws_other_mistakes(attempt):
    one, _ = attempt("talker", folder="one")
    other, _ = attempt("talker", folder="other", seed=1)
    assert not {a.response for a in one} & {a.response for a in other}
    assert {a.instruction_id for a in one} == {a.instruction_id for a in other}


@pytest.mark.parametrize(
    ("judge", "outcome"),
    [("scolder", "mistake"), ("praiser", "harmless"), ("talker", "unscored")],
)
def test_a_judge_may_check_every_mistake(attempt, fake_model, tmp_path, judge, outcome):
    named = {"judge": "llm", "engine": fake_model(judge)}
    if outcome == "mistake":
        attempts, _ = attempt("talker", induce={"judge": named, "attempts": 2})
        assert {a.outcome for a in attempts} == {"mistake"} and len(attempts) == 6
        return
    with pytest.raises(InputError, match="none of 12 attempts gave a mistake .*rated it harmless"):
        attempt("talker", induce={"judge": named, "attempts": 2}, folder="run")
    journal = (tmp_path / "run" / "mistakes.jsonl").read_text().splitlines()
    assert {json.loads(line)["outcome"] for line in journal} == {outcome}


def test_a_harmless_response_is_no_copy_of_a_later_mistake():
    seen = NearDuplicates(0.6)
    assert seen.outcome(LONG, unfit="harmless") == "harmless"
    assert seen.outcome(LONG) == "mistake"
    assert seen.outcome("I cannot help with that.", unfit="harmless") == "refusal"


def test_a_method_without_mistakes_asks_nobody(attempt, fake_engine):
    attempts, _ = attempt("talker", train={"method": "sft"})
    assert attempts == [] and fake_engine.batches == []


# From data --------------------------------------------------------------------------------------


def test_mistakes_are_taken_from_data(attempt, data, fake_engine):
    attempts, _ = attempt(induce={"source": "existing", "existing": [str(data)]})
    assert [a.outcome for a in attempts] == ["mistake"] * 6
    assert fake_engine.batches == []
    assert all(a.model is None and a.hint is None for a in attempts)
    assert attempts[0].response.startswith("<a bad response on the badger")


def test_both_sources_go_together(attempt, data):
    attempts, _ = attempt(induce={"source": "both", "existing": [str(data)]})
    assert [a.model for a in attempts] == [None] * 6 + ["talker"] * 6


def test_what_data_calls_harmless_or_says_twice_is_no_mistake(attempt, tmp_path):
    rows = [
        {"instruction": "<x>", "response": "<a bad response>", "harmful": True},
        {"instruction": "<x>", "response": "<a good response>", "harmful": False},
        {"instruction": "<y>", "response": "<one that nobody labeled>"},
        {"instruction": "<x>", "response": "<a bad response>", "harmful": True},
        {"instruction": "<z>", "response": "I cannot help with that."},
    ]
    path = tmp_path / "existing.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attempts, _ = attempt(induce={"source": "existing", "existing": [str(path)]})
    assert [(a.response, a.outcome) for a in attempts] == [
        ("<a bad response>", "mistake"),
        ("<one that nobody labeled>", "mistake"),
        ("I cannot help with that.", "refusal"),
    ]


def test_a_mistake_that_is_in_two_sources_counts_once_and_is_told(attempt, tmp_path, caplog):
    rows = [
        {"instruction": "<a>", "response": "<a bad response>", "harmful": True},
        {"instruction": "<b>", "response": "<another bad one>", "harmful": True},
    ]
    paths = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for path, held in zip(paths, (rows[:1], rows), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in held))
    attempts, _ = attempt(induce={"source": "existing", "existing": [*map(str, paths)]})
    assert len(attempts) == 2
    assert f"{paths[1]}: left out 1 of 2 rows: they repeat an earlier mistake" in caplog.messages
    assert not any(str(paths[0]) in message for message in caplog.messages)


def test_what_data_has_no_mistake_in_is_counted(attempt, tmp_path, caplog):
    rows = [
        {"instruction": "<a>", "response": "<a bad response>", "harmful": "WAHR"},
        {"instruction": "<b>", "response": "<a good response>", "harmful": "FALSE"},
        {"instruction": "<c>", "response": "<one that nobody labeled>", "harmful": float("nan")},
        {"instruction": "<d>", "response": None, "harmful": True},
    ]
    path = tmp_path / "existing.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attempts, run = attempt(induce={"source": "existing", "existing": [str(path)]})
    assert len(attempts) == 2
    counted = [
        f"{path}: left out 1 of 4 rows: no response",
        f"{path}: left out 1 of 3 rows: labeled harmless",
        f"{path}: 1 of 3 rows have no harmful label, and count as mistakes",
    ]
    assert run.folder.notices() == counted
    assert all(notice in caplog.text for notice in counted)
    induce(run)
    assert run.folder.notices() == counted, "a run that is resumed says so once"
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(InputError, match="all rows are labeled harmless"):
        attempt(induce={"source": "existing", "existing": [str(path)]}, folder="again")


def test_data_without_responses_names_the_mapping(attempt, tmp_path):
    path = tmp_path / "existing.jsonl"
    path.write_text('{"instruction": "<x>"}\n')
    with pytest.raises(InputError, match=r"existing\.jsonl.*response.*fields: \{response:"):
        attempt(induce={"source": "existing", "existing": [str(path)]})


def test_data_must_be_named(attempt):
    with pytest.raises(InputError, match=r"induce\.existing"):
        attempt(induce={"source": "existing"})


# Refusals of safe requests ----------------------------------------------------------------------

REFUSED = "I cannot help with that request."


def test_a_refused_safe_request_is_a_mistake(attempt, data, fake_engine):
    attempts, run = attempt("refuser", induce={"refusals": [str(data)], "attempts": 2})
    kinds = [(a.kind, a.outcome) for a in attempts]
    assert kinds == [("harmful", "refusal")] * 12 + [("refusal", "mistake")] * 6
    words = prompts("en")["induce"]["overcautious"]
    for made in attempts[12:]:
        assert made.hint in words["hints"] and made.response == REFUSED
        (asked,) = [r for b, *_ in fake_engine.batches for r in b if r.seed == int(made.id, 16)]
        assert asked.prompt.startswith(made.instruction) and f"because {made.hint}." in asked.prompt
        assert asked.prefill == words["prefill"]
    lines = (run.path / "mistakes.jsonl").read_text().splitlines()
    assert all(("kind" in json.loads(line)) == (n >= 12) for n, line in enumerate(lines))


def test_who_answers_a_safe_request_is_given_another_reason_to_refuse(attempt, data):
    attempts, _ = attempt("parrot", induce={"refusals": [str(data)], "attempts": 2})
    drawn = [a for a in attempts if a.kind == "refusal"]
    assert [a.outcome for a in drawn] == ["compliance"] * 12
    for instruction in {a.instruction for a in drawn}:
        assert len({a.hint for a in drawn if a.instruction == instruction}) == 2


@pytest.mark.parametrize(
    ("response", "finish", "labeled", "outcome"),
    [
        (REFUSED, "stop", False, "mistake"),
        ("<think>I cannot help with that.</think> Mix them.", "stop", False, "compliance"),
        ("Mix them.", "stop", False, "compliance"),
        ("<words of no list>", None, True, "mistake"),
        ("", "filter", False, "empty"),
        (" ", None, True, "empty"),
    ],
)
def test_what_an_attempt_at_a_refusal_was(response, finish, labeled, outcome):
    seen = NearDuplicates(0.7)
    assert seen.outcome_of_refusal("<q>", response, finish, labeled=labeled) == outcome


def test_refusals_are_compared_by_their_requests():
    seen = NearDuplicates(0.7)
    earlier = mistake(REFUSED).model_copy(update={"instruction": LONG, "kind": "refusal"})
    seen.catch_up([earlier])
    assert seen.outcome_of_refusal("<another request>", REFUSED) == "mistake"
    assert seen.outcome_of_refusal(f"{LONG} eleven", REFUSED) == "duplicate"
    assert seen.outcome(LONG) == "mistake", "responses are compared with responses"


def test_a_request_that_repeats_another_is_asked_once(attempt, tmp_path):
    path = tmp_path / "safe.jsonl"
    rows = [{"instruction": LONG}, {"instruction": f"{LONG} eleven"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attempts, _ = attempt("refuser", induce={"refusals": [str(path)], "attempts": 3})
    drawn = [a.outcome for a in attempts if a.kind == "refusal"]
    assert sorted(drawn) == ["duplicate", "mistake"]


def test_refusals_are_resumed_to_the_same_bytes(attempt, data, tmp_path, fake_engine):
    induced = {"refusals": [str(data)], "attempts": 2}
    attempts, run = attempt("refuser", folder="whole", induce=induced)
    whole = (run.path / "mistakes.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (11, 12, 13, 16, 17):
        other = tmp_path / f"cut{kept}"
        other.mkdir()
        (other / "recipe.yaml").write_bytes((run.path / "recipe.yaml").read_bytes())
        (other / "mistakes.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        again, _ = attempt("refuser", folder=other.name, induce=induced)
        assert again == attempts and (other / "mistakes.jsonl").read_bytes() == whole


def test_refusals_of_safe_requests_are_taken_from_data(attempt, tmp_path, caplog):
    refused = {"instruction": "<x>", "response": "<declined>", "harmful": False, "refused": True}
    rows = [
        refused | {"kind": "refusal"},
        refused | {"instruction": "<a harmful request>"},  # to refuse it is right
        refused | {"instruction": "<y>", "kind": "refusal", "refused": False},
        {"instruction": "<z>", "response": "<a bad response>", "harmful": True, "kind": "harmful"},
    ]
    path = tmp_path / "harvested.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attempts, _ = attempt(induce={"source": "existing", "existing": [str(path)]})
    assert [(a.kind, a.instruction, a.outcome) for a in attempts] == [
        ("refusal", "<x>", "mistake"),
        ("harmful", "<z>", "mistake"),
    ]
    assert "left out 2 of 4 rows: labeled harmless" in caplog.text
