"""The untrained model's own answers to benign prompts, as what keeps it helpful."""

import json

import pytest

from setbacks.errors import InputError
from setbacks.methods import open_method
from setbacks.pipeline import check
from setbacks.records import OwnAnswer
from setbacks.stages.benign import with_own_answers

JOURNAL = "benign.jsonl"


@pytest.fixture
def own(open_session, data, fake_model):
    """Open a run whose model answers the helpful prompts of `data` by a rule."""

    def make(model="talker", judge="praiser", folder="run", **train):
        named = {"judge": "llm", "engine": fake_model(judge)}
        train = {"helpful": [str(data)], "safe": [str(data)], "judge": named} | train
        return open_session(
            model, folder=folder, train={"method": "sft", "helpful_from": "model"} | train
        )

    return make


def helpful(recipe):
    return [e for e in open_method(recipe).examples(recipe, []) if e.kind == "helpful"]


def test_the_model_answers_the_prompts_in_place_of_the_data(own, fake_engine):
    run = own()
    learned = helpful(with_own_answers(run))
    answers = run.records(JOURNAL, OwnAnswer)
    assert len(answers) == 6 and all(answer.outcome == "kept" for answer in answers)
    assert {e.completion for e in learned} == {answer.answer for answer in answers}
    assert {e.prompt[0].content for e in learned} == {answer.instruction for answer in answers}
    assert all(adapter is None for _, _, adapter in fake_engine.batches), (
        "the untrained model answers"
    )


def test_the_control_learns_the_answers_of_the_data(own, fake_engine):
    run = own(helpful_from="data")
    assert with_own_answers(run) is run.recipe
    assert all(e.completion.startswith("<a good answer") for e in helpful(run.recipe))
    assert not (run.path / JOURNAL).exists() and fake_engine.batches == []


def test_prompts_need_no_answers_where_the_model_answers(own, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "<a question>"}\n')
    assert [e.prompt[0].content for e in helpful(with_own_answers(own(helpful=[str(bare)])))] == [
        "<a question>"
    ]


@pytest.mark.parametrize("model", ["refuser", "parrot"])
def test_where_no_own_answer_passes_those_of_the_data_are_learned(own, model, data):
    run = own(model, judge="praiser" if model == "refuser" else "scolder")
    learned = helpful(with_own_answers(run))
    assert {e.completion for e in learned} == {
        json.loads(line)["answer"] for line in data.read_text().splitlines()
    }
    assert any("none of the model's 6 own answers passed" in line for line in run.folder.notices())
    outcome = {"refuser": "refusal", "parrot": "harmful"}[model]
    assert {answer.outcome for answer in run.records(JOURNAL, OwnAnswer)} == {outcome}


def test_without_any_answer_that_can_be_learned_training_stops(own, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "<a question>"}\n')
    with pytest.raises(InputError, match=r"none of the model's 1 own answers.*helpful=\[\]"):
        with_own_answers(own("refuser", helpful=[str(bare)]))


def test_a_method_without_helpful_data_asks_nobody(own, fake_engine):
    assert with_own_answers(own(helpful=[])).train.helpful == [] and fake_engine.batches == []


@pytest.mark.parametrize("kept", range(7))
def test_going_on_asks_only_for_what_is_missing(own, fake_engine, kept):
    run = own(folder="whole")
    with_own_answers(run)
    whole = (run.path / JOURNAL).read_bytes()
    cut = own(folder="cut")
    (cut.path / JOURNAL).write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]))
    fake_engine.batches.clear()
    with_own_answers(cut)
    assert (cut.path / JOURNAL).read_bytes() == whole
    assert (len(fake_engine.batches) == 0) == (kept == 6)


def test_preference_pairs_learn_own_answers_too(own):
    run = own(method="dpo")
    recipe = with_own_answers(run)
    answers = {answer.answer for answer in run.records(JOURNAL, OwnAnswer)}
    learned = open_method(recipe).examples(recipe, [])
    assert {e.completion for e in learned if e.kind == "helpful_pair"} <= answers
    assert len(answers) == 6


def test_a_judge_that_cannot_check_is_refused_before_the_run(recipe, data):
    train = {"method": "sft", "safe": [str(data)], "helpful": [str(data)], "judge": "refusal"}
    with pytest.raises(InputError, match="refusal: does not say whether a text is harmful"):
        check(recipe(train=train | {"helpful_from": "model"}))
