"""How likely a model finds given texts: studies measure it, none trains on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from setbacks.errors import InputError
from setbacks.recipe import Recipe
from setbacks.records import Example, Record, digest
from setbacks.runs.session import Session


class Likelihood(Record):
    """How likely one state of a model finds the completion of an example."""

    state: str = Field(
        description="Training step of the adapter; `0` is the model before training."
    )
    example_id: str = Field(description="`id` of the example.")
    value: float = Field(description="Mean log-likelihood, in nats per token; at most 0.")


def read(
    run: Session, states: Mapping[str, Path | None], examples: Sequence[Example]
) -> dict[str, list[float]]:
    """Return log p(completion | prompt) of each example, in nats a token of the completion.

    Earlier results are in the run's `likelihoods.jsonl`, and are not computed again.

    Args:
        run: the session.
        states: adapters by name; None is the model without one.
        examples: the examples to measure.

    Returns:
        By state, a value for each example, in order.

    Raises:
        InputError: a prompt alone fills `train.max_length`.
    """
    journal = run.journal("likelihoods.jsonl", Likelihood)
    for done, (state, adapter) in enumerate(states.items()):
        planned = [
            Likelihood(id=digest("likelihood", state, e.id), state=state, example_id=e.id, value=0)
            for e in examples
        ]
        for batch in journal.pending([planned]):
            values = log_likelihoods(run.recipe, examples, adapter)
            measured = [
                row.model_copy(update={"value": value})
                for row, value in zip(batch, values, strict=True)
            ]
            journal.commit(batch, measured)
        run.progress("likelihoods", done + 1, len(states))
    values = [row.value for row in journal.finish()]
    size = len(examples)
    return {state: values[i * size : (i + 1) * size] for i, state in enumerate(states)}


def log_likelihoods(
    recipe: Recipe, examples: Sequence[Example], adapter: Path | None = None
) -> list[float]:
    """Return log p(completion | prompt) of each example, in nats a token of the completion.

    Args:
        recipe: names the model, the template and the longest example.
        examples: the examples to measure; the end of the turn is part of a completion.
        adapter: a PEFT folder; None for the untrained model.

    Raises:
        InputError: a prompt alone fills `train.max_length`.
    """
    import torch

    from setbacks.engines import by_length
    from setbacks.models.adapters import attached
    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.training.supervised import collate, completion_loss, example_row

    tokenizer, model = load_tokenizer(recipe.model), load_model(recipe.model)
    rows = [row for e in examples if (row := example_row(tokenizer, e, recipe))]
    if len(rows) < len(examples):
        raise InputError(
            f"{len(examples) - len(rows)} held-out prompts fill train.max_length "
            f"({recipe.train.max_length} tokens) by themselves; raise it"
        )
    if adapter is not None:
        model = attached(model, adapter)
    model.eval()
    values = [0.0] * len(rows)
    for batch in by_length([len(row["input_ids"]) for row in rows], recipe.train.batch_size):
        inputs = collate([rows[i] for i in batch], tokenizer.pad_token_id or 0)
        inputs = {
            key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask", "labels")
        }
        with torch.inference_mode():
            loss = completion_loss(model, **inputs)
        for i, total, count in zip(batch, loss.sums.tolist(), loss.counts.tolist(), strict=True):
            values[i] = -total / count
    return values
