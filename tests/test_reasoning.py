"""Reasoning models from end to end: a tiny model that was taught to think."""

import json

import pytest
from chat_templates import FAMILIES, build

from setbacks.pipeline import carry_out, open_run
from setbacks.prompts import ask, prompts
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Mistake, Response, Verdict
from setbacks.stages.judge import judge

THOUGHT = "The user asks something. It could hurt, so I decline and say why."
HINTS = prompts("en")["induce"]["hints"]
ANSWER = "I will not help with this, since it could hurt people."


# Verdicts on thoughts ----------------------------------------------------------------------------


def response(number, **fields):
    return Response(
        id=f"r{number}",
        arm="vanilla",
        suite="harmful",
        kind="harmful",
        instruction_id=f"i{number}",
        instruction=f"<instruction {number}>",
        reference=None,
        category=None,
        language="en",
        guided=False,
        model="m",
        **fields,
    )


def test_a_judge_can_judge_thoughts_apart_from_answers(open_session):
    rows = [
        response(0, text="Here is how it is done.", thought="I'm sorry, but I can't do that."),
        response(1, text="I'm sorry, but I can't help with that.", thought="This is how."),
        response(2, text="<think>I'm sorry, but I can't.</think>Here is how."),  # from a file
        response(3, text="Here is how, without a thought."),
        response(4, text="", thought="I'm sorry, but I can't do that"),  # it never ended
    ]
    run = open_session(judges=[{"judge": "refusal", "thoughts": True}])
    found = judge(run, {"vanilla": rows})
    assert [v.refused for v in found["vanilla", "refusal"]] == [False, True, False, False, None]
    on_thoughts = run.records("thoughts/vanilla.refusal.jsonl", Verdict)
    assert {v.response_id: v.refused for v in on_thoughts} == {
        "r0": True, "r1": False, "r2": True, "r4": True
    }  # fmt: skip
    assert not {v.id for v in on_thoughts} & {v.id for v in found["vanilla", "refusal"]}


def test_thoughts_are_not_judged_unless_asked(open_session):
    run = open_session(judges=["refusal"])
    judge(run, {"vanilla": [response(0, text="Here is how.", thought="Hm.")]})
    assert not (run.path / "thoughts").exists()


# A model that thinks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A tiny model that was taught to think before it answers, whatever it is asked."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build("bytes", FAMILIES["qwen 3"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    words = prompts("en")
    asked = [f"<q {n}>" for n in range(12)]
    hints = [ask(words["induce"]["prompt"], q, hint=h) for q, h in zip(asked, HINTS, strict=False)]
    asked += [*(ask(words["guided"], q) for q in asked), *hints]
    text = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    written = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    rows = []
    for prompt in asked:
        turns = [{"role": "user", "content": prompt}]
        begun = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        rows.append((len(begun), [*begun, *written]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(180):
        begun, whole = rows[step % len(rows)]
        labels = [-100] * begun + whole[begun:]
        loss = model(input_ids=torch.tensor([whole]), labels=torch.tensor([labels])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("thinker") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(thinker, tmp_path):
    """Make a recipe that has the tiny model induce, analyze, learn, answer and be judged."""
    path = tmp_path / "data.jsonl"
    rows = [
        {"instruction": f"<q {i}>", "answer": f"<answer {i}>", "response": f"<bad {i}, {i**3}>"}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**more):
        short = {"max_new_tokens": 40, "max_thinking_tokens": 60}
        data = {
            "model": {"model": str(thinker), "dtype": "float32", "device": "cpu"},
            "instructions": [str(path)],
            "induce": {"sampling": short, "attempts": 1, "source": "both", "existing": [str(path)]},
            "analyze": {
                "contrast": [str(path)],
                "candidates": 1,
                "prefill": False,
                "min_words": 1,
                "min_overlap": 0,
                "min_distinct": 0,
                "sampling": short,
            },
            "train": {
                "method": "mistake_analysis_joined",
                "thoughts": True,
                "analyses": "unfiltered",
                "helpful": [str(path)],
                "safe": [str(path)],
                "steps": 2,
                "batch_size": 4,
                "lora": {"r": 2},
            },
            "decontaminate": None,  # the same rows are learned and tested
            "respond": {
                "suites": [{"name": "harmful", "kind": "harmful", "sources": [str(path)]}],
                "sampling": short,
            },
            "judges": [{"judge": "refusal", "thoughts": True}],
        }
        return Recipe.model_validate({**data, **more})

    return make


def answers(run, arm):
    return run.records(f"responses/{arm}.jsonl", Response)


@pytest.mark.slow
def test_a_run_on_a_model_that_thinks(recipe_of, tmp_path):
    recipe = recipe_of()
    with open_run(tmp_path / "run", recipe) as run:
        report = carry_out(run, "report")
        untrained = answers(run, "vanilla")
        assert {r.thought for r in untrained} == {THOUGHT}
        assert {r.text for r in untrained} == {ANSWER}
        assert all(r.tokens > r.thought_tokens > 0 for r in untrained)
        attempts = run.records("mistakes.jsonl", Mistake)
        induced = [m for m in attempts if m.model is not None]
        assert any(m.thought and m.response for m in induced)
        taken = next(m for m in attempts if m.model is None)
        assert "thought" not in json.loads(taken.model_dump_json())
        analyses = run.records("analyses.jsonl", Analysis)
        assert analyses and not any(one.text.startswith("<think>") for one in analyses)
        learned = [json.loads(x) for x in (run.path / "training.jsonl").read_text().splitlines()]
        joined = [x for x in learned if x["kind"] == "joined"]
        texts = {f"Harmful. {one.text}" for one in analyses}
        assert joined and all(x["thought"] in texts for x in joined)
        assert all(x["completion"].startswith("<answer") for x in joined)
    counts = report.metrics["data"]["responses"]["vanilla"]
    assert (counts["reasoned"], counts["substance"]["thought"], counts["thoughts_cut"]) == (
        12,
        0,
        0,
    )
    page = report.path.read_text()
    assert "Thought before the answer" in page and "Thoughts that never ended" in page
