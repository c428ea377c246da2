"""Attention by plain matrix products, where PyTorch's fused kernel is slower on a CPU.

In bfloat16, the fused kernel takes up to twice the time of two batched products for a single query,
which is a step of decoding, and two to four times for a short row that is trained on
(`benchmarks/attention.py`). Products also attend to a prefix that is stored once for many rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# The options of attention that are handled; a model with others keeps PyTorch's kernel.
_UNDERSTOOD = {
    "dropout",
    "scaling",
    "is_causal",
    "sliding_window",
    "position_ids",
    "cache_position",
}
_UNDERSTOOD |= {"use_cache", "output_attentions", "output_hidden_states"}
_MOST: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # queries of a row, by module


class Layout(NamedTuple):
    """Rows with a common prefix, written as one row: the prefix, then what each has after it.

    Args:
        prefix: tokens of the prefix.
        rows: number of rows.
        tail: tokens of each row after the prefix, padding on the right included.
    """

    prefix: int
    rows: int
    tail: int


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def shared_prefix(layout: Layout) -> Iterator[None]:
    """Let a model that attends by products read one row of a layout as the rows that it stands for.

    Source: Prefix Grouper, arXiv 2506.05433.
    """
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def attend_by_products(model: Any, queries: int) -> None:
    """Make a model attend by plain matrix products, if it uses PyTorch's fused kernel.

    On a GPU the kernel copies a grouped model's keys and values for each of their queries; there,
    outside a graph, two products are slower to start.

    Args:
        model: a causal language model of transformers.
        queries: the most of a row. The products store all scores of a row, whose number grows with
            the square of its length, so longer rows keep the kernel.
    """
    if model.config.get_text_config()._attn_implementation == "sdpa":
        _extend_sdpa()
        _MOST.update(dict.fromkeys(model.modules(), queries))


def attends_by_products(model: Any) -> bool:
    """Return whether `attend_by_products` holds for a model."""
    return model in _MOST


def attend_as_it_came(model: Any) -> None:
    """Undo `attend_by_products`."""
    for module in model.modules():
        _MOST.pop(module, None)


@functools.cache
def _extend_sdpa() -> None:
    """Add the products to transformers' "sdpa", only for the modules of `_MOST`.

    Under a new name, models that check the name (`_attn_implementation in ("eager", "sdpa")`) would
    omit what they do for these two, such as sparse attention.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> Any:
        layout, length = _LAYOUT.get(), query.shape[2]
        scale = options.get("scaling") or query.shape[3] ** -0.5
        if layout is not None and module in _MOST:
            dropout = options.get("dropout") or 0.0
            return _by_parts(layout, query, key, value, scale, dropout), None
        ours = (
            length <= _MOST.get(module, 0)
            and not options.get("dropout")
            and set(options) <= _UNDERSTOOD
            and (attention_mask is None or not attention_mask.is_floating_point())
        )
        if not ours:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        if attention_mask is None and length > 1 and _is_causal(module, options):
            attention_mask = _triangle(query, length, key.shape[2])
        mixed = _products(query, key, value, attention_mask, scale)
        return mixed.transpose(1, 2).contiguous(), None

    AttentionInterface.register("sdpa", attend)


def _products(
    query: Any, key: Any, value: Any, mask: Any, scale: float, dropout: float = 0.0
) -> Any:
    """Return what each query takes from the values, [rows, heads, queries, width]."""
    import torch

    rows, heads, length, width = query.shape
    groups = key.shape[1]  # grouped queries share a key: they take the place of the length
    scores = query.reshape(rows, groups, heads // groups * length, width) @ key.transpose(2, 3)
    scores = scores.view(rows, heads, length, -1).float().mul_(scale)
    if mask is not None:  # -inf would make NaN of padding before a prompt
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(dim=-1).to(value.dtype)
    if dropout:
        shares = torch.dropout(shares, dropout, train=True)
    mixed = shares.view(rows, groups, heads // groups * length, -1) @ value
    return mixed.view(rows, heads, length, -1)


def _by_parts(
    layout: Layout, query: Any, key: Any, value: Any, scale: float, dropout: float
) -> Any:
    """Attend in one row of a layout, [1, tokens, heads, width]: causally, each row by itself."""
    import torch

    prefix, rows, tail = layout
    # Backward, parts of a split are joined, while each slice would be a whole that is mostly zeros.
    parts = [x.split([prefix, rows * tail], dim=2) for x in (query, key, value)]
    q, k, v = (begin for begin, _ in parts)
    begun = _products(q, k, v, _triangle(query, prefix, prefix), scale, dropout)
    own = (end.squeeze(0).unflatten(1, (rows, tail)).transpose(0, 1) for _, end in parts)
    q, *others = own
    k, v = (
        torch.cat([begin.expand(rows, -1, -1, -1), end], dim=2)
        for begin, end in zip((k, v), others, strict=True)
    )
    mixed = _products(q, k, v, _triangle(query, tail, prefix + tail), scale, dropout)
    ended = mixed.transpose(1, 2).reshape(1, rows * tail, *mixed.shape[1::2])
    return torch.cat([begun.transpose(1, 2), ended], dim=1)


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    """Return whether a query sees only the keys up to its own, as transformers decides it."""
    causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _triangle(like: Any, queries: int, keys: int) -> Any:
    """Return which keys each of the last queries may see, [queries, keys]."""
    import torch

    mask = torch.ones(queries, keys, dtype=torch.bool, device=like.device)
    return mask.tril(keys - queries)
