"""Responses and verdicts: every arm answers the same prompts, every judge judges every response."""

import pytest
from pydantic import ValidationError

from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Verdict
from setbacks.runfolder import RunFolder
from setbacks.stages.judge import judge
from setbacks.stages.respond import arms, respond

ARMS = ["vanilla", "vanilla-guided", "mistake_analysis", "mistake_analysis-guided"]


@pytest.fixture
def run(opened, tmp_path):
    """An open run with an adapter's folder in it."""
    made = opened("talker")
    (made.path / "adapter").mkdir()
    return made


@pytest.fixture
def responses(run):
    return respond(run, run.path / "adapter")


# Responses --------------------------------------------------------------------------------------


def test_every_arm_answers_every_prompt(responses, run):
    assert list(responses) == ARMS and run.arms() == ["vanilla", "vanilla-guided", *ARMS[2:]]
    for arm, made in responses.items():
        assert len(made) == len({r.id for r in made}) == 6
        assert {r.arm for r in made} == {arm}
        assert {r.guided for r in made} == {arm.endswith("-guided")}
        assert {(r.suite, r.kind) for r in made} == {("harmful", "harmful")}
        assert all(r.reference.startswith("<a good answer") for r in made)
    assert len({r.id for made in responses.values() for r in made}) == 24


def test_guidance_is_around_the_instruction_and_the_adapter_is_on(responses, run, rules):
    guided = prompts("en")["guided"]
    asked = {}
    for batch, _, adapter in rules.asked:
        for request in batch:
            asked.setdefault(adapter, set()).add(request.prompt)
    texts = {r.instruction for r in responses["vanilla"]}
    expected = texts | {fill(guided, instruction=text) for text in texts}
    assert asked == {None: expected, run.path / "adapter": expected}


def test_arms_draw_alike(rules, responses):
    """What differs between arms must be the model, and not the luck of the draw."""
    seeds = [{request.seed for request in batch} for batch, *_ in rules.asked]
    assert len(set().union(*seeds)) == 6


def test_without_guidance_there_are_two_arms(opened, tmp_path):
    run = opened(respond={"guidance": False, "suites": Recipe().respond.suites})
    assert [arm.name for arm in arms(run.recipe, tmp_path)] == ["vanilla", "mistake_analysis"]


def test_the_suites_of_the_quickstart_can_all_be_asked(opened):
    run = opened(respond={"guidance": False, "sampling": {"max_new_tokens": 1}})
    made = respond(run, run.path / "adapter")["vanilla"]
    assert {r.kind for r in made} == {"harmful", "hijacking", "safe", "helpful"}


def test_going_on_answers_only_what_is_missing(run, responses, rules):
    path = run.path / "responses" / "vanilla-guided.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    rules.asked.clear()
    assert respond(run, run.path / "adapter") == responses
    assert path.read_bytes() == whole
    assert [len(batch) for batch, *_ in rules.asked] == [2], "the last batch of six is of two"


# Verdicts ---------------------------------------------------------------------------------------


def test_every_response_gets_a_verdict_of_every_judge(run, responses):
    verdicts = judge(run, responses)
    assert list(verdicts) == [(arm, "llm") for arm in ARMS]
    for (arm, name), made in verdicts.items():
        assert [v.response_id for v in made] and {v.response_id for v in made} == {
            r.id for r in responses[arm]
        }
        assert {v.judge for v in made} == {name}
        assert all(v.harmful is (v.harmless_score <= 5) for v in made)
        assert run.records(f"verdicts/{arm}.{name}.jsonl", Verdict) == made


def test_going_on_judges_only_what_is_missing(run, responses, rules):
    verdicts = judge(run, responses)
    rules.asked.clear()
    assert judge(run, responses) == verdicts and rules.asked == []
    path = run.path / "verdicts" / "vanilla.llm.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert judge(run, responses) == verdicts and path.read_bytes() == whole


def llm(model, **more):
    return {"judge": "llm", "engine": {"model": model, "engine": "rules"}, **more}


def test_two_judges_of_one_kind_are_told_apart(recipe, tmp_path):
    """The second one's verdicts must never be the first one's."""
    with pytest.raises(ValidationError, match="give each a name"):
        recipe(judges=[llm("praiser"), llm("scolder")])
    told = recipe(judges=[llm("praiser"), llm("scolder", name="strict")])
    with RunFolder(tmp_path / "run", told) as run:
        verdicts = judge(run, respond(run, tmp_path))
    scores = {name: {v.harmless_score for v in made} for (_, name), made in verdicts.items()}
    assert len(verdicts) == 8 and scores == {"llm": {10.0}, "strict": {1.0}}


def test_a_judge_judges_the_kinds_that_it_is_told(opened, rules):
    suites = [
        {"name": kind, "kind": kind, "sources": [{"source": f"builtin:{data}", "limit": 2}]}
        for kind, data in (("harmful", "redteam"), ("helpful", "helpful"))
    ]
    run = opened(
        respond={"suites": suites, "guidance": False}, judges=[llm("rater", kinds=["helpful"])]
    )
    verdicts = judge(run, respond(run, run.path / "adapter"))
    assert [len(made) for made in verdicts.values()] == [2, 2]
    for made in verdicts.values():
        assert all(v.helpful_score and v.harmless_score is v.harmful is None for v in made)


@pytest.mark.slow
def test_the_real_model_answers_and_is_judged_by_itself(tmp_path):
    """The embedded model in all its places, on two prompts."""
    suite = {"name": "a", "kind": "helpful", "sources": [{"source": "builtin:helpful", "limit": 2}]}
    recipe = Recipe.model_validate(
        {
            "respond": {"suites": [suite], "sampling": {"max_new_tokens": 8}},
            "judges": [{"judge": "llm", "retries": 1}],
        }
    )
    files = []
    for folder in ("one", "other"):
        with RunFolder(tmp_path / folder, recipe) as run:
            (arm,) = [arm for arm in arms(run.recipe, tmp_path) if arm.name == "vanilla"]
            made = {"vanilla": respond_arm(run, arm)}
            verdicts = judge(run, made)
        assert all(r.tokens and r.text for r in made["vanilla"])
        assert all(v.raw is not None for v in verdicts["vanilla", "llm"])
        files.append(
            [
                (tmp_path / folder / name).read_bytes()
                for name in ("responses/vanilla.jsonl", "verdicts/vanilla.llm.jsonl")
            ]
        )
    assert files[0] == files[1]


def respond_arm(run, arm):
    from setbacks.stages.respond import _answer, instructions

    return _answer(
        run, arm, [(s, x) for s in run.recipe.respond.suites for x in instructions(s.sources)]
    )
