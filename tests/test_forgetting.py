"""The forgetting study: what training costs in ability and in variety."""

import importlib.util
import json

import numpy as np
import pytest

from setbacks.errors import InputError
from setbacks.measure.statistics import Difference, Estimate
from setbacks.pipeline import check
from setbacks.recipe import Recipe
from setbacks.records import Arm
from setbacks.studies import carry_out
from setbacks.studies.forgetting import (
    Forgetting,
    _held_out,
    describe_changes,
    harness,
    relative,
)
from setbacks.studies.likelihood import log_likelihoods


def test_only_what_is_beyond_noise_is_named():
    lost, flat = Difference(-0.2, -0.3, -0.1, 20, 0.001), Difference(0.1, -0.1, 0.3, 20, 0.3)
    assert describe_changes({Arm.of_method("m"): {"likelihood": flat}}) == "No loss beyond noise."
    line = describe_changes({Arm.of_method("m"): {"likelihood": lost, "distinct_1": flat}})
    assert "Lost beyond noise: log-likelihood" in line and "distinct" not in line


def test_a_change_is_a_share_of_the_value_before_and_of_logarithms_a_ratio():
    half = relative(Estimate(4.0, 3.0, 5.0, 9), Difference(-2.0, -3.0, -1.0, 9, 0.01))
    assert half == Difference(-0.5, -0.75, -0.25, 9, 0.01)
    twice = relative(None, Difference(np.log(2), 0.0, np.log(3), 9, 0.04))
    assert twice[:3] == pytest.approx((1, 0, 2))
    nothing = relative(Estimate(0.0, 0.0, 0.0, 9), Difference(0.1, 0.0, 0.2, 9, 0.1))
    assert nothing.value is None


def test_arms_are_measured_against_the_untrained_model_and_nothing_is_done_twice(
    tiny_recipe, tmp_path
):
    other = tmp_path / "held.jsonl"
    other.write_text(
        "".join(json.dumps({"text": f"<h {i}>", "answer": f"<good {i}>"}) + "\n" for i in range(12))
    )
    recipe = tiny_recipe(study={"methods": ["mistake_analysis", "helpful"]})
    suites = [{"name": "helpful", "kind": "helpful", "sources": [str(other)]}]
    recipe = type(recipe).model_validate(
        recipe.model_dump() | {"respond": {"suites": suites, "sampling": {"max_new_tokens": 6}}}
    )
    page = carry_out("forgetting", recipe, tmp_path / "f")
    data = json.loads((page.parent / "findings.json").read_text())["data"]
    assert data["held_out"] == 12 and list(data["changes"]) == ["mistake_analysis", "helpful"]
    shares = [data["values"]["vanilla"][n] for n in ("distinct_1", "distinct_2", "unlikeness")]
    assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in shares)
    for arm, row in data["changes"].items():
        before, after = (data["values"][a]["perplexity"]["value"] for a in ("vanilla", arm))
        assert np.exp(-row["likelihood"]["value"]) == pytest.approx(after / before)
        assert after != before and {"distinct_1", "distinct_2", "unlikeness"} <= row.keys()
        assert row["helpful_score"]["n"] == 12
    assert "<svg" in page.read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("*.jsonl")}
    carry_out("forgetting", recipe, tmp_path / "f")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("*.jsonl")}


def test_the_untrained_model_is_measured_with_the_adapter_of_the_recipe(
    tiny_recipe, lora_of_tiny, tmp_path
):
    other = tmp_path / "held.jsonl"
    rows = [{"text": f"<h {i}>", "answer": f"<good {i}>"} for i in range(12)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suites = [{"name": "helpful", "kind": "helpful", "sources": [str(other)]}]
    recipe = tiny_recipe(
        adapter=str(lora_of_tiny),
        study={"methods": ["helpful"]},
        respond={"suites": suites, "sampling": {"max_new_tokens": 6}},
    )
    page = carry_out("forgetting", recipe, tmp_path / "f")
    values = json.loads((page.parent / "findings.json").read_text())["data"]["values"]
    measured = log_likelihoods(recipe, _held_out(recipe), lora_of_tiny)
    assert values["vanilla"]["perplexity"]["value"] == pytest.approx(
        np.exp(-np.mean(measured)), rel=1e-3
    )


def test_too_few_answers_and_what_was_trained_on_are_told(tiny_recipe, tmp_path):
    with pytest.raises(InputError, match="6 helpful prompts with an answer: .* at least 10"):
        carry_out("forgetting", tiny_recipe(6), tmp_path / "few")
    alike = tiny_recipe(12, study={"methods": ["helpful"]})  # its suites ask what training answers
    with pytest.raises(InputError, match="12 helpful prompts .* train.helpful too"):
        carry_out("forgetting", alike, tmp_path / "alike")
    assert not (tmp_path / "few").exists() and not (tmp_path / "alike").exists()


def test_the_recipes_own_method_need_not_be_possible_if_it_is_not_compared(recipe):
    study = Forgetting()
    made = recipe(train={"method": "sft", "safe": []}, study={"methods": ["helpful"]})
    with pytest.raises(InputError, match="sft needs safe answers"):
        check(made)
    study.check(made, study.options(made))


@pytest.fixture
def capitals(tmp_path):
    """Options that name a task of four questions in a folder of one's own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"of": country, "choices": [own, other], "right": number % 2}
        for number, (country, own, other) in enumerate(
            [("France", "Paris", "Rome"), ("Rome", "Italy", "Spain"), ("Spain", "Madrid", "Oslo")]
            + [("Oslo", "Norway", "Egypt")]
        )
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data)},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{of}} goes with",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "capitals.yaml").write_text(json.dumps(values))  # JSON is YAML
    return {"tasks": ["capitals"], "task_folder": str(folder)}


def test_tasks_without_the_harness_are_told_before_anything_is_done(
    tiny_recipe, tmp_path, capitals
):
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-evaluation-harness is installed")
    with pytest.raises(InputError, match=r"not installed; pip install 'setbacks\[lm-eval\]'"):
        carry_out("forgetting", tiny_recipe(study=capitals), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_the_harness_scores_each_question_with_and_without_an_adapter(tiny, lora_of_tiny, capitals):
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    recipe = Recipe.model_validate({"model": {"model": str(tiny), "device": "cpu"}})
    before = harness(recipe, Forgetting.Options(**capitals))
    assert before.keys() == {"capitals acc", "capitals acc_norm"}
    assert all(len(scores) == 4 and {*scores} <= {0.0, 1.0} for scores in before.values())
    assert harness(recipe, Forgetting.Options(**capitals)) == before
    assert len(harness(recipe, Forgetting.Options(**capitals, task_limit=2))["capitals acc"]) == 2
    seen = harness(recipe, Forgetting.Options(**capitals), lora_of_tiny)
    assert seen.keys() == before.keys()
    with pytest.raises(InputError, match='the harness knows no "capital"'):
        harness(recipe, Forgetting.Options(**capitals | {"tasks": ["capital"]}))
