"""The discrimination study: what the model says of answers, and what a probe of it reads."""

import json

import pytest

from setbacks.engines import open_engine
from setbacks.engines.own_verdict import question, verdicts
from setbacks.errors import InputError
from setbacks.prompts import prompts
from setbacks.runs.folder import Run
from setbacks.studies import carry_out
from setbacks.studies.discrimination import (
    Answer,
    Discrimination,
    _generates,
    _own,
    _spoken,
)
from setbacks.studies.states import hidden_states


def test_spoken_verdicts_stay_with_their_answers(tiny_recipe):
    """The engine batches prompts by length, so its order differs from the answers'."""
    recipe = tiny_recipe(model={**tiny_recipe().model.model_dump(mode="json"), "batch_size": 2})
    answers = [Answer("<question>", "<word> " * n, bool(n % 2)) for n in (5, 1, 9, 3, 7)]
    engine = open_engine(recipe.model)
    one_by_one = [
        verdicts(engine, [question(prompts("en"), a.instruction, a.response)])[0] for a in answers
    ]
    steps = []
    spoken = _spoken(recipe, answers, lambda what, done, total: steps.append((done, total)))
    assert spoken == pytest.approx(one_by_one, abs=1e-5)
    assert len({round(p, 6) for p in spoken}) == 5, "each answer has a verdict of its own"
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_a_model_with_an_adapter_is_read_and_asked_with_it(tiny_recipe, lora_of_tiny, tmp_path):
    plain, adapted = tiny_recipe(), tiny_recipe(adapter=str(lora_of_tiny))
    answers = [Answer("<question>", "<word> " * n, bool(n % 2)) for n in (5, 1, 9)]
    assert _spoken(adapted, answers, None) != pytest.approx(_spoken(plain, answers, None))
    texts = [answer.response for answer in answers]
    assert abs(hidden_states(adapted, texts) - hidden_states(plain, texts)).max() > 1e-3
    _generates(adapted, tmp_path, None)
    run = Run(tmp_path / "arms/answers")
    assert run.recipe.evaluate[0].adapter == str(lora_of_tiny)


def test_its_own_responses_are_not_drafts_that_a_probe_would_rank(tiny_recipe, tmp_path):
    respond = tiny_recipe().respond.model_dump(mode="json")
    by_states = tiny_recipe(respond=respond | {"posterior": {"rank_by": "states"}})
    assert _generates(by_states, tmp_path, None).n == 24
    assert Run(tmp_path / "arms/answers").recipe.respond.posterior is None


def test_refusals_of_safe_requests_are_not_among_the_harmful_answers(recipe, tmp_path, data):
    made = recipe(induce={"refusals": [str(data)]})
    options = made.options(Discrimination.Options)
    answers = _own(made, options, tmp_path / "study", None)
    assert [answer.harmful for answer in answers] == [True] * 6 + [False] * 12
    assert not any(answer.response.startswith("I'm sorry") for answer in answers)


@pytest.mark.slow
def test_discrimination_sets_both_readings_against_chance(tiny_recipe, tmp_path):
    page = carry_out("discrimination", tiny_recipe(), tmp_path / "d")
    text = (page.parent / "findings.json").read_text()
    data = json.loads(text)["data"]
    assert data["n"] >= 48 and data["near_chance"] in (True, False)
    spoken, probe = (round(100 * data[key]["auc"][0]) for key in ("spoken", "probe"))
    warnings = [line for line in json.loads(text)["answer"] if "near chance" in line]
    assert all(f"on {data['n']} answers is near chance" in line for line in warnings)
    label = f"AUC with intervals. spoken verdict: {spoken} %; linear probe: {probe} %."
    assert label in page.read_text()
    held = (page.parent / "recipe.yaml").read_text()
    other = tiny_recipe(study={"factors": ["no_helpful"]})
    with pytest.raises(InputError, match=r"findings of another study \(discrimination\)"):
        carry_out("ablation", other, tmp_path / "d")
    assert (page.parent / "findings.json").read_text() == text
    assert (page.parent / "recipe.yaml").read_text() == held
