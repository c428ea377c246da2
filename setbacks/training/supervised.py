"""Supervised fine-tuning through TRL: the loss is on the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    padded,
    processes,
    prompt_ids,
    save,
    schedule,
    tokenize,
    tokens_of_opening,
)
from setbacks.training.distillation import (
    Divergence,
    Targets,
    Teacher,
    teacher_batch,
    teacher_row,
)
from setbacks.training.predictions import predictions


def fit(
    run: TrainingRun,
    examples: Sequence[Example],
    adapter: Path,
    divergence: Divergence | None = None,
) -> int:
    """Train an adapter, from the last complete checkpoint if there is one.

    Args:
        run: the run.
        examples: of one epoch.
        adapter: where the adapter is saved.
        divergence: from the teachers of the examples that have one; None: the texts are learned.

    Returns:
        The number of tokens that the student reads.

    Raises:
        InputError: no example fits.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import set_seed
    from trl import SFTConfig

    recipe = run.recipe
    tokenizer = load_tokenizer(recipe.model)
    rows, too_long = _rows(run, tokenizer, examples, teachers=divergence is not None)
    lengths = [len(row["input_ids"]) for row in rows]
    check_context(recipe.model, max(lengths))
    if divergence is not None:
        longest = max(len(row["teacher_ids"]) for row in rows)
        what = "a teacher's prompt with its answer"
        check_context(recipe.model, longest, what, remedy="set train.distill=text")
    steps = schedule(lengths, recipe.train, recipe.train_seed)
    if processes.count() > 1 and len(steps[-1]) < recipe.train.batch_size:
        steps.pop()  # too few examples for all processes
        if not steps:
            raise InputError("fewer examples than train.batch_size; train in one process")

    set_seed(recipe.train_seed)
    model, new = learner(recipe)
    disable_progress_bars()
    trainer = _trainer_class()(
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
    follow(run, trainer)
    if divergence is not None:
        trainer.teacher = Teacher(trainer.model, recipe, divergence)
    trainer.train(resume_from_checkpoint=last_checkpoint(run))
    tokens = sum(lengths[index] for step in steps for index in step)
    return save(run, trainer, adapter, tokens, too_long)


def _trainer_class() -> Any:
    """Return TRL's trainer with our loss; TRL is imported only when it is needed."""
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        """TRL's trainer: logits only where there is loss, and the loss of each kind of example.

        TRL's fused head skips the other positions on a GPU only; on a CPU it computes them too, and
        their entropy.
        """

        by_kind: dict[str, float] = {}
        teacher: Teacher | None = None

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            kinds, asked = inputs.pop("kinds"), inputs.pop("teacher", None)
            targets = None
            if self.teacher and asked:
                targets = self.teacher.targets(self.accelerator.unwrap_model(model), **asked)
            loss = completion_loss(model, **inputs, total=num_items_in_batch, targets=targets)
            if num_items_in_batch is not None:  # of all processes, whose gradients are averaged
                loss = loss._replace(value=loss.value * processes.count())
            self.by_kind = loss.by_kind(kinds)
            return loss.value

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs | self.by_kind if "loss" in logs else logs, start_time)

    return Trainer


def _rows(
    run: TrainingRun, tokenizer: Any, examples: Sequence[Example], teachers: bool
) -> tuple[list[dict[str, Any]], TooLong]:
    """Return the rows of the examples that fit, and how many are too long.

    Raises:
        InputError: no example fits.
    """
    recipe = run.recipe
    rows = []
    for e in examples:
        if row := example_row(tokenizer, e, recipe):
            rows.append(row | (teacher_row(tokenizer, e, row, recipe) if teachers else {}))
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
    given = len(prompt)
    given += tokens_of_opening(tokenizer, example.prompt, example.given or "", recipe, completion)
    if given >= train.max_length:
        return None
    whole = prompt + completion
    return {
        "input_ids": whole[: train.max_length],
        "labels": ([IGNORED] * given + whole[given:])[: train.max_length],
        "weights": ([1.0] * len(prompt) + weights)[: train.max_length],
        "kind": example.kind,
    }


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Pad rows of `example_row` on the right, into tensors of [batch, longest].

    Rows may have the columns of `teacher_row`.
    """
    taught = teacher_batch(rows, pad) if "taught" in rows[0] else {}
    return taught | {
        "input_ids": padded([row["input_ids"] for row in rows], pad),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
        "weights": padded([row["weights"] for row in rows], 0.0),
        "kinds": [row["kind"] for row in rows],
    }


class Loss(NamedTuple):
    """A batch's loss: the value to minimize, and sums and numbers of tokens of each row.

    Args:
        value: to minimize.
        sums: negative log-likelihood of each row's labeled tokens.
        counts: number of each row's labeled tokens.
        divergences: divergence from the teacher of each row's tokens that are learned from it.
        taught: number of each row's tokens that are learned from the teacher.
    """

    value: Any
    sums: Any
    counts: Any
    divergences: Any = None
    taught: Any = None

    def by_kind(self, kinds: Sequence[str]) -> dict[str, float]:
        """Return the means of each kind of rows, for the log.

        Args:
            kinds: of the rows.
        """
        import torch

        means = {}
        for kind in sorted({*kinds}):
            rows = torch.tensor([k == kind for k in kinds], device=self.sums.device)
            means[f"loss_{kind}"] = _mean(self.sums[rows], self.counts[rows])
            if self.taught is not None and self.taught[rows].any():
                means[f"divergence_{kind}"] = _mean(self.divergences[rows], self.taught[rows])
        return means


def _mean(sums: Any, counts: Any) -> float:
    return float(sums.sum() / counts.sum().clamp(min=1))


def _of_rows(values: Any, where: Any) -> Any:
    """Return the sum for each row of the values of some of its tokens, without gradients."""
    every = values.new_zeros(where.shape)
    return every.masked_scatter(where, values.detach()).sum(dim=1)


def completion_loss(
    model: Any,
    input_ids: Any,
    attention_mask: Any,
    labels: Any,
    weights: Any = None,
    total: Any = None,
    taught: Any = None,
    targets: Targets | None = None,
) -> Loss:
    """Return the mean loss of the labeled tokens: the negative log-likelihood of each.

    Where a teacher's distribution is the target, the loss is the divergence from it.

    Args:
        model: a causal language model.
        input_ids: [batch, length].
        attention_mask: [batch, length].
        labels: [batch, length]; -100 where there is no loss.
        weights: [batch, length], of the labeled tokens; None for 1.
        total: labeled tokens to divide by; None for those of this batch.
        taught: [batch, length], true at the labeled tokens of `targets`.
        targets: what the teacher says about them, row by row; None without a teacher.
    """
    import torch

    scored = labels != IGNORED
    scored[:, 0] = False  # nothing predicts a row's first token
    logits, learned = predictions(model, input_ids, attention_mask, scored), labels[scored]
    likelihood = partial(torch.nn.functional.cross_entropy, reduction="none")
    each = likelihood(logits if targets is None else logits.detach(), learned)
    sums, soft = _of_rows(each, scored), None
    if targets is not None:  # the likelihood of what is learned from the teacher is only logged
        chosen = taught[scored]
        divergence = targets.divergence(logits[chosen])
        each[chosen], each[~chosen] = divergence, likelihood(logits[~chosen], learned[~chosen])
        soft = _of_rows(divergence, taught), taught.sum(dim=1)
    weighted = each if weights is None else each * weights[scored]
    return Loss(
        weighted.sum() / (scored.sum() if total is None else total),
        sums,
        scored.sum(dim=1),
        *(soft or ()),
    )
