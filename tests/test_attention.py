"""Attention by matrix products is the attention of transformers, in training as in decoding."""

from __future__ import annotations

import pytest
import torch
from architectures import ALL, spec_of

from setbacks.models.attention import attend_as_it_came, attend_by_products, attends_by_products
from setbacks.models.loading import load_model

ROWS = [[4, 9, 17, 30, 8, 90, 6, 45], [60, 7, 33, 12, 5, 0, 0, 0]]  # the second is padded


def gradients(model, rows, mask):
    """Return the logits of a batch, and the gradients of all weights."""
    model.zero_grad()
    logits = model(input_ids=rows, attention_mask=mask).logits
    logits[mask.bool()].square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


# The gradients of transformers' RWKV cannot be computed at all.
TRAINED = [param for param in ALL if param.id != "rwkv"]


@pytest.mark.parametrize(("kind", "data", "way"), TRAINED)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_the_kernel(model_of, kind, data, way, padded):
    model = load_model(spec_of(model_of(kind, **data)))
    rows = torch.tensor(ROWS if padded else [ROWS[0], ROWS[0][::-1]])
    mask = (rows > 0).long()
    logits, slopes = gradients(model, rows, mask)
    attend_by_products(model, queries=8)
    ours, our_slopes = gradients(model, rows, mask)
    torch.testing.assert_close(ours[mask.bool()], logits[mask.bool()], rtol=1e-3, atol=1e-4)
    for one, other in zip(our_slopes, slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_only_short_rows_of_a_model_that_asked_attend_by_products(tiny, monkeypatch):
    from setbacks.models import attention

    model = load_model(spec_of(tiny))
    lengths = []
    triangle = attention._triangle
    monkeypatch.setattr(
        attention, "_triangle", lambda scores: lengths.append(scores.shape[2]) or triangle(scores)
    )
    attend_by_products(model, queries=6)
    for length in (5, 6, 7):
        model(input_ids=torch.ones(1, length, dtype=torch.long))
    assert set(lengths) == {5, 6}
    attend_as_it_came(model)
    model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert not attends_by_products(model) and lengths.count(5) == lengths.count(6)
