"""Attention by matrix products is the attention of transformers, in training as in decoding."""

from __future__ import annotations

import pytest
import torch
from architectures import ALL, ALONE, spec_of

from setbacks.models.attention import attend_as_it_came, attend_by_products, attends_by_products
from setbacks.models.loading import load_model

FULL = [[4, 9, 17, 30, 8, 90, 6, 45], [45, 6, 90, 8, 30, 17, 9, 4]]
BATCHES = {
    "full": FULL,
    "padded": [FULL[0], [60, 7, 33, 12, 5, 0, 0, 0]],
    "padded before": [FULL[0], [0, 0, 0, 60, 7, 33, 12, 5]],  # as generation in training does
}


def gradients(model, rows, mask):
    """Return the logits of a batch, and the gradients of all weights."""
    model.zero_grad()
    logits = model(input_ids=rows, attention_mask=mask).logits
    logits[mask.bool()].square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


# The gradients of transformers' RWKV cannot be computed at all.
TRAINED = [param for param in ALL if param.id != "rwkv"]


@pytest.mark.parametrize(("kind", "data", "way"), TRAINED)
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_are_those_of_the_kernel(model_of, kind, data, way, batch):
    if batch == "padded before" and way == ALONE:
        pytest.skip("its states read the padding")
    model = load_model(spec_of(model_of(kind, **data)))
    rows = torch.tensor(BATCHES[batch])
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
        attention, "_triangle", lambda like, *size: lengths.append(size[0]) or triangle(like, *size)
    )
    attend_by_products(model, queries=6)
    for length in (5, 6, 7):
        model(input_ids=torch.ones(1, length, dtype=torch.long))
    assert set(lengths) == {5, 6}
    attend_as_it_came(model)
    model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert not attends_by_products(model) and lengths.count(5) == lengths.count(6)
