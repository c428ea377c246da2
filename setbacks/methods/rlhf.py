"""RLHF: a reward model trained on preference pairs, then REINFORCE leave-one-out with a KL term.

RLOO (arXiv 2402.14740) replaces the paper's PPO: it needs no value model and performs at least as
well. Both trainers are TRL's. A run's budget is for the policy. The reward model reads its pairs
once, within the same budget again, and its cost is part of the run's costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from setbacks.methods.dpo import check_pairs, pair_rows, pairs_too_long
from setbacks.methods.preferences import PreferenceMethod, PreferenceOptions
from setbacks.models.chat_template import stop_tokens
from setbacks.models.loading import check_reward_model, load_reward_model, load_tokenizer
from setbacks.notices import notice
from setbacks.recipe import Recipe, Section, Train
from setbacks.records import Example
from setbacks.training import (
    TooLong,
    TrainingRun,
    adapter_config,
    follow,
    last_checkpoint,
    learner,
    options,
    prompt_ids,
    save,
    save_adapter,
    schedule,
    tokenize,
)
from setbacks.training.targets import look_up


class Reinforcement(Section):
    """REINFORCE leave-one-out on a reward model (arXiv 2402.14740)."""

    generations: int = Field(4, ge=2, description="Responses sampled for each prompt of a step.")
    max_new_tokens: int = Field(64, ge=1, description="Longest sampled response, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    kl: float = Field(0.05, ge=0, description="Weight of the KL divergence from the base model.")


class RLHFOptions(PreferenceOptions):
    """Step 3, fine-tuning by RLHF."""

    rlhf: Reinforcement = Field(Reinforcement(), description="Reinforcement on the reward model.")


CHECKPOINTS = "reward_checkpoints"  # of the reward model


class RLHF(PreferenceMethod):
    """Learns a reward from pairs, and to generate responses with a high reward.

    The prompts of the reinforcement are those of the pairs.
    """

    name = "rlhf"
    title = "RLHF"
    Options = RLHFOptions
    learning_rate = 5e-5
    outputs = ("reward",)
    temporary = (CHECKPOINTS,)

    def check(self, recipe: Recipe) -> None:
        """Check that the model can become a reward model, and look up its adapter's modules."""
        check_reward_model(recipe.model)
        look_up(recipe, "SEQ_CLS")

    def fit(self, run: TrainingRun, examples: Sequence[Example], adapter: Path) -> int:
        """Train the reward model, then an adapter; see `setbacks.training.supervised.fit`."""
        reward = run.path / "reward"
        rows = pair_rows(load_tokenizer(run.recipe.model), examples, run.recipe)
        check_pairs(run.recipe, rows)
        too_long = pairs_too_long(rows, len(examples), run.recipe)
        too_long.say(run)
        if not reward.exists():
            _fit_reward(run, rows, reward)
        return _reinforce(run, examples, reward, adapter, too_long)


def _fit_reward(run: TrainingRun, pairs: Sequence[dict[str, list[int]]], reward: Path) -> None:
    """Train a head and an adapter to score a chosen answer above the rejected one.

    It reads its pairs once, or as many as the recipe's budget allows.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    recipe = run.recipe
    tokenizer = load_tokenizer(recipe.model)
    rows = [
        {
            "chosen_ids": (row["prompt_ids"] + row["chosen_ids"])[: recipe.train.max_length],
            "rejected_ids": (row["prompt_ids"] + row["rejected_ids"])[: recipe.train.max_length],
        }
        for row in pairs
    ]
    once = recipe.train.model_copy(update={"epochs": 1, "tokens": None, "steps": None})
    lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    passes = (schedule(lengths, train, recipe.train_seed) for train in (once, recipe.train))
    steps = min(passes, key=len)
    set_seed(recipe.train_seed)
    model = load_reward_model(recipe.model, tokenizer)
    disable_progress_bars()
    settings = options(run, model, CHECKPOINTS, len(steps))
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            train_sampling_strategy="sequential",
            max_length=None,
            **settings | {"learning_rate": 2e-4},
        ),
        train_dataset=Dataset.from_list([rows[index] for step in steps for index in step]),
        processing_class=tokenizer,
        peft_config=adapter_config(recipe, "SEQ_CLS"),
    )
    follow(run, trainer, "train reward").train(
        resume_from_checkpoint=last_checkpoint(run, CHECKPOINTS)
    )
    save_adapter(run, trainer, reward)


def steps_of(train: Train, examples: int, group: int, tokens: float) -> int:
    """Return the number of steps of the reinforcement, as `schedule` limits other trainings.

    Args:
        train: with `epochs`, `tokens` or `steps`.
        examples: number of prompts.
        group: prompts per step.
        tokens: that a step reads.
    """
    total = train.steps or train.epochs * math.ceil(examples / group)
    if train.tokens is None:
        return total
    most = math.ceil(train.tokens / tokens)
    return most if train.steps is None else min(most, train.steps)


def _reinforce(
    run: TrainingRun,
    examples: Sequence[Example],
    reward: Path,
    adapter: Path,
    too_long: TooLong,
) -> int:
    """Generate responses to the prompts; reinforce those that the reward model prefers."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import set_seed
    from trl import RLOOConfig, RLOOTrainer

    recipe = run.recipe
    reinforcement = cast(RLHFOptions, recipe.train).rlhf
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.padding_side = "left"
    scorer = PeftModel.from_pretrained(
        load_reward_model(recipe.model, tokenizer), str(reward)
    ).eval()
    asked = [prompt_ids(tokenizer, pair.prompt, recipe) for pair in examples]
    lengths = [*map(len, asked)]
    # The length of a step is unknown before its responses exist, so assume the longest.
    group = max(1, recipe.train.batch_size // reinforcement.generations)
    longest = sum(lengths) / len(lengths) + reinforcement.max_new_tokens
    a_step = group * reinforcement.generations * longest
    total = steps_of(recipe.train, len(examples), group, a_step)
    if (size := group * reinforcement.generations) != recipe.train.batch_size:
        notice(
            f"train.batch_size is {recipe.train.batch_size}, but rlhf trains on whole groups of "
            f"{reinforcement.generations} responses: {size} per step"
        )

    def score(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        rows = [
            sum(tokenize(tokenizer, examples[int(number)].prompt, completion, recipe), [])
            for number, completion in zip(prompts, completions, strict=True)
        ]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(
            scorer.device
        )
        with torch.inference_mode():
            scores: list[float | None] = scorer(**batch).logits[:, 0].float().tolist()
        return scores

    class Trainer(RLOOTrainer):
        """TRL's trainer, with the prompts of generation; a prompt is the number of its example."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
            return [asked[int(number)] for number in prompts], None, {}

    set_seed(recipe.train_seed)
    model, new = learner(recipe)
    # Responses in training end at the same tokens as in generation.
    ends = stop_tokens(model, tokenizer, recipe.model.chat_template)
    model.generation_config.eos_token_id = sorted(ends)
    disable_progress_bars()
    shared = options(run, model, "checkpoints", total)
    trainer = Trainer(
        model=model,
        reward_funcs=score,
        args=RLOOConfig(
            beta=reinforcement.kl,
            num_generations=reinforcement.generations,
            max_completion_length=reinforcement.max_new_tokens,
            temperature=reinforcement.temperature,
            max_steps=total,
            **shared | {"per_device_train_batch_size": group * reinforcement.generations},
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": str(number)} for number in range(len(examples))]
        ),
        processing_class=tokenizer,
        peft_config=new,
    )
    follow(run, trainer).train(resume_from_checkpoint=last_checkpoint(run))
    return save(run, trainer, adapter, round(total * a_step), too_long)
