"""Preference pairs from the model's own corrections."""

import pytest
from test_mistake_distillation import ANALYSES

from setbacks.errors import InputError
from setbacks.methods import open_method
from setbacks.pipeline import carry_out, check
from setbacks.recipe import Recipe
from setbacks.records import Correction, Example, Mistake, OwnAnswer
from setbacks.runs.folder import RunFolder
from setbacks.stages import STAGES

REFUSAL = "I cannot help with that request."


def correction(number, outcome="kept", answer=None, response=None):
    return Correction(
        id=f"c{number}",
        analysis_id="a",
        instruction=f"<instruction {number}>",
        response=response or f"<mistake {number}>",
        text="<text>",
        answer=answer or f"<correction {number}>",
        outcome=outcome,
        sample=0,
        model="m",
    )


@pytest.fixture
def of(data):
    """A recipe whose pairs come from corrections."""

    def make(method="dpo", **train):
        own = {"method": method, "pairs_from": "corrections", "helpful": [str(data)]}
        return Recipe.model_validate({"train": own | train})

    return make


@pytest.mark.parametrize("method", ["dpo", "rlhf"])
def test_a_correction_is_preferred_to_its_mistake(of, method):
    recipe = of(method, mix={"helpful": 0})
    corrections = [correction(0), correction(1, "harmful"), correction(2), correction(2)]
    made = open_method(recipe).examples(recipe, corrections)
    assert [(e.kind, e.instruction, e.completion, e.rejected, e.parents) for e in made] == [
        ("pair", f"<instruction {n}>", f"<correction {n}>", f"<mistake {n}>", [f"c{n}"])
        for n in (0, 2)
    ]


def test_helpful_answers_are_preferred_to_the_corrections(of):
    recipe = of(mix={"helpful": 2})
    made = open_method(recipe).examples(recipe, [correction(0), correction(1)])
    helpful = [e for e in made if e.kind == "helpful_pair"]
    assert len(helpful) == 4 and {e.rejected for e in helpful} == {
        "<correction 0>",
        "<correction 1>",
    }
    assert all("a good answer" in e.completion for e in helpful)
    assert {e.parents[-1] for e in helpful} == {"c0", "c1"}


def test_no_safe_answers_are_needed_and_no_other_pairs_allowed(of, data):
    recipe = of(safe=[])
    assert open_method(recipe).examples(recipe, []) == []
    recipe = of(pairs=[str(data)])
    with pytest.raises(InputError, match=r"train.pairs names data, but train.pairs_from is corr"):
        open_method(recipe).examples(recipe, [])


def test_the_model_corrects_its_mistakes_only_if_pairs_need_it(
    open_session, data, fake_model, fake_engine
):
    def prepared(folder, judge="praiser", **train):
        named = {"judge": "llm", "engine": fake_model(judge)}
        own = {"method": "dpo", "helpful": [str(data)], "safe": [str(data)], "judge": named}
        own |= {"openings": False, "attempts": 1, "min_overlap": 0}
        run = open_session("refuser", folder=folder, train=own | train)
        return open_method(run.recipe).prepare(run, ANALYSES), run

    analyses, run = prepared("data")
    assert analyses == ANALYSES and not (run.path / "corrections.jsonl").exists()
    written, run = prepared("own", pairs_from="corrections")
    assert [one.answer for one in written] == [REFUSAL] * 4
    assert run.records("corrections.jsonl", Correction) == written
    with pytest.raises(InputError, match=r"none of 4 corrections passed .* train.attempts"):
        prepared("bad", "scolder", pairs_from="corrections")


def test_what_corrections_depend_on_is_checked_and_redone(of, recipe, data):
    (train,) = (stage for stage in STAGES if stage.name == "train")
    assert train.depends_on("words.en.correct.prompt", of())
    assert not train.depends_on("words.en.correct.prompt", of(pairs_from="data"))
    own = {"method": "dpo", "helpful": [str(data)], "safe": [str(data)], "judge": "refusal"}
    check(recipe(train=own))
    with pytest.raises(InputError, match="refusal: does not say whether a text is harmful"):
        check(recipe(train=own | {"pairs_from": "corrections"}))


@pytest.mark.slow
def test_dpo_learns_from_its_own_words_alone(tmp_path):
    limited = {"limit": 8, "split": "train"}
    recipe = Recipe.model_validate(
        {
            "instructions": [{"source": "builtin:redteam", **limited}],
            "analyze": {"contrast": [], "candidates": 1},
            "train": {
                "method": "dpo",
                "pairs_from": "corrections",
                "helpful_from": "model",
                "helpful": [{"source": "builtin:helpful", **limited}],
                "steps": 1,
            },
        }
    )
    with RunFolder(tmp_path / "run", recipe) as run:
        adapter = carry_out(run, "train")
        learned = run.records("training.jsonl", Example)
        mistakes = {one.response for one in run.records("mistakes.jsonl", Mistake)}
        corrections = {one.answer for one in run.records("corrections.jsonl", Correction)}
        own = {one.answer for one in run.records("benign.jsonl", OwnAnswer)}
    assert (adapter / "adapter_model.safetensors").exists()
    pairs = [e for e in learned if e.kind == "pair"]
    assert len(pairs) >= 2
    assert {e.completion for e in pairs} <= corrections
    assert {e.rejected for e in pairs} <= mistakes
    helpful = [e for e in learned if e.kind == "helpful_pair"]
    assert helpful and {e.completion for e in helpful} <= own
    assert {e.rejected for e in helpful} <= corrections
