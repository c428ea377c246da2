"""The probe of a model's states: what it is fitted on, how it is measured, and what it ranks."""

import json
from collections import Counter

import numpy as np
import pytest

from setbacks.engines import open_engine
from setbacks.engines.local import Local
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.methods import open_method, states_probe
from setbacks.methods.states_probe import FEWEST, Answer, known_answers
from setbacks.pipeline import carry_out, check, open_run
from setbacks.recipe import Recipe
from setbacks.records import Choice, Correction, Mistake, Request
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.session import Session
from setbacks.stages.induce import induce

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


def correction(number, outcome="kept", kind="harmful"):
    return Correction(
        id=f"c{number}{outcome}{kind}", analysis_id="a", instruction=f"<q {number}>",
        response="<y>", kind=kind, text="<t>", answer=f"<{outcome} {number}>", outcome=outcome,
        sample=0, model="m",
    )  # fmt: skip


def known(run, mistakes, corrections=()):
    run.folder.journal("mistakes.jsonl", Mistake).write(mistakes)
    run.folder.journal("corrections.jsonl", Correction).write(corrections)
    return known_answers(run.recipe, run)


@pytest.fixture
def session(ranked, tmp_path):
    with RunFolder(tmp_path / "run", ranked()) as folder, Session(folder) as run:
        yield run


def test_mistakes_and_harmless_answers_to_the_same_instructions_are_known(session):
    mistakes = [*map(mistake, range(20)), mistake(21, "refusal"), mistake(22, kind="refusal")]
    corrections = [correction(0), correction(1, "harmful"), correction(2, kind="refusal")]
    corrections += [correction(23)]  # its instruction has no mistake
    answers = known(session, mistakes, corrections)
    assert [one for one in answers if one.harmful] == [
        Answer(f"<q {n}>", f"<bad {n}>", True) for n in range(20)
    ]
    harmless = {(one.instruction, one.response) for one in answers if not one.harmful}
    expected = {(f"<q {n}>", f"<answer {n}>") for n in range(20)} | {("<q 0>", "<kept 0>")}
    assert harmless == expected and len(answers) == 41


def test_no_prompt_of_a_suite_is_in_it_even_if_they_may_be_trained_on(ranked, tmp_path):
    recipe = ranked(decontaminate=None)
    (tmp_path / "tested.jsonl").write_text(json.dumps({"text": "<q 3>"}) + "\n")
    with RunFolder(tmp_path / "run", recipe) as folder, Session(folder) as run:
        answers = known(run, [*map(mistake, range(24))])
    assert len(answers) == 46 and "<q 3>" not in {one.instruction for one in answers}


def test_no_more_instructions_are_read_than_the_probe_can_use(session, monkeypatch):
    monkeypatch.setattr(states_probe, "MOST", 5)
    answers = known(session, [*map(mistake, range(24))])
    assert Counter(one.harmful for one in answers) == {True: 5, False: 5}
    assert len({one.instruction for one in answers}) == 5


def test_too_few_mistakes_with_a_safe_answer_are_told(session):
    with pytest.raises(InputError, match=r"run: 19 of 19 instructions of mistakes have a safe"):
        known(session, [*map(mistake, range(FEWEST - 1))])


# How it is measured -----------------------------------------------------------------------------


def fitted(within=0.0, between=0.0, prompts=60, seed=0):
    """Fit a probe on made-up states: a mistake and two safe answers to each prompt."""
    generator = np.random.default_rng(seed)
    answers = [Answer(f"<q {n}>", f"<bad {n}>", True) for n in range(prompts)]
    answers += [Answer(f"<q {n}>", f"<good {n} {m}>", False) for m in "ab" for n in range(prompts)]
    x = generator.normal(size=(len(answers), 12))
    x[:, 0] += np.tile(generator.normal(size=prompts) * between, 3)  # tells prompts apart
    x[:prompts, 1] += within  # tells answers apart
    return states_probe._fit("0" * 16, "m", answers, x)


def test_a_probe_finds_what_tells_answers_of_one_prompt_apart():
    probe = fitted(within=4.0, between=6.0)
    assert np.argmax(np.abs(probe.weight)) == 1
    assert probe.auc_within_prompts[0] > 0.95
    assert (probe.mistakes, probe.harmless, probe.prompts) == (60, 120, 60)
    assert fitted(within=4.0, between=6.0) == probe


def test_prompts_that_differ_do_not_hide_how_well_their_answers_are_ordered():
    probe = fitted(within=1.0, between=100.0)
    assert probe.auc[0] < probe.auc_within_prompts[0]


def test_a_probe_of_noise_is_at_chance():
    share, low, high = np.mean([fitted(seed=s).auc_within_prompts for s in range(6)], axis=0)
    assert share == pytest.approx(0.5, abs=0.07) and low < 0.5 < high


def test_states_that_overflow_are_told(session, monkeypatch):
    session.folder.journal("mistakes.jsonl", Mistake).write([*map(mistake, range(24))])
    monkeypatch.setattr(Local, "states", lambda self, r, depths, a: np.full((len(r), 3, 4), np.nan))
    probes = session.journal("probes/x.jsonl", StatesProbe)
    with pytest.raises(InputError, match=r"hidden states overflow.*set model\.dtype=float32"):
        states_probe.states_probe(session, "respond", probes, "untrained", None)


def test_a_probe_near_chance_gives_a_notice(session, monkeypatch, caplog):
    states = np.random.default_rng(0).normal(size=(48, 4))
    monkeypatch.setattr(states_probe, "states_of", lambda engine, answers, adapter: states)
    session.folder.journal("mistakes.jsonl", Mistake).write([*map(mistake, range(24))])
    for _ in range(2):  # also if it is not fitted again
        probes = session.journal("probes/x.jsonl", StatesProbe)
        states_probe.states_probe(session, "respond", probes, "untrained", None)
    assert "the probe of untrained is near chance within prompts" in caplog.text
    (line,) = session.folder.notices()
    assert line.endswith("or set respond.posterior.rank_by=spoken")


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
    assert len(choices) == 24 and (probe.mistakes, probe.harmless) == (24, 24)
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


@pytest.mark.slow
def test_a_probe_of_the_embedded_model_tells_mistakes_from_safe_answers(tmp_path):
    source = {"source": "builtin:redteam", "split": "train", "limit": 30}
    recipe = Recipe.model_validate({"instructions": [source], "respond": {"posterior": BY_STATES}})
    with RunFolder(tmp_path / "run", recipe) as folder, Session(folder) as run:
        induce(run)
        probes = run.journal("probes/x.jsonl", StatesProbe)
        probe = states_probe.states_probe(run, "respond", probes, "untrained", None)
    assert probe.prompts >= FEWEST
    share, low, _ = probe.auc_within_prompts
    assert share > 0.9 and low > 0.75
