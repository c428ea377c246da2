"""Direct Preference Optimization (arXiv 2305.18290), by TRL's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from setbacks.errors import InputError
from setbacks.methods.preferences import PreferenceMethod, PreferenceOptions
from setbacks.models.loading import load_tokenizer, skeleton
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.training import (
    TooLong,
    TrainingRun,
    check_context,
    follow,
    last_checkpoint,
    learner,
    name_for_trl,
    options,
    save,
    schedule,
    tokenize,
)


class DPOOptions(PreferenceOptions):
    """Step 3, fine-tuning by DPO."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the model before training.")
    nll: float = Field(
        0.0,
        ge=0,
        description="Weight in the loss of the preferred answer's negative log-likelihood (RPO, "
        "arXiv 2404.19733). Without it, DPO makes rejected answers less likely, and preferred ones "
        "often, too.",
    )


class DPO(PreferenceMethod):
    """Learns preferences directly, without a reward model."""

    name = "dpo"
    title = "DPO"
    Options = DPOOptions
    learning_rate = 5e-5

    def check(self, recipe: Recipe) -> None:
        """Check that TRL finds the base model, which its DPO runs without the head."""
        model = skeleton(recipe.model)
        name_for_trl(model)
        if model.base_model is model:
            raise InputError(
                f"train.method dpo: TRL finds no base model in {type(model).__name__}; choose "
                "another method"
            )

    def fit(self, run: TrainingRun, examples: Sequence[Example], adapter: Path) -> int:
        """Train an adapter; see `setbacks.training.supervised.fit`."""
        from datasets import Dataset, disable_progress_bars
        from transformers import set_seed
        from trl import DPOConfig, DPOTrainer

        class Trainer(DPOTrainer):
            """TRL's trainer, on the token ids that the model reads in generation."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

        recipe, train = run.recipe, cast(DPOOptions, run.recipe.train)
        tokenizer = load_tokenizer(recipe.model)
        rows = pair_rows(tokenizer, examples, recipe)
        check_pairs(recipe, rows)
        too_long = pairs_too_long(rows, len(examples), recipe)
        too_long.say(run)
        lengths = [_tokens(row) for row in rows]
        steps = schedule(lengths, recipe.train, recipe.train_seed)
        set_seed(recipe.train_seed)
        model, new = learner(recipe)
        disable_progress_bars()
        trainer = Trainer(
            model=model,
            args=DPOConfig(
                beta=train.beta,
                loss_type=["sigmoid", "sft"] if train.nll else ["sigmoid"],
                loss_weights=[1.0, train.nll] if train.nll else None,
                train_sampling_strategy="sequential",
                max_length=recipe.train.max_length,
                **options(run, model, "checkpoints", len(steps)),
            ),
            train_dataset=Dataset.from_list([rows[index] for step in steps for index in step]),
            processing_class=tokenizer,
            peft_config=new,
        )
        follow(run, trainer).train(resume_from_checkpoint=last_checkpoint(run))
        tokens = sum(lengths[index] for step in steps for index in step)
        return save(run, trainer, adapter, tokens, too_long)


def pair_rows(
    tokenizer: Any, examples: Sequence[Example], recipe: Recipe
) -> list[dict[str, list[int]]]:
    """Turn pairs into `prompt_ids`, `chosen_ids` and `rejected_ids`, TRL's format.

    Raises:
        InputError: every prompt alone fills `max_length`.
    """
    rows = []
    for pair in examples:
        prompt, chosen = tokenize(tokenizer, pair.prompt, pair.completion, recipe)
        _, rejected = tokenize(tokenizer, pair.prompt, pair.rejected or "", recipe)
        if len(prompt) < recipe.train.max_length:
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    if not rows:
        raise InputError("no pair is left to train on; raise train.max_length")
    return rows


def check_pairs(recipe: Recipe, rows: Sequence[dict[str, list[int]]]) -> None:
    """Check that the longest of `pair_rows` fits into a model's context.

    Raises:
        InputError: it does not.
    """
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    )
    check_context(recipe.model, min(longest, recipe.train.max_length))


def pairs_too_long(rows: Sequence[dict[str, list[int]]], pairs: int, recipe: Recipe) -> TooLong:
    """Count the pairs that `train.max_length` cuts or leaves out.

    Args:
        rows: the rows of `pair_rows`.
        pairs: the number of pairs.
        recipe: sets the maximum length.
    """
    room = recipe.train.max_length
    cut = sum(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > room
        for row in rows
    )
    return TooLong(pairs, cut, left_out=pairs - len(rows))


def _tokens(row: dict[str, list[int]]) -> int:
    """Return the tokens that a step reads of a pair: the prompt is read with each answer."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
