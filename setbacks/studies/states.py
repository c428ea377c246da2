"""Hidden states of the model before training: studies read them, none trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from setbacks.engines import by_length
from setbacks.messages import turns_of
from setbacks.recipe import Recipe
from setbacks.runs.progress import Show

DEPTH = 0.65  # the layer that is read, as a share of all: middle layers are best (docs/judges.md)


def hidden_states(recipe: Recipe, texts: Sequence[str], show: Show | None = None) -> Any:
    """Return the mean hidden state of each text at one layer, float32 [texts, hidden size].

    Args:
        recipe: whose model before training reads.
        texts: each is one user's turn.
        show: called with progress.
    """
    import numpy as np
    import torch

    from setbacks.models.adapters import attached
    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.training import prompt_ids

    spec = recipe.model
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    if recipe.current is not None:
        model = attached(model, recipe.current)
    model.eval()
    layer = round(DEPTH * model.config.num_hidden_layers)
    ids = [
        prompt_ids(tokenizer, turns_of(text), recipe)[: recipe.train.max_length] for text in texts
    ]
    rows: list[Any] = [None] * len(ids)
    done = 0
    for batch in by_length([len(row) for row in ids], 16):
        longest = max(len(ids[i]) for i in batch)
        padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in batch])
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in batch])
        padded, mask = padded.to(model.device), mask.to(model.device)
        with torch.inference_mode():
            states = model(
                input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states[layer]
        means = (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        for index, row in zip(batch, means.cpu().numpy(), strict=True):
            rows[index] = row
        done += len(batch)
        if show:
            show("hidden states", done, len(ids))
    return np.stack(rows)
