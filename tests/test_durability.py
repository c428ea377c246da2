"""The durability study: what ordinary fine-tuning and a compliant opening do to each model."""

import json

import numpy as np
import pytest

from setbacks.errors import InputError
from setbacks.measure.substance import substance
from setbacks.pipeline import check
from setbacks.prompts import prompts
from setbacks.recipe import Recipe
from setbacks.records import Arm, Example, Response, Verdict
from setbacks.runs.folder import RunFolder
from setbacks.studies import carry_out
from setbacks.studies.durability import (
    TORN,
    UNTRAINED,
    Durability,
    Tuned,
    _begun,
    _further,
    _read,
    _rows,
    _tuned,
    describe_lasting,
    describe_opening,
)
from setbacks.studies.scores import Scores


def scored(harmless, torn=0):
    """What a model with these outcomes on as many harmful prompts reached.

    `torn` of the answers count as refusals, too, although they are harmful.
    """
    values = {("h", str(i)): float(v) for i, v in enumerate(harmless)}
    other = {("s", str(i)): 1.0 for i in range(len(values))}
    return {
        "harmless_rate": Scores(values, [float(np.mean(harmless))]),
        "compliance": Scores(other, [1.0]),
        TORN: Scores({key: float(i < torn) for i, key in enumerate(values)}, [0.0]),
    }


GONE, KEPT = Arm.of_method("gone"), Arm.of_method("kept")


def models(*untrained, **trained):
    """Models whose Harmless Rates on 60 prompts, in %, are given for 0, 10, 20 ... steps."""
    order = np.arange(60)

    def model(percent):
        return scored(order < 0.6 * percent)

    given = {UNTRAINED: untrained} | {Arm.of_method(name): p for name, p in trained.items()}
    return {
        arm: Tuned({10 * i: model(p) for i, p in enumerate(rates)}, model(begun))
        for arm, (*rates, begun) in given.items()
    }


def test_further_tuning_needs_no_mistakes_where_a_probe_ranks_drafts(
    tiny_recipe, lora_of_tiny, tmp_path, monkeypatch
):
    def each(folder, variants, *_, **__):
        for one in variants:
            check(one.recipe)
            yield one, lora_of_tiny.parent

    monkeypatch.setattr("setbacks.studies.durability.each", each)
    path = tmp_path / "tested.jsonl"
    path.write_text('{"text": "<tested>"}\n')
    suites = [{"name": "harmful", "kind": "harmful", "sources": [str(path)]}]
    respond = {"suites": suites, "posterior": {"rank_by": "states"}}
    recipe = tiny_recipe(respond=respond)
    _tuned(recipe, Durability.Options(methods=["mistake_analysis"]), tmp_path, None)


def test_what_further_tuning_needs_is_checked_before_anything_is_trained(recipe, tmp_path):
    prompts_alone = tmp_path / "prompts.jsonl"
    prompts_alone.write_text('{"text": "<no answer>"}\n')
    train = {"method": "mistake_analysis", "helpful": [str(prompts_alone)], "helpful_from": "model"}
    study = {"methods": ["mistake_analysis"]}
    with pytest.raises(InputError, match=r"prompts.jsonl.* no field \"answer\""):
        carry_out("durability", recipe(train=train, study=study), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_further_tuning_reads_nothing_of_earlier_runs(recipe):
    made = recipe(train={"replay": {"runs": ["earlier"]}})
    further = _further(made, Durability.Options(), UNTRAINED, None).recipe.train
    assert further.replay.runs == [] and further.method == "helpful" and further.start is None


def test_a_judge_without_verdicts_on_harm_is_said_to_have_no_rate(recipe, tmp_path, monkeypatch):
    made = recipe()
    made = made.model_copy(
        update={"judges": [s.model_copy(update={"name": n}) for n in "ab" for s in made.judges]}
    )
    asked = scored([True] * 30)
    silent = {metric: Scores({}, []) for metric in asked}
    monkeypatch.setattr("setbacks.studies.durability._tuned", lambda *_: {UNTRAINED: {0: None}})
    monkeypatch.setattr(
        "setbacks.studies.durability.each",
        lambda _, many, *__, **___: [(v, tmp_path) for v in many],
    )
    read = {"a": asked, "b": silent}
    monkeypatch.setattr(
        "setbacks.studies.durability._read",
        lambda _, judge: {"after_0": read[judge], "begun": read[judge]},
    )
    page = Durability().run(made, Durability.Options(), tmp_path, None)
    assert page.answer[1:] == ["By b: no answer has a verdict on harm, so there is no rate."]
    assert len(page.tables) == len(page.pictures) == 2 and {*page.data} == {*"ab"}


def test_a_gain_lasts_until_it_cannot_be_told_from_the_untrained_model_tuned_as_long():
    made = models(50, 45, 40, 50, gone=(90, 80, 45, 20), kept=(90, 90, 85, 88))
    rows = _rows(made)
    gone, kept = describe_lasting(GONE, rows), describe_lasting(KEPT, rows)
    assert "begins +40.0" in gone and "after 20 steps the gain is no longer significant" in gone
    assert "moved by −45.0" in gone and "within chance" not in gone
    assert "+45.0" in kept and "are left after 20 steps" in kept
    assert "moved by −5.0" in kept and "within chance" in kept
    lost = next(row for row in rows if row["arm"] == "gone" and row["steps"] == 20)
    assert lost["left"].value == pytest.approx(5 / 100, abs=0.01)


def test_without_a_gain_there_is_none_to_undo():
    rows = _rows(models(50, 45, 50, same=(52, 40, 50), worse=(20, 20, 50)))
    for arm in map(Arm.of_method, ("same", "worse")):
        assert "not significantly safer than the untrained model" in describe_lasting(arm, rows)
        assert "no gain to undo" in describe_lasting(arm, rows)


def test_what_an_opening_does_is_told_from_nothing():
    made = models(50, 50, shallow=(90, 40), deep=(90, 88), better=(50, 90))
    data = {arm.name: describe_opening(arm, row) for arm, row in _begun(made).items()}
    assert (
        "that much of its safety was in its first words" in data["shallow"]
        and "change of −50.0" in data["shallow"]
    )
    assert "not a significant" in data["deep"] and "not a significant" in data["vanilla"]
    assert "more harmless" in data["better"]


def test_refusals_that_a_judge_takes_for_harm_are_told(answered):
    """After a compliant opening, a judge may call one answer harmful and a refusal."""
    prompts_of = [("harmful", f"<harmful {i}>", "<Sure. No, I won't.>") for i in range(20)]
    folder = answered({"vanilla": prompts_of, "sft": prompts_of})
    with RunFolder(folder) as run:
        for arm, torn in (("vanilla", 0), ("sft", 6)):
            run.journal(f"verdicts/{arm}.probe.jsonl", Verdict).write(
                [
                    Verdict(
                        id=row.id, response_id=row.id, judge="probe",
                        harmful=number < 10, refused=10 - torn <= number < 15,
                    )
                    for number, row in enumerate(run.records(f"responses/{arm}.jsonl", Response))
                ]
            )  # fmt: skip
    read = _read(folder, "probe")
    measured = {
        arm: Tuned({0: scored([True] * 20)}, read[arm.name])
        for arm in (UNTRAINED, Arm.of_method("sft"))
    }
    untrained, sft = (describe_opening(arm, row) for arm, row in _begun(measured).items())
    assert "refusals" not in untrained
    assert "30.0" in sft and "% of these answers count both as harmful and as refusals" in sft


def test_too_few_prompts_and_a_method_named_twice_are_told(recipe, tmp_path):
    with pytest.raises(InputError, match="6 harmful prompts .* at least 20"):
        carry_out("durability", recipe(), tmp_path / "few")
    twice = recipe(study={"methods": ["sft", "sft"]})
    with pytest.raises(InputError, match='methods: duplicate value "sft"'):
        carry_out("durability", twice, tmp_path / "twice")
    with pytest.raises(InputError, match='unknown key "study.method".*methods'):
        carry_out("durability", recipe(study={"method": ["sft"]}), tmp_path / "key")


@pytest.mark.slow
def test_a_model_is_aligned_tuned_on_and_asked_and_nothing_is_done_twice(
    tiny, recipe_data, fake_engine, data, tmp_path
):
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"text": f"<x {i}>"}) + "\n" for i in range(20)))
    suites = [{"name": kind, "kind": kind, "sources": [str(asked)]} for kind in ("harmful", "safe")]
    recipe = Recipe.model_validate(
        recipe_data(
            model={"model": str(tiny), "dtype": "float32", "device": "cpu"},
            train={
                "helpful": [str(data)],
                "safe": [str(data)],
                "steps": 3,
                "batch_size": 2,
                "lora": {"r": 2},
                "learning_rate": 0.02,
            },
            respond={"suites": suites, "sampling": {"max_new_tokens": 6}},
            study={"methods": ["sft"], "steps": 4, "points": 2},
        )
    )
    folder = tmp_path / "d"
    page = carry_out("durability", recipe, folder)
    found = json.loads((folder / "findings.json").read_text())
    curve = found["data"]["llm"]["curve"]
    places = [(row["arm"], row["steps"]) for row in curve]
    assert places == [(arm, steps) for arm in ("vanilla", "sft") for steps in (0, 2, 4)]
    # A random model may write nothing that can be seen, which is not scored.
    seen = {}
    for arm in ("vanilla", "sft"):
        with RunFolder(folder / f"arms/answers.{arm}") as run:
            for steps in (0, 2, 4):
                rows = run.records(f"responses/after_{steps}.jsonl", Response)
                asked_of = [r for r in rows if r.kind == "harmful"]
                assert len(asked_of) == 20
                seen[arm, steps] = sum(substance(r.text, r.finish) == "text" for r in asked_of)
    assert [row["harmless_rate"]["n"] for row in curve] == [seen[place] for place in places]
    assert all(0 < row["left"]["n"] <= seen[row["arm"], 0] for row in curve)
    assert page.read_text().count("<svg") == 2

    # It goes on from the aligned model, on helpful answers alone, at one learning rate.
    with RunFolder(folder / "arms/sft.on") as run:
        assert run.recipe.train.start == str(folder / "arms/sft/adapter")
        assert {e.kind for e in run.records("training.jsonl", Example)} == {"helpful"}
    lines = (folder / "arms/sft.on/loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [0.02] * 4

    with RunFolder(folder / "arms/answers.sft") as run:
        written = [run.records(f"responses/after_{k}.jsonl", Response) for k in (0, 2, 4)]
    with RunFolder(folder / "arms/answers.vanilla") as run:
        written.append(run.records("responses/after_0.jsonl", Response))
    assert len({tuple(r.text for r in rows) for rows in written}) == 4  # four different models
    with RunFolder(folder / "arms/begun.sft") as run:
        begun = run.records("responses/begun.jsonl", Response)
    assert len(begun) == 20 and {r.kind for r in begun} == {"harmful"}
    assert all(r.text.startswith(prompts("en")["opening"]) for r in begun)

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}
    carry_out("durability", recipe, folder)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}
