"""The logits of training: those of a plain forward pass, whether or not a prefix is read once."""

from __future__ import annotations

import pytest
import torch
from architectures import ALL, spec_of

from setbacks.models.attention import attend_by_products
from setbacks.models.loading import load_model
from setbacks.training import predictions as module
from setbacks.training.predictions import predictions

PREFIX = [4, 9, 17, 30, 8, 90, 6, 45, 12, 51]
TAILS = [[60, 7, 33, 12, 5], [33, 21, 9, 0, 0], [60, 7, 70, 4, 0]]
ROWS = torch.tensor([PREFIX + tail for tail in TAILS])
MASK = (ROWS > 0).long()
# Architectures that read a prefix once. The others have states or narrow windows, attend in another
# way, or count places themselves.
SHARE = {"llama", "qwen3_moe", "gpt2", "deepseek_v3"}
TRAINED = [param for param in ALL if param.id != "rwkv"]  # transformers has no gradients of RWKV


def wanted_of(rows):
    """The last token of each row."""
    return (torch.arange(rows.shape[1]) == rows.shape[1] - 1).expand(len(rows), -1)


def wanted_from(place):
    """The tokens of each row from a place on, without padding."""
    return (torch.arange(ROWS.shape[1]) >= place) & MASK.bool()


@pytest.fixture
def shared(monkeypatch):
    """Note the layouts that were used for what counts: not the reading that makes sure."""
    layouts, as_one_row = [], module._as_one_row

    def noted(model, layout, *rest):
        if torch.is_grad_enabled():
            layouts.append(layout)
        return as_one_row(model, layout, *rest)

    monkeypatch.setattr(module, "_as_one_row", noted)
    return layouts


def learned(model, logits):
    """Return the gradients of all weights."""
    model.zero_grad()
    logits.square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def plain(model, wanted, rows=ROWS, mask=MASK):
    logits = model(input_ids=rows, attention_mask=mask).logits
    return logits[wanted.roll(-1, dims=1)]


@pytest.mark.parametrize(("kind", "data", "way"), TRAINED)
@pytest.mark.parametrize("place", [1, 11], ids=["all tokens", "the ends of rows"])
def test_logits_and_gradients_are_those_of_a_plain_pass(model_of, shared, kind, data, way, place):
    model, wanted = load_model(spec_of(model_of(kind, **data))), wanted_from(place)
    expected = plain(model, wanted)
    slopes = learned(model, expected)
    attend_by_products(model, queries=0)
    ours = predictions(model, ROWS, MASK, wanted)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    for one, other in zip(learned(model, ours), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert shared == ([(10, 3, 5)] if kind in SHARE else [])


@pytest.fixture
def model(model_of):
    model = load_model(spec_of(model_of("llama")))
    attend_by_products(model, queries=0)
    return model


def test_a_prefix_is_shared_only_where_it_saves_reading(model, shared):
    wanted = wanted_from(11)
    predictions(model, ROWS[:1], MASK[:1], wanted[:1])  # one row
    few = ROWS.clone()
    few[1, 7] = 3  # 7 tokens in common
    predictions(model, few, MASK, wanted)
    padding = MASK.clone()
    padding[2, :3] = 0
    predictions(model, ROWS, padding, wanted)
    for times in (3, 18):  # a prefix of less than a quarter, and more than 256 tokens
        long = torch.cat([ROWS] + [ROWS.flip(1)] * times, dim=1)
        predictions(model, long, torch.ones_like(long), wanted_of(long))
    assert shared == []
    predictions(model, ROWS, MASK, wanted)
    assert len(shared) == 1


def test_the_same_row_again_has_one_token_of_its_own(model, shared):
    rows, mask, wanted = ROWS[[0, 0]], MASK[[0, 0]], wanted_from(1)[[0, 0]]
    ours = predictions(model, rows, mask, wanted)
    assert shared == [(14, 2, 1)]
    torch.testing.assert_close(ours, plain(model, wanted, rows, mask), rtol=1e-4, atol=1e-4)


def test_longer_rows_are_read_both_ways_once_more(model, monkeypatch):
    checked, agree = [], module._agree
    monkeypatch.setattr(
        module, "_agree", lambda *rest: checked.append(rest[2].shape[1]) or agree(*rest)
    )
    for end in (14, 14, 15, 14, 15):
        predictions(model, ROWS[:, :end], MASK[:, :end], wanted_from(11)[:, :end])
    assert checked == [14, 15]


def test_gradient_checkpointing_reads_rows_as_they_are(model, shared):
    model.train()
    predictions(model, ROWS, MASK, wanted_from(11))
    assert len(shared) == 1
    model.activation_checkpointing_enable()
    predictions(model, ROWS, MASK, wanted_from(11))
    assert len(shared) == 1


@pytest.mark.parametrize("fault", ["wrong", "fails", "not a number"])
def test_a_model_that_reads_a_shared_prefix_wrongly_does_not_share(
    model, shared, monkeypatch, fault
):
    from setbacks.models import attention

    by_parts = attention._by_parts

    def faulty(layout, query, key, value, *rest):
        if fault == "fails":
            raise IndexError
        if fault == "wrong":
            key = key.roll(1, dims=2)
        mixed = by_parts(layout, query, key, value, *rest)
        if fault == "not a number":
            mixed[:, -2] = torch.nan  # the last row's last token before its padding
        return mixed

    monkeypatch.setattr(attention, "_by_parts", faulty)
    wanted = wanted_from(11)
    for _ in range(2):
        ours = predictions(model, ROWS, MASK, wanted)
        torch.testing.assert_close(ours, plain(model, wanted), rtol=1e-4, atol=1e-4)
    assert shared == [] and not model.training


def test_attention_has_dropout_in_training(model_of, shared):
    model = load_model(spec_of(model_of("llama", attention_dropout=0.5)))
    attend_by_products(model, queries=0)
    wanted = wanted_from(11)
    expected = plain(model, wanted)
    torch.testing.assert_close(predictions(model, ROWS, MASK, wanted), expected, rtol=0, atol=1e-3)
    model.train()
    one, other = (predictions(model, ROWS, MASK, wanted) for _ in range(2))
    assert len(shared) == 3 and not torch.allclose(one, other, atol=0.01)
