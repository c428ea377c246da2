"""Reading prompts: their common beginning once, and the rest with little padding.

A system prompt or guidance is the same in every prompt of a batch, and often longer than the rest.
It is read once, and each prompt continues from it. The rest is read in parts of similar length, so
that short prompts are not padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.engines.decoding import cache_for
from setbacks.models.loading import parameters, ropes

if TYPE_CHECKING:
    import torch

SHORTEST = 8  # tokens: less is not worth a separate step
# Tokens of a part, padding included. On a GPU even a small part takes a fixed time.
PART = {"cpu": 512}
LARGE = 16384


class Read(NamedTuple):
    """What a model has read of a batch of prompts.

    Args:
        cache: a transformers cache, with a row for each prompt.
        mask: 1 where there is a token and 0 where there is padding, [prompts, length].
        position: of each prompt's last token, [prompts, 1].
        logits: after it, [prompts, vocabulary].
    """

    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor


def read(model: Any, prompts: Sequence[Sequence[int]], pad: int, more: int) -> Read:
    """Read a batch of prompts.

    Args:
        model: a causal language model.
        prompts: their ids; none is empty.
        pad: the id of padding.
        more: the most tokens that will follow each of them.
    """
    longest = max(map(len, prompts))
    if not (keeps_all(model, longest + more) and goes_by_positions(model, longest + more)):
        return _part(model, None, prompts, pad)
    texts: Any = prompts  # to `commonprefix`, which takes any sequences
    same = min(len(commonprefix(texts)), min(map(len, prompts)) - 1)
    if len(prompts) == 1 or same < SHORTEST:
        same = 0
    start = _part(model, None, [prompts[0][:same]], pad).cache if same else None
    tails = [prompt[same:] for prompt in prompts]
    rows_of_parts = parts(tails, PART.get(model.device.type, LARGE))
    if len(rows_of_parts) == 1:
        return _part(model, start, tails, pad)
    read_parts = [_part(model, start, [tails[row] for row in rows], pad) for rows in rows_of_parts]
    mask = _mask(tails, same, longest - same, model.device)
    cache = cache_for(model)
    for number, layers in enumerate(zip(*(part.cache.layers for part in read_parts), strict=True)):
        keys, values = (
            layers[0].keys.new_zeros(len(prompts), x.shape[1], longest, x.shape[3])
            for x in (layers[0].keys, layers[0].values)
        )
        for rows, part, layer in zip(rows_of_parts, read_parts, layers, strict=True):
            end = part.mask.shape[1]
            for whole, read_ in ((keys, layer.keys), (values, layer.values)):
                whole[rows, :, :same] = read_[:, :, :same]
                whole[rows, :, longest - end + same :] = read_[:, :, same:end]
            layer.keys = layer.values = None  # to hold it only once
        cache.update(keys, values, number)
    logits = read_parts[0].logits.new_empty(len(prompts), read_parts[0].logits.shape[1])
    for rows, part in zip(rows_of_parts, read_parts, strict=True):
        logits[rows] = part.logits
    return Read(cache, mask, mask.sum(dim=1, keepdim=True) - 1, logits)


def goes_by_positions(model: Any, length: int) -> bool:
    """Return whether attention over `length` tokens depends only on the given positions.

    Then padding may be anywhere. Other models count places in the cache: those that take no
    positions, and those that have a fixed causal mask.
    """
    import torch

    within = (limit := reach(model.config)) is None or length <= limit
    masks = (b.dtype == torch.bool and b.dim() == 4 for b in model.buffers())
    return within and "position_ids" in parameters(model) and not any(masks)


def reach(config: Any) -> int | None:
    """Return the most tokens of a text, padding included, without an effect of its neighbors.

    Beyond them, RoPE of the kinds "dynamic" and "longrope" takes its frequencies from the longest
    text of a batch, attention in chunks or blocks counts padding, and sparse attention breaks ties
    by place. None: no limit.
    """
    config = config.get_text_config()
    names = ("attention_chunk_size", "index_topk")
    limits: list[int | None] = [getattr(config, name, None) for name in names]
    if blocks := getattr(config, "index_topk_blocks", None):
        limits.append(blocks * config.index_block_size)
    for rope in ropes(config):
        if rope.get("rope_type") == "longrope":
            limits.append(rope["original_max_position_embeddings"])
        elif rope.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min((limit for limit in limits if limit), default=None)


def keeps_all(model: Any, length: int) -> bool:
    """Return whether each layer of a model keeps `length` tokens, as keys and values.

    A sliding window keeps what is within it.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds <= {DynamicLayer}:
        return True
    within = length <= (getattr(model.config.get_text_config(), "sliding_window", None) or 0)
    return within and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def parts(tails: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Cut into parts of similar length, each of at most `most` tokens, or of one row."""
    order = sorted(range(len(tails)), key=lambda row: -len(tails[row]))
    found: list[list[int]] = []
    for row in order:
        if found and (len(found[-1]) + 1) * len(tails[found[-1][0]]) <= most:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _part(model: Any, start: Any, tails: Sequence[Sequence[int]], pad: int) -> Read:
    """Read some rows at once, each after their common beginning (a cache of one row)."""
    import torch

    cache, same = cache_for(model), 0
    if start is not None:
        same = start.get_seq_length()
        for number, layer in enumerate(start.layers):
            rows = (len(tails), -1, -1, -1)
            held = (x[:, :, :same].expand(rows) for x in (layer.keys, layer.values))
            cache.update(*held, number)
    longest = max(map(len, tails))
    padded = [[pad] * (longest - len(tail)) + list(tail) for tail in tails]
    mask = _mask(tails, same, longest, model.device)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, same:]
    logits: torch.Tensor = model(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        # Selected by index, the last state is copied out of its row. With a view, torch.matmul
        # would copy the head's weights once for each row where they need no gradient.
        logits_to_keep=torch.tensor([longest - 1], device=model.device),
    ).logits[:, -1]
    return Read(cache, mask, position[:, -1:], logits)


def _mask(tails: Sequence[Sequence[int]], same: int, longest: int, device: Any) -> torch.Tensor:
    """Return the mask of common tokens, padding, and each row's tokens, [rows, same + longest]."""
    import torch

    rows = [[1] * same + [0] * (longest - len(tail)) + [1] * len(tail) for tail in tails]
    return torch.tensor(rows, device=device)
