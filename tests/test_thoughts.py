"""Thoughts while an answer is generated: their end, their budget, and what is forced."""

import shutil

import pytest
from chat_templates import FAMILIES, build

from setbacks.engines.local import Local
from setbacks.engines.thoughts import Row, completion, in_passes
from setbacks.models.thinking import Markers, thinking_of
from setbacks.models.tokens import inner_ids
from setbacks.prompts import prompts
from setbacks.recipe import Engine, Sampling
from setbacks.records import Request

STOP = 1
SPEC = Engine(model="m")


def row_of(tokenizer, spec=SPEC, context=10_000, **sampling):
    markers = Markers(tokenizer, thinking_of(tokenizer, spec))
    return Row(markers, Sampling(**sampling), {STOP}, context)


def write(row, tokenizer, text, stops=True):
    """Have a model write a text, whatever is forced in between; return its completion."""
    for token in [*inner_ids(tokenizer, text), *([STOP] if stops else [])]:
        row.take(token)
    return row.completion(tokenizer, [5, 6, 7])


# What a model writes, and the thought and the answer in it.
WRITTEN = {
    "qwen 3": [
        ("<think>\nOne.\n\nTwo.\n</think>\n\nSo.", "One.\n\nTwo.", "So."),
        ("<think>\n\n</think>\n\nSo.", None, "So."),
        ("\n<think>One.</think>So.", "One.", "So."),
        ("</think>\n\nSo.", None, "So."),
        ("So, in a <think> tag.", None, "So, in a <think> tag."),
        ("<think>\nOne. Two.", "One. Two.", ""),
        ("<think>\nOne.</think>", "One.", ""),
        ("So.", None, "So."),
        ("", None, ""),
    ],
    "qwen 3 that always thinks": [
        ("One.\n</think>\n\nSo.", "One.", "So."),
        ("One.", "One.", ""),
        ("</think>So </think> so.", None, "So </think> so."),
    ],
    "gpt-oss": [
        (
            "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis"
            "<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>So.",
            "One.\n\nTwo.",
            "So.",
        ),
        ("<|channel|>final<|message|>So.", None, "So."),
        ("<|channel|>analysis<|message|>One.", "One.", ""),
    ],
    "command a": [
        ("<|START_THINKING|>One.<|END_THINKING|><|START_RESPONSE|>So.", "One.", "So."),
        ("<|START_RESPONSE|>So.<|END_RESPONSE|>", None, "So."),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "thought", "answer"),
    [(name, *case) for name, cases in WRITTEN.items() for case in cases],
)
def test_thought_and_answer_are_parted(name, text, thought, answer):
    tokenizer = build("bytes", FAMILIES[name])
    made = write(row_of(tokenizer), tokenizer, text)
    assert (made.thought, made.text) == (thought, answer)
    assert (made.finish, made.thought_cut) == ("stop", False)
    assert made.tokens == len(inner_ids(tokenizer, text))


def test_markers_that_are_ordinary_text_are_found():
    """Whatever the tokens are: here one token holds the end of the marker and what follows."""
    tokenizer = build("bytes", FAMILIES["chatml"])
    spec = Engine(model="m", thinking=("<why>", "</why>"))
    made = write(row_of(tokenizer, spec), tokenizer, "<why>One.</why>\n\nSo.")
    assert (made.thought, made.text) == ("One.", "So.")


@pytest.mark.parametrize("name", ["qwen 3", "qwen 3 that always thinks", "gpt-oss", "command a"])
def test_a_thought_beyond_its_budget_is_closed_by_force(name):
    tokenizer = build("bytes", FAMILIES[name])
    row = row_of(tokenizer, max_thinking_tokens=5, max_new_tokens=4)
    words = inner_ids(tokenizer, "one two three four five six seven eight nine ten" * 9)
    start = inner_ids(tokenizer, row.markers.thinking.before.strip())
    for token in [*start, *words[:5]]:
        assert row.take(token)
    closing = row.markers.closing
    for _ in closing:
        assert row.take(words[0]), "what the model picks there is dropped"
    assert row.ids == [*start, *words[:5], *closing]
    taken = [row.take(token) for token in words[5:12]]
    assert taken == [True] * 4 + [False] * 3
    made = row.completion(tokenizer, [])
    assert made.thought == tokenizer.decode(words[:5]).strip()
    assert made.text == tokenizer.decode(words[5:9]).strip()
    assert (made.finish, made.thought_cut) == ("length", True)
    assert made.tokens == len(start) + 5 + len(closing) + 4
    assert made.tokens - made.thought_tokens == 4


def test_a_thought_as_long_as_its_budget_is_not_cut():
    tokenizer = build("bytes", FAMILIES["qwen 3 that always thinks"])
    text = "One.</think>So."
    budget = len(inner_ids(tokenizer, "One.</think>"))
    made = write(row_of(tokenizer, max_thinking_tokens=budget), tokenizer, text)
    assert (made.thought, made.text, made.thought_cut) == ("One.", "So.", False)


def test_thought_and_answer_can_share_one_budget():
    tokenizer = build("bytes", FAMILIES["qwen 3"])
    text = "<think>\nOne.\n</think>\n\nSo it is."
    row = row_of(tokenizer, max_thinking_tokens=None, max_new_tokens=10)
    made = write(row, tokenizer, text)
    assert (made.tokens, made.finish) == (10, "length")
    assert made.thought == "One." and "So it is.".startswith(made.text)
    row = row_of(tokenizer, max_thinking_tokens=None, max_new_tokens=4)
    made = write(row, tokenizer, text)
    assert (made.tokens, made.text, made.thought_cut) == (4, "", False)


def test_an_answer_without_a_thought_has_the_budget_of_an_answer():
    tokenizer = build("bytes", FAMILIES["qwen 3"])
    made = write(row_of(tokenizer, max_new_tokens=3), tokenizer, "a b c d e f g")
    assert (made.tokens, made.thought, made.finish) == (3, None, "length")
    assert made.thought_tokens is None


def test_a_row_ends_where_the_context_is_full():
    tokenizer = build("bytes", FAMILIES["qwen 3"])
    row = row_of(tokenizer, context=6, max_thinking_tokens=3)
    made = write(row, tokenizer, "<think>\n" + "one two three four five six", stops=False)
    assert (made.tokens, made.finish, made.text) == (6, "length", "")
    assert row.out_of_context


# The local engine --------------------------------------------------------------------------------

PROMPTS = ["Say yes.", "What is the capital of France?", "Name three colors, and nothing else."]


@pytest.fixture(params=["text", "control"])
def thinker(request, tiny, tmp_path):
    """A tiny model whose prompts end inside a thought, and the marker that ends it."""
    if request.param == "text":
        opening, closing = "<think>", "</think>"
    else:  # a token that no text becomes
        opening, closing = "<|im_start|>", "<|pad|>"
    folder = tmp_path / "thinker"
    shutil.copytree(tiny, folder)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", f"assistant\n{opening}\n"))
    return Engine(
        model=str(folder), dtype="float32", device="cpu", thinking=(opening, f"\n{closing}\n\n")
    )


def greedy(model, ids, tokens, tokenizer):
    """What transformers' `generate` gives."""
    import torch

    given = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    return out[0, len(ids) :].tolist()


def test_greedy_thoughts_and_answers_are_those_of_transformers(thinker):
    from setbacks.models.chat_template import encode_request
    from setbacks.models.loading import load_model

    engine = Local(thinker)
    requests = [Request(prompt, n) for n, prompt in enumerate(PROMPTS)]
    made = engine.generate(requests, Sampling(max_new_tokens=6, max_thinking_tokens=9))
    model, tokenizer = load_model(thinker).eval(), engine._tokenizer
    assert any(one.thought_cut for one in made), "otherwise this test could not fail"
    for request, one in zip(requests, made, strict=True):
        prompt = encode_request(tokenizer, request, thinker, prompts("en"))
        assert tokenizer.decode(prompt).endswith(f"{thinker.thinking[0]}\n")
        thought = greedy(model, prompt, 9, tokenizer)
        if thought[-1] == tokenizer.eos_token_id:
            assert (one.text, one.finish) == ("", "stop")
            assert one.thought == (tokenizer.decode(thought[:-1]).strip() or None)
            continue
        assert one.thought == (tokenizer.decode(thought).strip() or None)
        closing = inner_ids(tokenizer, thinker.thinking[1])
        answer = greedy(model, [*prompt, *thought, *closing], 6, tokenizer)
        ended = answer[-1] == tokenizer.eos_token_id
        assert one.text == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert one.finish == ("stop" if ended else "length")
        assert one.tokens == 9 + len(closing) + len(answer) - ended


@pytest.mark.parametrize("budget", [9, 3, None])
def test_two_passes_write_what_one_loop_writes(thinker, budget):
    """For engines that pick their tokens themselves, such as vLLM."""
    from setbacks.models.chat_template import encode_request
    from setbacks.models.loading import load_model

    engine = Local(thinker)
    requests = [Request(prompt, n) for n, prompt in enumerate(PROMPTS)]
    requests.append(Request(PROMPTS[0], 3, prefill="It"))
    sampling = Sampling(max_new_tokens=6, max_thinking_tokens=budget)
    one_loop = engine.generate(requests, sampling)
    model, tokenizer = load_model(thinker).eval(), engine._tokenizer
    asked = []

    def write(places, given, most):
        asked.append(len(places))
        written = [greedy(model, ids, n, tokenizer) for ids, n in zip(given, most, strict=True)]
        return [
            (ids[:-1], True) if ids[-1] == tokenizer.eos_token_id else (ids, False)
            for ids in written
        ]

    encoded = [encode_request(tokenizer, r, thinker, prompts("en")) for r in requests]
    markers = Markers(tokenizer, thinking_of(tokenizer, thinker))
    rows = [Row(markers, sampling, (), 1000) for _ in PROMPTS]
    outputs = in_passes(write, encoded, [*rows, None], 6)
    made = [row.completion(tokenizer, prompt) for row, prompt in zip(rows, encoded, strict=False)]
    assert [*made, completion(tokenizer, requests[3], encoded[3], *outputs[3])] == one_loop
    assert len(asked) == (1 if budget is None else 2)


def test_a_thought_does_not_depend_on_who_else_is_in_the_batch(thinker):
    engine = Local(thinker)
    sampling = Sampling(max_new_tokens=6, max_thinking_tokens=9, temperature=1.0)
    requests = [Request(prompt, n) for n, prompt in enumerate(PROMPTS)]
    begun = Request(PROMPTS[0], 7, prefill="It")
    together = engine.generate([*requests, begun], sampling)
    apart = [engine.generate([request], sampling)[0] for request in (*requests, begun)]
    assert together == apart
    assert together[-1].thought is None and together[-1].text.startswith("It")


def test_a_model_that_does_not_think_draws_the_same_with_any_budget(spec):
    engine, requests = Local(spec), [Request(prompt, n) for n, prompt in enumerate(PROMPTS)]
    drawn = {
        budget: engine.generate(
            requests, Sampling(max_new_tokens=6, temperature=1.0, max_thinking_tokens=budget)
        )
        for budget in (None, 1, 1024)
    }
    assert drawn[None] == drawn[1] == drawn[1024]
