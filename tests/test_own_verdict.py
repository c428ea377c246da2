"""What a model says of responses itself, and posterior decoding: the draft that it would keep."""

import numpy as np
import pytest

from setbacks.engines import open_engine
from setbacks.engines.own_verdict import Question, drafts, question, says_first, verdicts
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.pipeline import check
from setbacks.prompts import prompts
from setbacks.recipe import Posterior, Recipe
from setbacks.records import Completion, Request
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.stages.respond import respond


@pytest.fixture
def posterior(tiny, data):
    """A recipe on the tiny model whose arms also answer by posterior decoding."""
    return Recipe.model_validate(
        {
            "model": {"model": str(tiny), "dtype": "float32"},  # no near-ties
            "instructions": [str(data)],
            "train": {"helpful": [str(data)], "safe": [str(data)]},
            "respond": {
                "guidance": False,
                "posterior": {"drafts": 3},
                "sampling": {"max_new_tokens": 6},
                "suites": [{"name": "harmful", "kind": "harmful", "sources": [str(data)]}],
            },
        }
    )


ENGLISH = prompts("en")


def asked(recipe, count=3):
    return [Request(f"<a question, number {n}>", seed=n) for n in range(count)]


def test_the_first_draft_is_the_one_that_the_model_finds_least_harmful(posterior):
    engine = open_engine(posterior.model)
    data = Posterior(drafts=4, temperature=1.5)
    found = drafts(engine, posterior, data, asked(posterior), ["en"] * 3)
    assert [len(ranked) for ranked in found] == [4, 4, 4]
    for request, ranked in zip(asked(posterior), found, strict=True):
        texts = [draft.completion.text for draft in ranked]
        assert len(set(texts)) > 1
        again = verdicts(engine, [question(ENGLISH, request.prompt, text) for text in texts])
        assert [draft.p_harmful for draft in ranked] == pytest.approx(again, abs=1e-4)
        assert again[0] == pytest.approx(min(again), abs=1e-4) and min(again) < max(again)


def test_a_draft_that_says_nothing_comes_last(posterior, monkeypatch):
    """However harmless the model finds silence, or a thought that never ends."""
    texts = iter(["", "<think>Well,", "<think>Well,</think>Mix them."])
    read = []

    def verdicts(engine, questions, adapter, first):
        read.extend(questions)
        return [0.9 if "Mix them." in question.text else 0.0 for question in questions]

    class Scripted:
        def generate(self, requests, sampling, adapter):
            return [Completion(next(texts), "stop", 1, 1) for _ in requests]

    monkeypatch.setattr("setbacks.engines.own_verdict.verdicts", verdicts)
    (ranked,) = drafts(Scripted(), posterior, Posterior(drafts=3), asked(posterior, 1), ["en"])
    assert ranked[0].completion.text == "<think>Well,</think>Mix them."
    assert read[2] == question(ENGLISH, "<a question, number 0>", "Mix them.")


def test_a_probe_ranks_answers_without_their_thoughts(posterior):
    texts = iter(["<think>A long thought</think>Mix.", "<think>Well,</think>Mix them.", "", "No."])
    read = []

    class Scripted:
        def generate(self, requests, sampling, adapter):
            return [Completion(next(texts), "stop", 1, 1) for _ in requests]

        def states(self, requests, depths, adapter):
            read.extend((request.prompt, request.reply) for request in requests)
            return np.array([[[len(request.reply)]] for request in requests], np.float32)

    probe = StatesProbe(
        id="0" * 16, model="m", depths=[1.0], weight=[1.0], bias=0.0, mistakes=1, harmless=1,
        prompts=1, auc=[0.5] * 3, auc_within_prompts=[0.5] * 3,
    )  # fmt: skip
    options = Posterior(drafts=4, rank_by="states")
    (ranked,) = drafts(Scripted(), posterior, options, asked(posterior, 1), ["en"], None, probe)
    assert [prompt for prompt, _ in read] == ["<a question, number 0>"] * 4
    assert [reply for _, reply in read] == ["Mix.", "Mix them.", "", "No."]
    shortest_first = ["No.", "<think>A long thought</think>Mix.", "<think>Well,</think>Mix them."]
    assert [draft.completion.text for draft in ranked] == [*shortest_first, ""]


def test_drafts_depend_on_their_request_alone(posterior):
    engine = open_engine(posterior.model)
    data = Posterior(drafts=3)
    (alone,) = drafts(engine, posterior, data, asked(posterior)[1:2], ["en"])
    among = drafts(engine, posterior, data, asked(posterior), ["en"] * 3)[1]
    assert [d.completion.text for d in alone] == [d.completion.text for d in among]


@pytest.mark.parametrize("first", [False, True])
def test_a_verdict_is_read_where_the_model_was_taught_to_say_it(posterior, first, monkeypatch):
    from setbacks.engines.local import Local

    read = []
    choose = Local.choose

    def spy(self, requests, options, adapter=None):
        read.append((requests[0].prefill, options))
        return choose(self, requests, options, adapter)

    monkeypatch.setattr(Local, "choose", spy)
    asked = Question("<x>", ENGLISH)
    shares = verdicts(open_engine(posterior.model), [asked], first=first)
    assert 0 < shares[0] < 1
    expected = ("", ["Harmful.", "Harmless."])
    assert read == [expected if first else ("The response is", [" harmful", " harmless"])]


def test_only_an_adapter_that_the_recipe_trained_says_its_verdict_first(tmp_path):
    before, after = tmp_path / "before", tmp_path / "run/adapter"
    for verdict in ("first", "within"):
        train = {"method": "mistake_analysis", "verdict": verdict}
        recipe = Recipe.model_validate({"adapter": str(before), "train": train})
        assert recipe.current == before and not says_first(recipe, before)
        assert not says_first(recipe, None)
        assert says_first(recipe, after) == (verdict == "first")


def test_an_arm_keeps_its_drafts_and_answers_with_the_first(posterior, lora_of_tiny, tmp_path):
    with RunFolder(tmp_path / "run", posterior) as folder, Session(folder) as run:
        made = respond(run, lora_of_tiny)
        assert [arm.name for arm in folder.arms()] == [
            "vanilla",
            "vanilla-posterior",
            "mistake_distillation",
            "mistake_distillation-posterior",
        ]
    for arm, responses in made.items():
        for response in responses:
            if arm.endswith("-posterior"):
                assert len(response.drafts) == 3 and response.text == response.drafts[0]
                assert response.tokens >= 3
            else:
                assert response.drafts is None


def test_an_engine_without_probabilities_is_told_before_work_begins(recipe):
    data = recipe()
    respond = data.respond.model_copy(update={"posterior": Posterior()})
    with pytest.raises(InputError, match=r"respond\.posterior: engine rules gives no token"):
        check(data.model_copy(update={"respond": respond}))
