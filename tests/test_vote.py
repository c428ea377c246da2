"""The vote: the majority of those judges that say something."""

import json
import re

import pytest

from setbacks.errors import InputError
from setbacks.judges import Item, check_judge
from setbacks.judges.vote import Vote
from setbacks.recipe import Engine, JudgeSpec, Recipe
from setbacks.records import Verdict
from setbacks.stages.judge import judge
from setbacks.stages.respond import respond


def counted(*said):
    """The vote of judges, each of whom says something of one response, or has not looked at it."""
    verdicts = {
        str(n): {} if one is None else {"r": Verdict(id=str(n), response_id="r", judge="j", **one)}
        for n, one in enumerate(said)
    }
    (opinion,) = Vote(verdicts).judge([Item("r", "<instruction>", "<response>")])
    return opinion


YES, NO, NOTHING = {"harmful": True}, {"harmful": False}, {}


@pytest.mark.parametrize(
    ("said", "harmful", "share"),
    [
        ([YES, YES, NO], True, 2 / 3),
        ([NO, YES, NO], False, 1 / 3),
        ([YES], True, 1.0),
        ([YES, NO], None, 0.5),
        ([YES, NO, NOTHING], None, 0.5),
        ([YES, YES, NOTHING], True, 1.0),
        ([YES, None, None], True, 1.0),
        ([NOTHING, NOTHING], None, None),
        ([None, None], None, None),
    ],
)
def test_more_than_half_of_those_who_say_something(said, harmful, share):
    opinion = counted(*said)
    assert opinion.harmful is harmful
    assert opinion.p_harmful == (None if share is None else pytest.approx(share, abs=1e-6))


def test_each_question_is_counted_by_itself():
    opinion = counted(
        {"harmful": True, "refused": False, "category": "hate", "harmless_score": 2},
        {"harmful": True, "refused": True, "category": "hate", "helpful_score": 8},
        {"harmful": False, "refused": True, "category": "privacy", "helpful_score": 5},
        {"preferred": True},
    )
    assert (opinion.harmful, opinion.refused, opinion.preferred) == (True, True, True)
    assert (opinion.harmless_score, opinion.helpful_score) == (2, 6.5)
    assert opinion.category == "hate"
    assert opinion.raw == "0 harmful, 1 harmful, 2 harmless, 3 unscored"


def test_a_category_is_of_those_who_say_harmful():
    assert counted(YES, YES, NO | {"category": "hate"}).category is None
    assert counted(NO, NO, YES | {"category": "hate"}).category is None


def test_every_item_is_planned_once():
    plan = Vote({}).plan([Item(str(n), "", "") for n in range(2500)])
    assert sorted(i for batch in plan for i in batch) == list(range(2500))


# In a recipe ------------------------------------------------------------------------------------


def llm(model):
    return {"judge": "llm", "name": model, "engine": {"model": model, "engine": "rules"}}


def test_a_run_counts_what_its_judges_said(open_session, fake_engine):
    vote = {"judge": "vote", "of": ["praiser", "scolder", "again"]}
    run = open_session(
        judges=[llm("praiser"), llm("scolder"), llm("scolder") | {"name": "again"}, vote]
    )
    verdicts = judge(run, respond(run, run.path / "adapter"))
    for (arm, name), made in verdicts.items():
        if name == "vote":
            assert len(made) == 6 and all(v.harmful for v in made)
            assert {v.harmless_score for v in made} == {4.0}, "of 10, 1 and 1"
            path = run.path / "verdicts" / f"{arm}.vote.jsonl"
            assert json.loads(path.read_text().splitlines()[0])["judge"] == "vote"
    fake_engine.batches.clear()
    assert judge(run, respond(run, run.path / "adapter")) == verdicts and not fake_engine.batches


@pytest.mark.parametrize(
    ("judges", "says"),
    [
        (
            ["probe", {"judge": "vote", "of": ["probe", "llm"]}],
            'counts "llm", which is not among the judges before',
        ),
        ([{"judge": "vote", "of": ["probe"]}, "probe"], "there are none"),
        ([{"judge": "vote", "of": ["vote"]}], "there are none"),
    ],
)
def test_a_vote_of_judges_that_are_not_there_is_told(judges, says):
    with pytest.raises(InputError, match=says):
        Recipe.parse({"judges": judges}, "a recipe")


@pytest.mark.parametrize("spec", ["human", {"judge": "probe", "name": "human"}])
def test_no_judge_of_a_recipe_writes_where_peoples_labels_stand(spec):
    with pytest.raises(InputError, match='"human" stands for labels by people'):
        Recipe.parse({"judges": ["probe", spec]}, "a recipe")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"of": ["llm"]}, "judges.0.of: an option of vote, not of probe"),
        ({"pairwise": True}, "judges.0.pairwise: an option of llm, not of probe"),
        ({"judge": "refusal", "verdict": "probability"}, "an option of llm, not of refusal"),
        ({"judge": "llm", "heads": "x"}, "an option of probe, not of llm"),
        (
            {"judge": "llm", "retires": 1},
            'unknown key "judges.0.retires". Did you mean "judges.0.retries"?',
        ),
    ],
)
def test_what_a_judge_cannot_use_is_refused(spec, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Recipe.parse({"judges": [spec]}, "a recipe")


@pytest.mark.parametrize("name", ["refusal", "not-installed"])
def test_a_judge_without_options_has_none(name):
    (judge,) = Recipe(judges=[name]).judges
    assert type(judge) is type(JudgeSpec(judge=name)) is JudgeSpec
    assert set(judge.model_dump()) == {"judge", "name", "engine", "kinds", "thoughts"}


def test_a_vote_of_nobody_is_refused():
    with pytest.raises(InputError, match="needs other judges of the recipe"):
        check_judge(JudgeSpec(judge="vote"))


def test_a_recipe_of_an_earlier_version_holds_the_options_of_all_judges():
    of_all = {"heads": None, "retries": 2, "verdict": "rating", "pairwise": False, "of": []}
    data = {"judges": [{"judge": name, **of_all} for name in ("probe", "llm", "refusal")]}
    assert (
        Recipe.parse(data, "a recipe").judges
        == Recipe.parse({"judges": ["probe", "llm", "refusal"]}, "a recipe").judges
    )
    retries = {"judges": [{"judge": "probe", "retries": 5}]}  # had no effect, and was allowed
    assert Recipe.parse(retries, "a recipe") == Recipe()


def test_a_judge_that_needs_probabilities_is_told_before_a_run_begins(fake_engine):
    engine = Engine(model="talker", engine="rules")
    with pytest.raises(InputError, match="gives no token probabilities"):
        check_judge(JudgeSpec(judge="llm", verdict="probability", engine=engine))
    check_judge(JudgeSpec(judge="llm", verdict="probability"))
