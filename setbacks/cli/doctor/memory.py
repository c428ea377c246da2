"""How much memory a model takes to answer and to train: measured on short texts, and scaled.

The measurement counts what has to be kept; peaks are about twice as high. When answering, the
engine copies its cache as rows end. In training, the backward pass has its own buffers, and an
allocator cannot reuse everything that is freed: on a CPU, the peaks of a step were 1.8 to 2.9 times
as high.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.training.supervised import completion_loss

PEAK = 2  # a peak, as a multiple of what is kept
LENGTHS = (24, 48, 96)  # of the texts that are measured, in tokens
ADAM = 16  # bytes a trained parameter takes: itself, its gradient and two moments, in float32


def free(place: str) -> int:
    """Return how many bytes are free on a device."""
    import torch
    from accelerate.utils import get_max_memory

    free_bytes: dict[Any, int] = get_max_memory()
    if place.startswith("cuda"):
        return free_bytes[torch.device(place).index or 0]
    return min(free_bytes.get(place, free_bytes["cpu"]), left_in_container())


def left_in_container(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that a control group leaves; a container sees its whole machine's memory."""
    try:
        most = int((group / "memory.max").read_text(encoding="utf-8"))
        return most - int((group / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group, or one without a limit
        return 2**63


def of_weights(model: Any) -> int:
    """Return the bytes of a model's weights; a skeleton has their sizes too."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def of_cache(model: Any, rows: int, length: int) -> int:
    """Return the bytes that a model's cache takes while it answers a batch.

    Args:
        model: a causal language model.
        rows: of the batch.
        length: of prompts and answers, in tokens.
    """
    import torch

    sizes = []
    for tokens in LENGTHS[:2]:
        with torch.inference_mode():
            output = model(input_ids=_text(model, tokens), use_cache=True)
        cache = getattr(output, "past_key_values", None) or getattr(output, "cache_params", None)
        sizes.append(sum(tensor.nbytes for tensor in _tensors(cache)))
    short, long = LENGTHS[:2]
    a_token = (sizes[1] - sizes[0]) / (long - short)
    return round(PEAK * rows * (sizes[0] + a_token * (length - short)))


def of_training(peft_model: Any, rows: int, length: int) -> int:
    """Return the bytes that a step of training takes besides the weights.

    Args:
        peft_model: a causal language model with the adapter to train.
        rows: examples of a step.
        length: of the longest example, in tokens, half of which have loss.
    """
    import numpy as np

    # Attention that is not fused keeps a square of the length.
    kept = np.polyfit(LENGTHS, [kept_of_one(peft_model, tokens) for tokens in LENGTHS], 2)
    trained, _ = peft_model.get_nb_trainable_parameters()
    logits = 4 * length / 2 * peft_model.get_input_embeddings().weight.shape[0]
    return round(ADAM * trained + rows * (PEAK * float(np.polyval(kept, length)) + logits))


def kept_of_one(model: Any, tokens: int) -> int:
    """Return the bytes that are kept of one example for its gradients."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    weights = {tensor.untyped_storage().data_ptr() for tensor in _all_weights(model)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = _text(model, tokens)
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = completion_loss(model, ids, torch.ones_like(ids), labels)
    del loss  # it kept all of this alive until here
    return sum(kept.values())


def _text(model: Any, tokens: int) -> Any:
    import torch

    known = model.get_input_embeddings().weight.shape[0]
    return (torch.arange(tokens, device=model.device) % known)[None]


def _all_weights(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def _tensors(value: Any) -> Iterator[Any]:
    """Yield the tensors of a cache, whatever its structure."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
