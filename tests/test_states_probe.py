"""The probe of a model's states: what it is fitted on, how it is measured, and what it ranks."""

import json
from collections import Counter

import numpy as np
import pytest

from setbacks.engines import open_engine
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.methods import open_method, states_probe
from setbacks.methods.states_probe import DEPTHS, FEWEST, Answer, known_answers
from setbacks.pipeline import carry_out, check, open_run
from setbacks.records import Choice, Correction, Mistake, OwnAnswer, Request
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.session import Session

BY_STATES = {"drafts": 3, "rank_by": "states"}


@pytest.fixture
def ranked(tiny_recipe, tmp_path):
    """A recipe on the tiny model with 24 mistakes whose drafts are ranked by states."""

    def make(number=24, **more):
        path = tmp_path / "tested.jsonl"
        path.write_text("".join(json.dumps({"text": f"<tested {n}>"}) + "\n" for n in range(4)))
        suites = [{"name": "harmful", "kind": "harmful", "sources": [str(path)]}]
        respond = {"suites": suites, "guidance": False, "sampling": {"max_new_tokens": 6}}
        data = tiny_recipe(number).model_dump(mode="json")
        data["respond"] |= respond | {"posterior": BY_STATES}
        data["train"] |= {"steps": 1, "mix": {"helpful": 0.2}}
        return type(tiny_recipe(number)).model_validate(data | more)

    return make


# What it is fitted on ---------------------------------------------------------------------------


def mistake(number, outcome="mistake", kind="harmful"):
    return Mistake(
        id=f"m{number}{kind}", instruction_id="i", instruction=f"<q {number}>",
        response=f"<think>Well.</think><bad {number}>", kind=kind, outcome=outcome, attempt=0,
        hint=None, category=None, language="en", source="s", model="m",
    )  # fmt: skip


def test_the_answers_of_a_run_are_known_by_where_they_come_from(recipe, data, tmp_path):
    made = recipe(train={"helpful": [str(data)], "safe": [str(data)]})
    with RunFolder(tmp_path / "run", made) as folder:
        kinds = [mistake(0), mistake(1, "refusal"), mistake(2, kind="refusal")]
        folder.journal("mistakes.jsonl", Mistake).write(kinds)
        correction = {"analysis_id": "a", "instruction": "<q 0>", "response": "<y>", "text": "<t>"}
        corrections = [
            Correction(id=o, answer=f"<{o}>", outcome=o, sample=0, model="m", **correction)
            for o in ("kept", "harmful")
        ]
        folder.journal("corrections.jsonl", Correction).write(corrections)
        own = {"instruction_id": "i", "instruction": "<b>", "language": "en", "source": "s"}
        benign = OwnAnswer(id="o", text="<t>", answer="<own>", outcome="kept", model="m", **own)
        folder.journal("benign.jsonl", OwnAnswer).write([benign])
        learned, before = (known_answers(made, folder, learned=one) for one in (True, False))
    assert [one for one in learned if one.harmful] == [Answer("<q 0>", "<bad 0>", True)]
    harmless = Counter(one.response for one in learned if not one.harmful)
    assert harmless["<kept>"] == harmless["<own>"] == 1 and "<harmful>" not in harmless
    assert harmless["<a good answer on the otter>"] == 2  # of benign answers, and of safe ones
    assert learned[: len(before)] == before and len(learned) == len(before) + 2


def test_no_prompt_of_a_suite_is_in_it_even_if_they_may_be_trained_on(ranked):
    recipe = ranked(decontaminate=None)
    known = [Answer("<tested 1>", "<x>", True), Answer("<q 1>", "<y>", False)]
    assert states_probe._untested(recipe, known) == known[1:]


def test_answers_to_instructions_with_both_kinds_come_first(monkeypatch):
    monkeypatch.setattr(states_probe, "MOST", 5)
    known = [Answer(f"<q {n}>", "<bad>", True) for n in range(20)]
    known += [Answer(f"<q {n}>", "<good>", False) for n in (3, 5, 7, 30, 31, 32, 33, 34)]
    sample = states_probe._sample([*known, *known])
    assert Counter(one.harmful for one in sample) == {True: 5, False: 5}
    for harmful in (True, False):
        prompts = {one.instruction for one in sample if one.harmful == harmful}
        assert {"<q 3>", "<q 5>", "<q 7>"} <= prompts and len(prompts) == 5
    assert states_probe._sample(known[::-1]) == sample


# How it is measured -----------------------------------------------------------------------------


def fitted(within=0.0, between=0.0, depth=2, prompts=60, seed=0):
    """Fit a probe on made-up states: a mistake and two safe answers to each harmful prompt."""
    generator = np.random.default_rng(seed)
    known = [Answer(f"<q {n}>", f"<bad {n}>", True) for n in range(prompts)]
    known += [Answer(f"<q {n}>", f"<good {n} {m}>", False) for n in range(prompts) for m in "ab"]
    known += [Answer(f"<benign {n}>", f"<fine {n}>", False) for n in range(2 * prompts)]
    x = generator.normal(size=(len(known), len(DEPTHS), 12))
    x[: 3 * prompts, :, 0] += between  # tells prompts apart
    x[:prompts, depth, 1] += within  # tells answers apart
    return states_probe._fit("0" * 16, "m", known, x)


def test_the_layer_that_tells_answers_of_one_prompt_apart_is_chosen():
    probe = fitted(within=4.0)
    assert probe.depth == DEPTHS[2] and np.argmax(np.abs(probe.weight)) == 1
    assert probe.auc_within_prompts[0] > 0.95 and probe.auc[0] > 0.95
    assert (probe.mistakes, probe.harmless, probe.prompts) == (60, 240, 60)
    assert fitted(within=4.0) == probe


def test_a_probe_that_recognizes_prompts_is_at_chance_within_them():
    probe = fitted(between=6.0)
    assert probe.auc[0] > 0.65
    share, low, high = probe.auc_within_prompts
    assert low < 0.5 < high and share < 0.6


def test_the_best_of_several_layers_of_noise_does_not_look_good():
    shares = [fitted(prompts=40, seed=seed).auc_within_prompts[0] for seed in range(6)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


# What it needs ----------------------------------------------------------------------------------


def test_what_has_no_mistakes_or_states_is_told_before_work_begins(ranked, recipe, data):
    respond = recipe().respond.model_dump() | {"posterior": BY_STATES}
    with pytest.raises(InputError, match=r"rank_by: engine rules gives no hidden states"):
        check(recipe(respond=respond))
    train = ranked().train.model_dump(mode="json") | {"method": "sft"}
    with pytest.raises(InputError, match=r"train\.method sft uses none; set respond\.posterior"):
        check(ranked(train=train))
    models = [{"name": "m", "model": ranked().model.model_dump(mode="json")}]
    with pytest.raises(InputError, match=r"mistakes of a run, and an evaluation has none"):
        check(ranked(evaluate=models))
    with pytest.raises(InputError, match=r"the recipe: 12 of 12 instructions have a safe answer"):
        check(ranked(12))
    check(ranked())


def test_too_few_mistakes_with_a_safe_answer_are_told(ranked, tmp_path):
    recipe = ranked()
    with RunFolder(tmp_path / "run", recipe) as folder, Session(folder) as run:
        journal = folder.journal("mistakes.jsonl", Mistake)
        journal.write([mistake(number) for number in range(FEWEST - 1)])
        with pytest.raises(InputError, match=r"run: 19 of 19 instructions of mistakes have a safe"):
            states_probe.states_probe(run, "respond", "probes/x.jsonl", "m", None)


# What it ranks ----------------------------------------------------------------------------------


def test_an_arm_answers_with_the_draft_that_its_probe_prefers(ranked, tmp_path, caplog):
    with RunFolder(tmp_path / "run", ranked()) as folder:
        responses = carry_out(folder, "respond")
    run = Run(tmp_path / "run")
    engine = open_engine(run.recipe.model)
    for arm, adapter in (("vanilla", None), ("mistake_analysis", run.path / "adapter")):
        (probe,) = run.records(f"probes/{arm}-posterior.jsonl", StatesProbe)
        assert (probe.mistakes, probe.prompts) == (24, 24)
        for response in responses[f"{arm}-posterior"]:
            assert len(response.drafts) == 3 and response.text == response.drafts[0]
            replies = [Request(response.instruction, 0, reply=text) for text in response.drafts]
            harm = np.array(probe.p_harmful(engine, replies, adapter))
            said = np.array([bool(text.strip()) for text in response.drafts])
            assert (np.diff(harm[said]) > -1e-4).all()
    log = (run.path / "run.log").read_text()
    assert log.count(" within 24 prompts, ") == 2


def test_a_resumed_arm_is_the_same_and_its_probe_is_not_fitted_again(ranked, tmp_path, monkeypatch):
    recipe = ranked(name="r")
    with RunFolder(tmp_path / "run", recipe) as folder:
        carry_out(folder, "respond")
    files = ["probes/vanilla-posterior.jsonl", "responses/vanilla-posterior.jsonl"]
    whole = [(tmp_path / "run" / file).read_bytes() for file in files]
    with monkeypatch.context() as patch:
        patch.setattr(states_probe, "_fit", None)
        (tmp_path / "run" / files[1]).unlink()
        with open_run(tmp_path / "run") as folder:
            carry_out(folder, "respond")
    assert [(tmp_path / "run" / file).read_bytes() for file in files] == whole
    (tmp_path / "run" / files[0]).unlink()
    with open_run(tmp_path / "run") as folder:
        carry_out(folder, "respond")
    assert (tmp_path / "run" / files[0]).read_bytes() == whole[0]


def test_another_ranking_redoes_the_answers_alone(ranked, tmp_path):
    recipe = ranked()
    with RunFolder(tmp_path / "run", recipe) as folder:
        carry_out(folder, "respond")
    data = recipe.model_dump(mode="json")
    data["respond"]["posterior"]["rank_by"] = "spoken"
    spoken = type(recipe).model_validate(data)
    with (
        pytest.raises(InputError, match=r"respond\.posterior\.rank_by.*--from respond"),
        open_run(tmp_path / "run", spoken),
    ):
        pass
    with open_run(tmp_path / "run", spoken, redo="respond") as folder:
        assert not (folder.path / "probes").exists() and (folder.path / "adapter").exists()
        assert (folder.path / "superseded/001/probes/vanilla-posterior.jsonl").exists()


def test_the_model_learns_the_drafts_that_the_probe_prefers(ranked, lora_of_tiny, tmp_path):
    train = ranked().train.model_dump(mode="json") | {"start": str(lora_of_tiny)}
    recipe = ranked(train=train | {"method": "posterior_distillation"})
    assert open_method(recipe).uses_mistakes
    with RunFolder(tmp_path / "run", recipe) as folder:
        carry_out(folder, "train")
        choices = folder.records("choices.jsonl", Choice)
        (probe,) = folder.records("probe.jsonl", StatesProbe)
    engine = open_engine(recipe.model)
    assert len(choices) == 24 and (probe.mistakes, probe.prompts) == (24, 24)
    for choice in choices:
        replies = [Request(choice.instruction, 0, reply=text) for text in choice.drafts]
        harm = probe.p_harmful(engine, replies, lora_of_tiny)
        assert choice.p_harmful == pytest.approx(harm, abs=1e-3)
    with open_run(tmp_path / "run", redo="train") as folder:
        assert not (folder.path / "probe.jsonl").exists()


def test_distillation_by_the_spoken_verdict_needs_no_mistakes(ranked):
    train = ranked().train.model_dump(mode="json") | {"method": "posterior_distillation"}
    respond = ranked().respond.model_dump(mode="json") | {"posterior": {"rank_by": "spoken"}}
    assert not open_method(ranked(train=train, respond=respond)).uses_mistakes
