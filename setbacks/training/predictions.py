"""What a model in training predicts: logits only where they are wanted, a common prefix read once.

A system prompt is the same in all rows of a batch, and can be a third of a short row. On a CPU,
such a batch is read as one row: the prefix, then what each row has after it. Only attention looks
at other tokens, and there each row sees the prefix and itself. Logits and gradients are the same,
up to rounding (`benchmarks/prefix.py`); with dropout, all rows have the same draw in the prefix.
Source: Prefix Grouper, arXiv 2506.05433.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from setbacks.engines.fidelity import Bounds, distance
from setbacks.engines.reading import SHORTEST, goes_by_positions, keeps_all
from setbacks.models.attention import Layout, attends_by_products, shared_prefix
from setbacks.training import processes

LONGEST = 256  # tokens of a row that shares: products of attention store all scores
SHARE = 1 / 4  # of a row; for a shorter prefix, these products take more time than it saves
# By model: whether sharing is right, and the longest rows that were read both ways.
_RIGHT: WeakKeyDictionary[Any, tuple[bool, int]] = WeakKeyDictionary()


def predictions(model: Any, input_ids: Any, attention_mask: Any, wanted: Any) -> Any:
    """Return the logits for some tokens of a batch, row by row: [tokens, vocabulary], float32.

    Logits take most of the memory of a step, and in a small model much of its time, so the head
    reads only the states that predict these tokens. The option of transformers, `logits_to_keep`,
    keeps the same positions of all rows.

    Args:
        model: a causal language model.
        input_ids: [batch, length], padded on the right.
        attention_mask: [batch, length].
        wanted: [batch, length], true for the tokens to predict; false for the first of a row.
    """
    before = wanted.roll(-1, dims=1)
    layout = _layout(input_ids, attention_mask)
    if layout is not None and _shares(model, layout, input_ids, attention_mask, before):
        return _as_one_row(model, layout, input_ids, before)
    return _logits(model, before, input_ids=input_ids, attention_mask=attention_mask)


def _logits(model: Any, places: Any, **inputs: Any) -> Any:
    """Return the logits after some places, [tokens, vocabulary], float32.

    Args:
        model: as in `predictions`.
        places: an index of the first two dimensions of the states.
        inputs: of the model.
    """
    from accelerate.utils import extract_model_from_parallel

    head = extract_model_from_parallel(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][places][None],))
    try:
        return model(**inputs).logits.flatten(0, 1).float()
    finally:
        hook.remove()


def _layout(input_ids: Any, attention_mask: Any) -> Layout | None:
    """Return how to write a batch as one row; None if its rows have too little in common."""
    rows, length = input_ids.shape
    if rows < 2 or length > LONGEST or input_ids.device.type != "cpu":
        return None
    same = (input_ids == input_ids[:1]).all(0) & attention_mask.bool().all(0)
    prefix = min(int(same.long().cumprod(0).sum()), length - 1)
    enough = prefix >= max(SHORTEST, SHARE * length)
    return Layout(prefix, rows, length - prefix) if enough else None


def _as_one_row(model: Any, layout: Layout, input_ids: Any, before: Any) -> Any:
    """Return what `_logits` returns, from a batch that is written as one row."""
    import torch

    prefix, rows, tail = layout
    positions = torch.arange(prefix + tail)
    ids = torch.cat([input_ids[0, :prefix], input_ids[:, prefix:].flatten()])[None]
    where = torch.cat([positions[:prefix], positions[prefix:].repeat(rows)])[None]
    row, place = before.nonzero(as_tuple=True)
    places = torch.where(place < prefix, place, row * tail + place)
    with shared_prefix(layout):
        return _logits(
            model,
            (0, places),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=where,
        )


def _shares(model: Any, layout: Layout, input_ids: Any, attention_mask: Any, before: Any) -> bool:
    """Return whether a model may read a batch as one row.

    The first batch, and one of longer rows than before, is read both ways.
    """
    from accelerate.utils import extract_model_from_parallel

    model = extract_model_from_parallel(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not attends_by_products(base) or base.is_activation_checkpointing or processes.shard():
        return False  # checkpoints attend again, without the layout
    right, longest = _RIGHT.get(base, (True, 0))
    if right and input_ids.shape[1] > longest:
        right = (
            keeps_all(base, LONGEST)
            and goes_by_positions(base, LONGEST)
            and _agree(model, layout, input_ids, attention_mask, before)
        )
        _RIGHT[base] = right, input_ids.shape[1]
    return right


def _agree(model: Any, layout: Layout, input_ids: Any, attention_mask: Any, before: Any) -> bool:
    """Return whether both ways of reading a batch give the same logits."""
    import torch

    training = model.training
    model.eval()  # without dropout
    try:
        with torch.no_grad():
            right = _logits(model, before, input_ids=input_ids, attention_mask=attention_mask)
            ours = _as_one_row(model, layout, input_ids, before)
    except Exception:  # whatever a model that cannot read one row like this raises
        return False
    finally:
        model.train(training)
    off = [distance(one, other) for one, other in zip(ours, right, strict=True)]
    return Bounds.of(model.dtype).hold(off)
