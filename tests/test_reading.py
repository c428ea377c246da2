"""Prompts are read in parts, and what they share once: the model is left as after reading whole."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from setbacks.engines import reading
from setbacks.engines.decoding import Running
from setbacks.engines.reading import keeps_all, parts, read
from setbacks.models.attention import attend_by_products

HEAD = list(range(40, 60))
MORE = 4


@pytest.fixture(scope="module")
def read_by(tiny):
    """A model that reads as the local engine has it read on a CPU."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()
    attend_by_products(model, queries=1)
    return model


def one_by_one(model, prompts):
    """Logits after each prompt and each of the tokens that follow it, without a cache."""
    for prompt in prompts:
        ids = torch.tensor([[*prompt, *range(7, 7 + MORE)]])
        with torch.inference_mode():
            yield model(input_ids=ids).logits[0, len(prompt) - 1 :]


def together(model, prompts):
    """The same, read as a batch and gone on with."""
    with torch.inference_mode():
        cache, mask, position, logits = read(model, prompts, 0, MORE)
        running, found = Running(model, cache, mask, position), [logits]
        for token in range(7, 7 + MORE):
            found.append(running.step(torch.full((len(prompts),), token)))
    return torch.stack(found, dim=1)


def agree(model, prompts):
    for alone, among in zip(one_by_one(model, prompts), together(model, prompts), strict=True):
        torch.testing.assert_close(among, alone, atol=2e-4, rtol=1e-3)


def small(kind, **overrides):
    """A random model of a kind, with a vocabulary of 64."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, **overrides)
    return AutoModelForCausalLM.from_config(config).eval()


WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}

prompts_of = st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=30), min_size=1, max_size=9)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tails=prompts_of, shared=st.integers(0, 20), most=st.sampled_from([1, 24, 60, 10_000]))
def test_any_prompts_are_read_as_each_of_them_alone(read_by, monkeypatch, tails, shared, most):
    monkeypatch.setitem(reading.PART, "cpu", most)
    agree(read_by, [HEAD[:shared] + tail for tail in tails])


def test_what_prompts_share_is_read_once(read_by, monkeypatch):
    lengths = []
    forward = read_by.forward

    def counted(input_ids, **overrides):
        lengths.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **overrides)

    monkeypatch.setattr(read_by, "forward", counted)
    monkeypatch.setitem(reading.PART, "cpu", 12)
    with torch.inference_mode():
        read(read_by, [HEAD + [1] * n for n in (1, 6, 2, 5)], 0, MORE)
        assert lengths == [(1, 20), (2, 6), (2, 2)]
        lengths.clear()
        read(read_by, [HEAD, HEAD + [1]], 0, MORE)  # the last token of each is read in its own row
        assert lengths == [(1, 19), (2, 2)]
        lengths.clear()
        read(read_by, [[*range(3, 9)], [*range(3, 9)]], 0, MORE)  # too little to be worth it
        assert lengths == [(2, 6)]


@given(
    st.lists(st.lists(st.just(1), min_size=1, max_size=50), min_size=1, max_size=40),
    st.integers(1, 200),
)
def test_parts_hold_every_row_once_and_no_more_tokens_than_they_may(tails, most):
    rows_of_parts = parts(tails, most)
    assert sorted(row for part in rows_of_parts for row in part) == list(range(len(tails)))
    for part in rows_of_parts:
        assert len(part) == 1 or len(part) * max(len(tails[row]) for row in part) <= most


@pytest.mark.parametrize("window", [16, 64])
def test_a_sliding_window_sees_what_it_saw(window, monkeypatch):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    data = WIDTHS | {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8}
    model = small("gemma3_text", **data, sliding_window=window, layer_types=kinds)
    attend_by_products(model, queries=1)
    monkeypatch.setitem(reading.PART, "cpu", 30)
    prompts = [HEAD + [n] * n for n in (3, 9, 20, 4)]
    assert keeps_all(model, 44) == (window == 64)
    if window == 64:
        agree(model, prompts)
    else:  # all are read at once, as transformers reads them
        alone = list(one_by_one(model, prompts))
        longest = max(range(4), key=lambda n: len(prompts[n]))
        made = together(model, prompts)[longest]
        torch.testing.assert_close(made, alone[longest], atol=2e-4, rtol=1e-3)


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
WINDOW = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
        (
            "gpt_neo",
            {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
            | {"window_size": 24, "attention_types": [[["global", "local"], 1]]},
        ),
        (
            "phi3",
            WIDTHS
            | WINDOW
            | {"num_hidden_layers": 2, "pad_token_id": 0, "num_key_value_heads": 4}
            | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | FACTORS | WINDOW},
        ),
    ],
    ids=["mpt", "gpt_neo", "phi3"],
)
def test_what_counts_places_or_lengths_is_read_whole(kind, data):
    model = small(kind, **data)
    prompts = [HEAD + [9] * 28, HEAD + [7] * 16]
    with torch.inference_mode():
        made = read(model, prompts, 0, MORE).logits
        for row, prompt in zip(made, prompts, strict=True):
            whole = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(row, whole, atol=2e-4, rtol=1e-3)


def test_layers_that_are_no_keys_and_values_are_read_whole():
    data = WIDTHS | {"num_hidden_layers": 2, "num_key_value_heads": 2}
    model = small("lfm2", **data, layer_types=["conv", "full_attention"])
    assert not keeps_all(model, 10)
    prompts = [HEAD + [5], HEAD + [6]]
    with torch.inference_mode():
        made = read(model, prompts, 0, MORE).logits
        whole = model(input_ids=torch.tensor(prompts)).logits[:, -1]
    torch.testing.assert_close(made, whole, atol=2e-4, rtol=1e-3)
