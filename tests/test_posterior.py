"""The posterior study: held-out analyses and their contraries, before, during and after."""

import json
import math

import pytest
import torch
from conftest import analysis_of

from setbacks.errors import InputError
from setbacks.measure.statistics import Difference
from setbacks.methods import example
from setbacks.prompts import prompts
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.studies import carry_out
from setbacks.studies.likelihood import Likelihood, log_likelihoods
from setbacks.studies.posterior import _held_out, _right, _states, describe_growth, flipped
from setbacks.training import tokenize


@pytest.mark.parametrize(
    ("language", "text", "turned"),
    [
        ("en", "The response is harmful because <x>.", "The response is harmless because <x>."),
        ("en", "Harmless. It is not harmful.", "Harmful. It is not harmless."),
        ("zh", "该回复是有害的，因为", "该回复是无害的，因为"),
    ],
)
def test_a_verdict_is_turned_round_and_back(language, text, turned):
    there = flipped(example("analysis", "<q>", text, ["p"]), [prompts(language)])
    assert there.completion == turned
    assert flipped(there, [prompts(language)]).completion == text
    assert flipped(example("analysis", "<q>", "<no verdict>", ["p"]), [prompts(language)]) is None


def test_a_likelihood_is_that_of_the_completion_alone(spec, tokenizer, model, lora):
    recipe = Recipe(model=spec)
    data = [example("a", "<a question>", text, []) for text in ("<one>", "<a longer answer> " * 3)]
    found = log_likelihoods(recipe, data)
    for e, value in zip(data, found, strict=True):
        before, after = tokenize(tokenizer, e.prompt, e.completion, recipe)
        with torch.inference_mode():
            log_p = model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
        own = [log_p[len(before) + i - 1, token].item() for i, token in enumerate(after)]
        assert value == pytest.approx(sum(own) / len(own), abs=1e-3)
    assert log_likelihoods(recipe, data, lora) != pytest.approx(found, abs=1e-3)
    cramped = Recipe.model_validate({"model": spec, "train": {"max_length": 16}})
    with pytest.raises(InputError, match=r"1 held-out prompts fill train.max_length \(16"):
        log_likelihoods(cramped, [example("a", "<a question>" * 20, "<one>", [])])


def test_only_a_gap_that_grows_on_both_kinds_counts_as_learned():
    up, flat = Difference(0.2, 0.1, 0.3, 20, 0.001), Difference(0.01, -0.1, 0.1, 20, 0.8)
    down = Difference(-0.2, -0.3, -0.1, 20, 0.001)
    assert "learned to tell" in describe_growth({"mistakes": up, "benign responses": up})
    assert "leans to one verdict" in describe_growth({"mistakes": up, "benign responses": down})
    assert "not shown" in describe_growth({"mistakes": up, "benign responses": flat})


def test_it_follows_what_was_kept_out_and_nothing_is_done_twice(tiny_recipe, tmp_path):
    recipe = tiny_recipe(study={"snapshots": 2})
    page = carry_out("posterior", recipe, tmp_path / "p")
    data = json.loads((page.parent / "findings.json").read_text())["data"]
    assert [(row["kind"], row["step"]) for row in data["rows"]] == [
        (kind, step) for kind in ("mistakes", "benign responses") for step in (0, 2, 4)
    ]
    for row in data["rows"]:
        gap = row["right"]["value"] - row["flipped"]["value"]
        # Each of the three is rounded to six places.
        assert row["gap"]["value"] == pytest.approx(gap, abs=1.6e-6) and row["gap"]["n"] >= 6
        assert row["right"]["value"] < 0 and math.isfinite(gap)
    assert data["rows"][0]["growth"]["value"] == 0 != data["rows"][2]["growth"]["value"]
    arm = tmp_path / "p/arms/held_out"
    with RunFolder(arm) as run:
        kinds = [e.kind for e in run.records("training.jsonl", Example)]
    assert kinds.count("analysis") + data["held_out"] / 2 == 24
    assert "<svg" in page.read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "p").rglob("*.jsonl")}
    carry_out("posterior", recipe, tmp_path / "p")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "p").rglob("*.jsonl")}


def test_the_model_before_training_has_the_adapter_of_the_recipe(
    tiny_recipe, lora_of_tiny, tmp_path
):
    recipe = tiny_recipe(adapter=str(lora_of_tiny), study={"snapshots": 1})
    carry_out("posterior", recipe, tmp_path / "p")
    with RunFolder(tmp_path / "p/arms/held_out") as opened, Session(opened) as run:
        held_out = _held_out(run, _right(recipe, opened.records("analyses.jsonl", Analysis)))
        first = opened.records("likelihoods.jsonl", Likelihood)[0]
        (measured,) = log_likelihoods(recipe, held_out[:1], lora_of_tiny)
    assert (first.state, first.example_id) == ("0", held_out[0].id)
    assert first.value == pytest.approx(measured, abs=1e-4)


def test_step_0_is_what_training_continues_and_not_the_model_without_it(
    tiny_recipe, lora_of_tiny, tmp_path
):
    recipe = tiny_recipe()
    train = recipe.train.model_dump(mode="json") | {"start": str(lora_of_tiny), "steps": 1}
    recipe = tiny_recipe(train=train, study={"snapshots": 1})
    with RunFolder(tmp_path / "p", recipe) as opened, Session(opened) as run:
        assert _states(run) == {"0": lora_of_tiny}


def test_analyses_of_other_categories_are_not_held_out(tiny_recipe):
    def kinds(categories):
        recipe = tiny_recipe(train={"method": "mistake_analysis", "categories": categories})
        rows = [
            analysis_of(number, "<t>", harmful=name != "games").model_copy(
                update={"category": name}
            )
            for number, name in enumerate(["theft", "fraud", "fraud", "games"])
        ]
        return {kind: len(rows) for kind, rows in _right(recipe, rows).items()}

    assert kinds(None) == {"analysis": 3, "contrast": 1}
    assert kinds(["fraud"]) == {"analysis": 2, "contrast": 1}


def test_too_little_is_told_in_one_line(tiny_recipe, tmp_path):
    with pytest.raises(
        InputError, match=r"3 .*mistakes \(of 10; study.held_out is .* at least 6"
    ) as error:
        carry_out("posterior", tiny_recipe(10), tmp_path / "few")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="sft learns no analyses"):
        carry_out("posterior", tiny_recipe(train={"method": "sft"}), tmp_path / "sft")
