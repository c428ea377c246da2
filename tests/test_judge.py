"""The stage that judges the responses of a run."""

import pytest

from setbacks.errors import InputError
from setbacks.judges.llm import LLMJudge
from setbacks.recipe import Recipe
from setbacks.records import Response, Verdict
from setbacks.stages.judge import check, judge

JOURNAL = "verdicts/a.llm.jsonl"


def responses(count):
    """Answers of one arm."""
    return {
        "a": [
            Response(
                id=str(number),
                arm="a",
                suite="s",
                kind="harmful",
                instruction_id=str(number),
                instruction=f"<instruction {number}>",
                reference=None,
                category=None,
                language="en",
                guided=False,
                guidance=None,
                text=f"<answer {number}>",
                model="m",
            )
            for number in range(count)
        ]
    }


def test_verdicts_of_another_version_are_not_lost(open_session, fake_model, monkeypatch):
    """A crash left a part of a batch: it stays if the judge cannot go on with it."""
    run = open_session(judges=[{"judge": "llm", "engine": fake_model("praiser")}])
    judge(run, responses(8))
    lines = (run.path / JOURNAL).read_bytes().splitlines(keepends=True)
    part = b"".join(lines[:5])
    (run.path / JOURNAL).write_bytes(part)
    monkeypatch.setattr(LLMJudge, "version", 2)
    with pytest.raises(InputError, match=r"by version 1 of llm, which is version 2.*--from judge"):
        judge(run, responses(8))
    assert (run.path / JOURNAL).read_bytes() == part
    monkeypatch.setattr(LLMJudge, "version", 1)
    judge(run, responses(8))
    assert (run.path / JOURNAL).read_bytes() == b"".join(lines)


def test_all_verdicts_of_another_version_are_read(open_session, fake_model, monkeypatch):
    run = open_session(judges=[{"judge": "llm", "engine": fake_model("praiser")}])
    judge(run, responses(3))
    monkeypatch.setattr(LLMJudge, "version", 2)
    verdicts = judge(run, responses(3))["a", "llm"]
    assert [verdict.version for verdict in verdicts] == [1, 1, 1]
    assert run.records(JOURNAL, Verdict) == list(verdicts)


@pytest.mark.parametrize("name", ["probe", "refusal", "vote"])
def test_an_engine_that_a_judge_would_ignore_is_refused(name):
    spec = {"judge": name, "engine": "smollm2-135m"} | ({"of": ["llm"]} if name == "vote" else {})
    judges = ["llm", spec]
    with pytest.raises(InputError, match=f"judges: {name} asks no model, so `engine` would change"):
        check(Recipe.model_validate({"judges": judges}))


def test_a_run_that_already_has_such_an_engine_is_judged(open_session):
    run = open_session(judges=[{"judge": "refusal", "engine": "smollm2-135m"}])
    assert len(judge(run, responses(3))["a", "refusal"]) == 3
