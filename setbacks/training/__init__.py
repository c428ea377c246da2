"""Training: what all ways of fine-tuning an adapter share.

All steps are planned in advance from the examples' content and the seed, so a resumed training sees
the same batches and, with the optimizer and random state of its checkpoint, ends with the same
weights.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Sequence
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from setbacks.errors import InputError, SetbacksError
from setbacks.files import sync, write_atomic
from setbacks.messages import with_system
from setbacks.models.adapters import attached, coverage, ignore_peft_warnings, untouched
from setbacks.models.attention import attend_by_products
from setbacks.models.chat_template import encode, encode_answer
from setbacks.models.embedded import hub_id
from setbacks.models.hardware import device
from setbacks.models.loading import context, load_base, load_config
from setbacks.models.thinking import thinking_of
from setbacks.plugins import plugin
from setbacks.recipe import Engine, Recipe, Train
from setbacks.records import Message
from setbacks.training import processes
from setbacks.training.lora_linear import fuse_lora
from setbacks.training.targets import look_up

log = logging.getLogger(__name__)

WHOLE = "whole"  # marks a checkpoint that was completely written and synced
IGNORED = -100  # the label of a token that has no loss
# Tokens of a row whose attention takes less time by products, and little memory, in bfloat16; in
# float32, products are for prefixes only (`setbacks.training.predictions`).
SHORT = 256
# Entries of a step's log that go into the loss curve, by the beginning of their names.
_CURVE = ("step", "loss", "learning_rate", "grad_norm", "kl", "reward", "divergence")


class TrainingRun(Protocol):
    """What training needs of a run: a session, or a `Follower` in another process."""

    path: Path
    recipe: Recipe

    def log(self, line: str) -> None:
        """Add a line to run.log."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Show the progress of training."""


def tokenize(
    tokenizer: Any,
    prompt: Sequence[Message],
    completion: str,
    recipe: Recipe,
    thought: str | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of its completion, the end of the turn included.

    The prompt's ids are those that generation gives the model, before a thought if there is one,
    and otherwise before an answer without a thought.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the turns before the completion.
        completion: the target text.
        recipe: sets the template.
        thought: what the model thinks before the completion; part of what it learns.
    """
    return encode_answer(
        tokenizer,
        with_system(prompt, recipe.model.system),
        completion,
        template=recipe.model.chat_template,
        words=recipe.words_for(),
        variables=recipe.model.template,
        thought=thought,
        thinking=thinking_of(tokenizer, recipe.model) if thought is not None else None,
    )


def prompt_ids(
    tokenizer: Any, prompt: Sequence[Message], recipe: Recipe, prefill: str = ""
) -> list[int]:
    """Return the ids of a prompt, as `tokenize` does, and of the given beginning of an answer."""
    return encode(
        tokenizer,
        with_system(prompt, recipe.model.system),
        prefill=prefill,
        template=recipe.model.chat_template,
        words=recipe.words_for(),
        variables=recipe.model.template,
    )


def tokens_of_opening(
    tokenizer: Any,
    prompt: Sequence[Message],
    opening: str,
    recipe: Recipe,
    completion: Sequence[int],
) -> int:
    """Return the number of a completion's tokens that a given opening takes up.

    A token that contains the end of the opening and the beginning of what follows counts as well.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the turns before the completion.
        opening: the beginning of the completion; may be empty.
        recipe: sets the template.
        completion: the ids of the completion, as `tokenize` returns them.
    """
    if not opening:
        return 0
    before = len(prompt_ids(tokenizer, prompt, recipe))
    given = prompt_ids(tokenizer, prompt, recipe, opening)[before:]
    shared = len(commonprefix([given, list(completion)]))
    return shared + (shared < len(given))


def padded(rows: Sequence[Sequence[Any]], filler: Any) -> Any:
    """Return rows as a tensor of [rows, longest], padded on the right."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


class TooLong(NamedTuple):
    """The numbers of all examples and of those longer than `train.max_length`.

    Examples that are `cut` have lost the end of their turn; the prompt of those that are `left_out`
    alone fills `max_length`.
    """

    examples: int
    cut: int
    left_out: int

    def say(self, run: TrainingRun) -> None:
        """Warn on the terminal and in run.log, if there are any."""
        if not (self.cut or self.left_out) or processes.rank():
            return
        line = (
            f"train: {self.cut + self.left_out} of {self.examples} examples are longer than "
            f"train.max_length ({run.recipe.train.max_length} tokens): {self.cut} were cut and "
            f"have lost their end of turn, {self.left_out} were left out because the prompt alone "
            "is too long; raise train.max_length"
        )
        log.warning(line)
        run.log(line)


def check_context(
    spec: Engine, longest: int, what: str = "a training example", remedy: str | None = None
) -> None:
    """Check that a model can read the longest example.

    Args:
        spec: the model.
        longest: the number of its tokens.
        what: the model is to read.
        remedy: what to do if it is too long; None: lower `train.max_length`.

    Raises:
        InputError: it is longer than the context.
    """
    limit = context(load_config(spec))
    if limit is not None and longest > limit:
        raise InputError(
            f'model "{spec.model}": {what} of {longest:,} tokens does not fit into its '
            f"context of {limit:,} tokens; {remedy or f'set train.max_length={limit}'}"
        )


def schedule(lengths: Sequence[int], train: Train, seed: int) -> list[list[int]]:
    """Plan every step of the training: batches of similar length, in a random order.

    Args:
        lengths: lengths of the examples, in tokens.
        train: the batch size and the length of the training: `epochs`, or as many as are needed
            to read `tokens` or to make `steps`.
        seed: the seed of the shuffling.

    Returns:
        The indices of each step's examples; only the last step may have fewer than the others.
    """
    shuffle = random.Random(seed)
    epochs = train.epochs
    if train.tokens is not None:
        epochs = math.ceil(train.tokens / sum(lengths))
    elif train.steps is not None:
        epochs = math.ceil(train.steps * train.batch_size / len(lengths))
    order: list[int] = []
    for _ in range(epochs):
        order += shuffle.sample(range(len(lengths)), len(lengths))
    steps: list[list[int]] = []
    window = 16 * train.batch_size  # wide enough to save padding, narrow enough to stay random
    for start in range(0, len(order), window):
        alike = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches = [alike[i : i + train.batch_size] for i in range(0, len(alike), train.batch_size)]
        short = batches.pop() if len(batches[-1]) < train.batch_size else None
        shuffle.shuffle(batches)
        steps += batches + ([short] if short else [])
    if train.tokens is not None:
        read = accumulate(sum(lengths[index] for index in step) for step in steps)
        steps = steps[: 1 + sum(so_far < train.tokens for so_far in read)]
    return steps[: train.steps]


def adapter_config(recipe: Recipe, task: str = "CAUSAL_LM") -> Any:
    """Return the recipe's LoRA (arXiv 2106.09685) as a PEFT configuration."""
    ignore_peft_warnings()
    return look_up(recipe, task).config


def learner(recipe: Recipe) -> tuple[Any, Any]:
    """Return the model to train and, if its adapter is new, the adapter's configuration.

    They are a TRL trainer's `model` and `peft_config`. Preference trainers use the starting adapter
    (`Recipe.start`), or else the base model, as their reference model.

    Raises:
        InputError: the model does not exist, or the adapter does not fit it.
    """
    base, start = load_base(recipe), recipe.start
    if device(recipe.model) == "cpu":
        attend_by_products(base, SHORT if _is_bfloat16(base) else 0)
    name_for_trl(base)
    if start is None:
        return base, adapter_config(recipe)
    return attached(base, start, trainable=True), None


def _is_bfloat16(model: Any) -> bool:
    """Return whether a model's weights are bfloat16."""
    import torch

    return bool(next(model.parameters()).dtype == torch.bfloat16)


def name_for_trl(model: Any) -> None:
    """Set the names under which TRL looks for a base model and its number of experts.

    Some classes of transformers use other names: Llama 4, Phi-3.5-MoE, Granite MoE.
    """
    from transformers import PreTrainedModel

    if model.base_model is model:
        bodies = [name for name, m in model.named_children() if isinstance(m, PreTrainedModel)]
        model.base_model_prefix = next(iter(bodies), model.base_model_prefix)
    config = model.config.get_text_config()
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        config.num_experts = config.num_local_experts


def options(run: TrainingRun, model: Any, folder: str, total: int) -> dict[str, Any]:
    """Return the arguments that all TRL trainers share.

    Args:
        run: the run.
        model: the model to train.
        folder: the folder for checkpoints, in the run folder.
        total: the number of steps.
    """
    train = run.recipe.train
    place = device(run.recipe.model)
    (run.path / folder).mkdir(mode=0o700, exist_ok=True)
    each = processes.share(train)
    return {
        "output_dir": str(run.path / folder),
        "num_train_epochs": 1,  # the rows include all epochs
        "per_device_train_batch_size": each,
        "learning_rate": train.learning_rate
        or plugin("methods", train.method).learning_rate
        or learning_rate(model.num_parameters()),
        "warmup_steps": round(train.warmup * total),
        "lr_scheduler_type": train.scheduler,
        "activation_checkpointing": train.gradient_checkpointing,
        "seed": run.recipe.train_seed,
        "use_cpu": place == "cpu",
        # Products of the adapter's weights, which are float32, are computed like the model's.
        "bf16": (place.startswith("cuda") and next(model.parameters()).dtype.itemsize == 2)
        or (place == "cpu" and _is_bfloat16(model)),
        "ddp_find_unused_parameters": False if processes.count() > 1 else None,
        "dataloader_pin_memory": place.startswith("cuda"),
        "logging_steps": 1,
        # A logged loss is the mean since the last log: one log per step keeps resumed runs equal.
        "logging_nan_inf_filter": False,
        "save_steps": train.checkpoint_every,
        "save_total_limit": 2,
        "report_to": train.report_to or "none",
        "disable_tqdm": True,
    }


def learning_rate(parameters: int) -> float:
    """Return a peak learning rate for supervised fine-tuning with LoRA, by the model's size.

    The best rates in a sweep over models from 1 to 400 billion parameters (tinker-cookbook,
    `hyperparam_utils.get_lr`): small models want more than the usual 2e-4, with which they hardly
    learn an answer that is not in their own style.
    """
    return 1e-3 if parameters < 4e9 else 3e-4


def follow(run: TrainingRun, trainer: Any, label: str = "train") -> Any:
    """Make a trainer show its progress, and mark a checkpoint once it is completely on disk.

    The coverage of its adapter goes to run.log.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    class Follow(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.progress(label, state.global_step, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.progress(label, state.global_step, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for path in folder.rglob("*"):  # a second adapter has a separate folder
                sync(path)
            (folder / WHOLE).touch()
            sync(folder)

    class Snapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps = snapshot_steps(state.max_steps, run.recipe.train.snapshots)
            if state.global_step in steps:
                weights = gathered(trainer)
                if state.is_world_process_zero:
                    place = run.path / "snapshots" / f"{state.global_step:06}"
                    save_adapter(run, trainer, place, weights)

    if run.recipe.train.snapshots and label == "train":
        (run.path / "snapshots").mkdir(mode=0o700, exist_ok=True)
        trainer.add_callback(Snapshots())
    if not processes.rank():
        run.log(f"{label}: an adapter on {coverage(trainer.model)}")
    if trainer.args.use_cpu and not is_spread(trainer):
        fuse_lora(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())
    return trainer


def snapshot_steps(total: int, number: int) -> list[int]:
    """Return the steps after which the adapter is saved: evenly spaced, including the last."""
    return sorted({round(total * (i + 1) / number) for i in range(number)} - {0})


def last_checkpoint(run: TrainingRun, folder: str = "checkpoints") -> str | None:
    """Return the last complete checkpoint, and remove incomplete ones."""
    if processes.rank():
        processes.meet()  # until the first process has removed them
    complete: dict[int, Path] = {}
    for path in (run.path / folder).glob("checkpoint-*"):
        if (path / WHOLE).exists():
            complete[int(path.name.partition("-")[2])] = path
        else:
            shutil.rmtree(path)
    if not processes.rank():
        processes.meet()
    if not complete:
        return None
    last = complete[max(complete)]
    run.log(f"train: resuming from {last.name}")
    return str(last)


def save(run: TrainingRun, trainer: Any, adapter: Path, tokens: int, too_long: TooLong) -> int:
    """Save the adapter, the loss curve, and the amount of training; return the tokens."""
    weights = gathered(trainer)
    if processes.rank():
        return tokens
    curve = [
        {key: row[key] for key in row if key.startswith(_CURVE)}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    if any(row["loss"] != row["loss"] for row in curve):
        raise SetbacksError(
            "training diverged (the loss is not a number); lower train.learning_rate, or set "
            "model.dtype: float32"
        )
    if weights is None and (idle := untouched(trainer.model)):
        line = (
            f"train: no gradient reached the adapters on {', '.join(idle)}, so they have learned "
            "nothing; exclude them with train.lora.exclude"
        )
        log.warning(line)
        run.log(line)
    # Keys are sorted, since a checkpoint returns them sorted.
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in curve)
    write_atomic(run.path / "loss.jsonl", lines.encode())
    # Not only in costs.jsonl, which may miss a line after a crash: comparisons depend on it.
    trained = {"steps": len(curve), "tokens": tokens}
    if too_long.cut or too_long.left_out:
        trained |= too_long._asdict()
    write_atomic(run.path / "trained.json", f"{json.dumps(trained)}\n".encode())
    save_adapter(run, trainer, adapter, weights)
    return tokens


def is_spread(trainer: Any) -> bool:
    """Return whether each process holds a part of the weights."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def gathered(trainer: Any) -> Any:
    """Gather weights that are spread over processes; every process has to call this."""
    if is_spread(trainer):
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None


def save_adapter(run: TrainingRun, trainer: Any, adapter: Path, weights: Any = None) -> None:
    """Save an adapter with its card; its folder appears complete or not at all."""
    if adapter.exists():  # a snapshot that a resumed training reaches again
        return
    temporary = adapter.with_name(adapter.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # A trainer that started with an adapter also has a copy of it as the reference.
    trainer.model.save_pretrained(str(temporary), state_dict=weights, selected_adapters=["default"])
    config = temporary / "adapter_config.json"
    data = json.loads(config.read_text(encoding="utf-8"))
    # The order of sets changes from process to process.
    data = {k: sorted(v) if isinstance(v, list) else v for k, v in sorted(data.items())}
    # The name on the hub, not this machine's path to its cache.
    data["base_model_name_or_path"] = hub_id(run.recipe.model.model)
    config.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    card = _card(run, data["base_model_name_or_path"])
    (temporary / "README.md").write_text(card, encoding="utf-8")
    temporary.chmod(0o700)
    for path in temporary.iterdir():
        path.chmod(0o600)
        sync(path)
    temporary.rename(adapter)
    sync(adapter.parent)


def _card(run: TrainingRun, base: str) -> str:
    recipe = run.recipe
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\n---\n"
        f"# {recipe.name}\n\n"
        f"A LoRA adapter for `{recipe.model.model}`, trained with "
        f"[setbacks](https://pypi.org/project/setbacks/) by the method `{recipe.train.method}` "
        "(arXiv 2310.10477). `training.jsonl`, beside this folder, holds the very examples that "
        "it was trained on; `report.html` says how it did, and how far that can be believed.\n"
    )
