"""Hidden states of the model before training: studies read them, none trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from setbacks.engines.states import Text, answer_states
from setbacks.messages import turns_of
from setbacks.recipe import Recipe
from setbacks.runs.progress import Show

if TYPE_CHECKING:
    import numpy as np

DEPTH = 0.65  # the layer that is read, as a share of all: middle layers are best (docs/judges.md)
_PART = 64  # texts between two lines of progress


def hidden_states(recipe: Recipe, texts: Sequence[str], show: Show | None = None) -> np.ndarray:
    """Return the mean hidden state of each text at one layer, float32 [texts, hidden size].

    Args:
        recipe: whose model before training reads.
        texts: each is one user's turn.
        show: called with progress.

    Raises:
        InputError: the model returns no hidden states.
    """
    import numpy as np

    from setbacks.models.adapters import attached
    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.training import prompt_ids

    spec = recipe.model
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    if recipe.current is not None:
        model = attached(model, recipe.current)
    model.eval()
    longest = recipe.train.max_length
    read = [Text([], prompt_ids(tokenizer, turns_of(text), recipe)[:longest]) for text in texts]
    states = []
    for start in range(0, len(read), _PART):
        states.append(answer_states(model, read[start : start + _PART], [DEPTH])[:, 0])
        if show:
            show("hidden states", min(start + _PART, len(read)), len(read))
    return np.concatenate(states)
