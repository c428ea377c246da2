"""Supervised fine-tuning through TRL: the loss is on the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.models.chat_template import ending
from setbacks.models.loading import load_tokenizer
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.training import (
    IGNORED,
    TooLong,
    TrainingRun,
    check_context,
    follow,
    last_checkpoint,
    learner,
    options,
    processes,
    prompt_ids,
    save,
    schedule,
    tokenize,
)


def fit(run: TrainingRun, examples: Sequence[Example], adapter: Path) -> int:
    """Train an adapter, from the last complete checkpoint if there is one.

    Args:
        run: the run.
        examples: of one epoch.
        adapter: where the adapter is saved.

    Returns:
        The number of tokens read.

    Raises:
        InputError: no example fits.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    recipe = run.recipe
    tokenizer = load_tokenizer(recipe.model)
    rows, too_long = _rows(run, tokenizer, examples)
    lengths = [len(row["input_ids"]) for row in rows]
    check_context(recipe.model, max(lengths))
    steps = schedule(lengths, recipe.train, recipe.train_seed)
    if processes.count() > 1 and len(steps[-1]) < recipe.train.batch_size:
        steps.pop()  # too few examples for all processes
        if not steps:
            raise InputError("fewer examples than train.batch_size; train in one process")

    class Trainer(SFTTrainer):
        """TRL's trainer: logits only where there is loss, and the loss of each kind of example.

        TRL's fused head skips the other positions on a GPU only; on a CPU it computes them too, and
        their entropy.
        """

        by_kind: dict[str, float] = {}

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            kinds = inputs.pop("kinds")
            loss = completion_loss(model, **inputs, total=num_items_in_batch)
            if num_items_in_batch is not None:  # of all processes, whose gradients are averaged
                loss = loss._replace(value=loss.value * processes.count())
            self.by_kind = {
                f"loss_{kind}": loss.mean_of([k == kind for k in kinds])
                for kind in sorted({*kinds})
            }
            return loss.value

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs | self.by_kind if "loss" in logs else logs, start_time)

    set_seed(recipe.train_seed)
    model, new = learner(recipe)
    disable_progress_bars()
    trainer = Trainer(
        model=model,
        args=SFTConfig(
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
            **options(run, model, "checkpoints", len(steps)),
        ),
        train_dataset=Dataset.from_list([rows[index] for step in steps for index in step]),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
        peft_config=new,
    )
    follow(run, trainer).train(resume_from_checkpoint=last_checkpoint(run))
    tokens = sum(lengths[index] for step in steps for index in step)
    return save(run, trainer, adapter, tokens, too_long)


def _rows(
    run: TrainingRun, tokenizer: Any, examples: Sequence[Example]
) -> tuple[list[dict[str, Any]], TooLong]:
    """Return the rows of the examples that fit, and how many are too long.

    Raises:
        InputError: no example fits.
    """
    recipe = run.recipe
    rows = [row for e in examples if (row := example_row(tokenizer, e, recipe))]
    end = ending(tokenizer, recipe.model.chat_template)[-1]
    cut = sum(row["labels"][-1] != end for row in rows)
    too_long = TooLong(len(examples), cut, left_out=len(examples) - len(rows))
    too_long.say(run)
    if not rows:
        raise InputError("no example is left to train on; raise train.max_length or the mix")
    return rows, too_long


def example_row(tokenizer: Any, example: Example, recipe: Recipe) -> dict[str, Any] | None:
    """Turn an example into `input_ids`, `labels`, `weights` and its kind.

    Args:
        tokenizer: a transformers tokenizer.
        example: a prompt and its completion.
        recipe: sets the template, the longest example and the weight of a verdict.

    Returns:
        Three lists of equal length and a string, or None if the prompt alone fills `max_length`,
        or the prompt and what is given of the completion. Labels are -100 outside what is learned
        of the completion; weights are 1 outside its verdict.
    """
    train = recipe.train
    prompt, completion = tokenize(
        tokenizer, example.prompt, example.completion, recipe, example.thought
    )
    verdict = 0
    if example.verdict:
        opening = prompt_ids(tokenizer, example.prompt, recipe, example.verdict)
        verdict = len(opening) - len(prompt)
    weights = [train.verdict_weight] * verdict + [1.0] * (len(completion) - verdict)
    given = len(prompt) + _tokens_given(tokenizer, example, recipe, len(prompt), completion)
    if given >= train.max_length:
        return None
    whole = prompt + completion
    return {
        "input_ids": whole[: train.max_length],
        "labels": ([IGNORED] * given + whole[given:])[: train.max_length],
        "weights": ([1.0] * len(prompt) + weights)[: train.max_length],
        "kind": example.kind,
    }


def _tokens_given(
    tokenizer: Any, example: Example, recipe: Recipe, prompt: int, completion: Sequence[int]
) -> int:
    """Return the number of a completion's tokens that are given, and so have no loss.

    A token that holds the end of what is given and the beginning of what follows is not learned.
    """
    if not example.given:
        return 0
    given = prompt_ids(tokenizer, example.prompt, recipe, example.given)[prompt:]
    shared = len(commonprefix([given, list(completion)]))
    return shared + (shared < len(given))


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Pad rows of `example_row` on the right, into tensors of [batch, longest]."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[Any], filler: Any) -> list[Any]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], pad) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
        "weights": torch.tensor([padded(row["weights"], 0.0) for row in rows]),
        "kinds": [row["kind"] for row in rows],
    }


class Loss(NamedTuple):
    """A batch's loss: the value to minimize, and each row's sum and number of labeled tokens."""

    value: Any
    sums: Any
    counts: Any

    def mean_of(self, rows: Sequence[bool]) -> float:
        """Return the mean negative log-likelihood of the labeled tokens of some rows."""
        import torch

        chosen = torch.tensor(rows, device=self.sums.device)
        return float(self.sums[chosen].sum() / self.counts[chosen].sum().clamp(min=1))


def completion_loss(
    model: Any,
    input_ids: Any,
    attention_mask: Any,
    labels: Any,
    weights: Any = None,
    total: Any = None,
) -> Loss:
    """Return the mean negative log-likelihood of the labeled tokens.

    Args:
        model: a causal language model.
        input_ids: [batch, length].
        attention_mask: [batch, length].
        labels: [batch, length]; -100 where there is no loss.
        weights: [batch, length], of the labeled tokens; None for 1.
        total: labeled tokens to divide by; None for those of this batch.
    """
    import torch

    following = labels[:, 1:]
    positions = (following != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=positions
    ).logits
    following = following[:, positions]
    scored = following != IGNORED
    each = torch.zeros(following.shape, dtype=torch.float32, device=logits.device)
    each[scored] = torch.nn.functional.cross_entropy(
        logits[scored].float(), following[scored], reduction="none"
    )
    weighted = each if weights is None else each * weights[:, 1:][:, positions]
    return Loss(
        weighted.sum() / (scored.sum() if total is None else total),
        each.detach().sum(dim=1),
        scored.sum(dim=1),
    )
