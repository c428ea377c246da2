"""Attention by plain matrix products, where PyTorch's fused kernel is slower on a CPU.

In bfloat16, the fused kernel takes up to twice the time of two batched products for a single query,
which is a step of decoding, and two to four times for a short row that is trained on
(`benchmarks/attention.py`).
"""

from __future__ import annotations

import functools
from typing import Any
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
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> Any:
        rows, heads, length, width = query.shape
        ours = (
            length <= _MOST.get(module, 0)
            and not options.get("dropout")
            and set(options) <= _UNDERSTOOD
            and (attention_mask is None or not attention_mask.is_floating_point())
        )
        if not ours:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        groups = key.shape[1]  # grouped queries share a key: they take the place of the length
        scale = options.get("scaling") or width**-0.5
        scores = query.reshape(rows, groups, heads // groups * length, width) @ key.transpose(2, 3)
        scores = scores.view(rows, heads, length, -1).float().mul_(scale)
        if attention_mask is None and length > 1 and _is_causal(module, options):
            attention_mask = _triangle(scores)
        if attention_mask is not None:  # -inf would make NaN of padding before a prompt
            scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
        shares = scores.softmax(dim=-1).to(value.dtype)
        mixed = shares.view(rows, groups, heads // groups * length, -1) @ value
        return mixed.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None

    AttentionInterface.register("sdpa", attend)


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    """Return whether a query sees only the keys up to its own, as transformers decides it."""
    causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _triangle(scores: Any) -> Any:
    """Return which keys each query may see, [length, keys]."""
    return scores.new_ones(scores.shape[-2:]).tril().bool()
