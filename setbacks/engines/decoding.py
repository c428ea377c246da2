"""Faster decoding of many rows, one token per step, with the same texts.

A third of a step of `model.generate` on the CPU with 128 rows goes into copying the cache (each
step creates it again, one token longer), into attention kernels made for prompts, and into finding
the most likely of many thousand tokens (`benchmarks/attention.py`, `benchmarks/generate.py`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from setbacks.models.attention import attend_as_it_came, attends_by_products

if TYPE_CHECKING:
    import torch

MOST_PACKED = 1_000_000_000  # parameters
ROOM = 16  # steps that a cache has room for when it is copied


class Running:
    """Rows that are being answered: what the model has read of each, and its next step.

    Args:
        model: a causal language model.
        cache: of the rows.
        mask: 1 where there is a token and 0 where there is padding, [rows, length].
        position: of each row's last token, [rows, 1].
    """

    def __init__(self, model: Any, cache: Any, mask: torch.Tensor, position: torch.Tensor) -> None:
        self.model, self.cache, self.mask, self.position = model, cache, mask, position
        # The place of the one state that goes through the head; see `reading`.
        self.first = mask.new_zeros(1)

    def worth_dropping(self, left: int) -> bool:
        """Return whether to continue with only the rows that are left.

        Dropping a row copies the cache of all the others, so several are dropped at once.
        """
        return left <= 0.875 * len(self.mask)

    def select(self, rows: torch.Tensor) -> None:
        """Continue with these rows, [indices]; an index may occur several times."""
        select_rows(self.cache, rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of each row, [rows]; return logits [rows, vocabulary]."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.position = self.position + 1
        logits: torch.Tensor = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            logits_to_keep=self.first,
        ).logits[:, -1]
        return logits


def select_rows(cache: Any, rows: torch.Tensor) -> None:
    """Keep these rows of a cache, [indices]; an index may occur several times.

    Of a cache's methods that select rows, only this one supports recurrent states, and moves both
    the states and the keys of layers that have both.
    """
    cache.reorder_cache(rows)


def pack(model: Any) -> None:
    """Store a copy of a bfloat16 model's weights in the layout of the CPU's matrix units.

    Otherwise each product of a few rows would reorder them: a tenth of a step. The results are the
    same. It takes the memory of the weights a second time, so a large model, whose steps are bound
    by memory, is not changed.
    """
    import torch

    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or model.num_parameters() > MOST_PACKED:
        return
    linears = [one for one in model.modules() if type(one) is torch.nn.Linear]
    for one in linears:
        if one.weight.dtype == torch.bfloat16:
            packed = torch.ops.mkldnn._reorder_linear_weight(one.weight.detach(), None)
            one.forward = functools.partial(_linear, packed=packed, bias=one.bias)  # type: ignore[method-assign]


def as_it_came(model: Any) -> None:
    """Undo `attend_by_products` and `pack`."""
    attend_as_it_came(model)
    for one in model.modules():
        forward = one.__dict__.get("forward")
        if isinstance(forward, functools.partial) and forward.func is _linear:
            del one.forward


def _linear(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    import torch

    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


def cache_for(model: Any) -> Any:
    """Return an empty cache for a model, with room to grow if it attends by products.

    `DynamicCache` copies all keys and values at each token. Here a layer of full attention is
    copied only at every `ROOM`th; in between, a token is written into its place. Unwritten places
    are masked, like padding. Layers of other kinds (sliding windows, states) are transformers'.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):  # type: ignore[misc]
        """Keys and values [rows, heads, room, width], of which `length` tokens are written."""

        keys: Any
        values: Any
        length = 0

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            start, end = self.length, self.length + key_states.shape[-2]
            if not self.is_initialized:  # a prompt: attention over it needs no room
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values, self.length = key_states, value_states, end
                return self.keys, self.values
            if end > self.keys.shape[-2]:
                self.keys, self.values = (self._wider(x, end) for x in (self.keys, self.values))
            self.keys[..., start:end, :] = key_states
            self.values[..., start:end, :] = value_states
            self.length = end
            return self.keys, self.values

        def _wider(self, held: torch.Tensor, needed: int) -> torch.Tensor:
            """Return the same with more room, filled with zeros: masked values must be numbers."""
            rows, heads, length, width = held.shape
            wider = held.new_zeros(rows, heads, self._room(needed), width)
            wider[..., :length, :] = held
            return wider

        def _room(self, needed: int) -> int:
            """Return the number of tokens to have room for when `needed` are needed."""
            held = self.keys.shape[-2]
            return held if needed <= held else needed - 1 + ROOM

        def get_seq_length(self) -> int:
            return self.length

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            needed = self.length + query_length
            return (self._room(needed) if self.length else needed), 0

    cache = DynamicCache(config=model.config)
    if model.device.type == "cpu" and attends_by_products(model):
        cache.layers = [Roomy() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Return the index of the largest in each row, the first of equals; [rows, n] to [rows].

    NumPy's is vectorized; PyTorch's takes ten times as long on a CPU.
    """
    import torch

    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    return torch.from_numpy(logits.numpy().argmax(axis=-1))
