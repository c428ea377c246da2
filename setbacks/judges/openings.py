"""Reading a prompt once for all its responses, where several arms of a run give them.

The state of a model after a prompt does not depend on the response. It is therefore kept, and each
response is read from there on. This pays with three arms or more, and up to `TOKENS` tokens of
prompts: a prompt is read alone, which takes longer than in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

TOKENS = 12_000  # of prompts that are remembered: about 180 MB in bfloat16


class Opening(NamedTuple):
    """What a model holds of all that comes before a response."""

    instruction: torch.Tensor  # mean states of the last turn, [read layers, hidden size]
    cache: torch.Tensor  # keys and values, [layers, 2, heads, tokens, width]


_known: dict[tuple[int, ...], Opening] = {}  # the one used last comes last


def opening(model: Any, ids: Sequence[int], instruction: slice, layers: Sequence[int]) -> Opening:
    """Return what a model holds of the text before a response.

    A text is read alone, so that the result does not depend on its neighbors, nor on what was read
    before. What was used last is remembered, up to `TOKENS`.

    Args:
        model: always the same one in a process.
        ids: the text; not empty.
        instruction: the place of the last turn.
        layers: the layers that are read.
    """
    import torch

    key = tuple(ids)
    known = _known.pop(key, None)
    if known is None:
        states, cache = states_of(model, [key], layers)
        pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        known = Opening(mean(states[:, 0, instruction]), torch.stack(pairs))
    _known[key] = known
    while sum(map(len, _known)) > TOKENS and len(_known) > 1:
        del _known[next(iter(_known))]
    return known


def states_of(
    model: Any,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    openings: Sequence[Opening] = (),
) -> tuple[torch.Tensor, Any]:
    """Read rows of tokens, each after its opening if there are openings.

    Returns:
        The states of some layers, [read layers, rows, tokens, hidden size], and the cache.
    """
    import torch
    from transformers import DynamicCache

    start = max((before.cache.shape[3] for before in openings), default=0)
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    present = torch.zeros((len(rows), start + width), dtype=torch.long)
    position = torch.arange(width).repeat(len(rows), 1)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        present[place, start : start + len(row)] = 1
    cache = DynamicCache(config=model.config)
    if openings:
        depth, both, heads, _, size = openings[0].cache.shape
        held = openings[0].cache.new_zeros(depth, both, len(rows), heads, start, size)
        for place, before in enumerate(openings):
            tokens = before.cache.shape[3]
            held[:, :, place, :, :tokens] = before.cache
            present[place, :tokens] = 1
            position[place] += tokens
        for number, (keys, values) in enumerate(held):
            cache.update(keys, values, number)
    with torch.inference_mode():
        states = model(
            input_ids=ids.to(model.device),
            attention_mask=present.to(model.device),
            position_ids=position.to(model.device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        ).hidden_states
        return torch.stack([states[layer] for layer in layers]), cache


def mean(states: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens, [layers, tokens, hidden size]; zeros if there are none."""
    return states.float().sum(dim=1) / max(1, states.shape[1])
