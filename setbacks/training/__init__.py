"""Training: what every way of fine-tuning an adapter shares. One file a way beside it.

All steps are laid out before the first one, from the examples' content and the seed, so a resumed
training sees the same batches and, with the optimizer and random state of its checkpoint, ends with
the same weights.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from setbacks.errors import InputError, SetbacksError
from setbacks.files import sync, write_atomic
from setbacks.models.adapters import attached, coverage, ignore_peft_warnings, untouched
from setbacks.models.chat_template import encode_answer
from setbacks.models.embedded import hub_id
from setbacks.models.loading import context, device, load_base, load_config
from setbacks.plugins import plugin
from setbacks.recipe import Engine, Recipe, Train
from setbacks.records import Message
from setbacks.training import processes
from setbacks.training.targets import look_up

log = logging.getLogger(__name__)

WHOLE = "whole"  # marks a checkpoint that was written and synced to its end
IGNORED = -100  # the label of a token that has no loss
# What of each step's log goes into the loss curve, by the beginning of its name.
_CURVE = ("step", "loss", "learning_rate", "grad_norm", "kl", "reward")


class TrainingRun(Protocol):
    """What training needs of a run: a session, or what another process knows of it."""

    path: Path
    recipe: Recipe

    def log(self, line: str) -> None:
        """Add a line to run.log."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Show how far the training is."""


def tokenize(
    tokenizer: Any, prompt: Sequence[Message], completion: str, recipe: Recipe
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of its completion, the end of the turn included.

    The prompt's ids are those that generation gives the model.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the turns before the completion.
        completion: what the model is to say.
        recipe: names the template.
    """
    return encode_answer(
        tokenizer,
        prompt,
        completion,
        template=recipe.model.chat_template,
        language=recipe.language,
    )


class TooLong(NamedTuple):
    """How many of all examples are longer than `train.max_length`.

    Those that are `cut` have lost the end of their turn; those that are `left_out` have a prompt
    that fills `max_length` alone.
    """

    examples: int
    cut: int
    left_out: int

    def say(self, run: TrainingRun) -> None:
        """Tell the user, on the terminal and in run.log, if there are any."""
        if not (self.cut or self.left_out) or processes.rank():
            return
        line = (
            f"train: {self.cut + self.left_out} of {self.examples} examples are longer than "
            f"train.max_length ({run.recipe.train.max_length} tokens): {self.cut} were cut and "
            f"have lost their end of turn, {self.left_out} were left out because the prompt alone "
            "fills it; raise train.max_length"
        )
        log.warning(line)
        run.log(line)


def check_context(spec: Engine, longest: int) -> None:
    """Look whether a model can read the longest example.

    Args:
        spec: the model.
        longest: its tokens.

    Raises:
        InputError: it is longer than the model's context.
    """
    limit = context(load_config(spec))
    if limit is not None and longest > limit:
        raise InputError(
            f'model "{spec.model}": a training example of {longest:,} tokens does not fit into its '
            f"context of {limit:,} tokens; set train.max_length={limit}"
        )


def schedule(lengths: Sequence[int], told: Train, seed: int) -> list[list[int]]:
    """Lay out every step of the training: batches of similar length, in a random order.

    Args:
        lengths: of the examples, in tokens.
        told: the batch size, and how long training lasts: `epochs`, or as many of them as it takes
            to read `tokens` or to make `steps`.
        seed: of the shuffling.

    Returns:
        The indices of each step's examples; only the very last step may have fewer than the others.
    """
    shuffle = random.Random(seed)
    epochs = told.epochs
    if told.tokens is not None:
        epochs = math.ceil(told.tokens / sum(lengths))
    elif told.steps is not None:
        epochs = math.ceil(told.steps * told.batch_size / len(lengths))
    order: list[int] = []
    for _ in range(epochs):
        order += shuffle.sample(range(len(lengths)), len(lengths))
    steps: list[list[int]] = []
    window = 16 * told.batch_size  # wide enough to save padding, narrow enough to stay random
    for start in range(0, len(order), window):
        alike = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches = [alike[i : i + told.batch_size] for i in range(0, len(alike), told.batch_size)]
        short = batches.pop() if len(batches[-1]) < told.batch_size else None
        shuffle.shuffle(batches)
        steps += batches + ([short] if short else [])
    if told.tokens is not None:
        read = accumulate(sum(lengths[index] for index in step) for step in steps)
        steps = steps[: 1 + sum(so_far < told.tokens for so_far in read)]
    return steps[: told.steps]


def adapter_config(recipe: Recipe, task: str = "CAUSAL_LM") -> Any:
    """Return the LoRA (arXiv 2106.09685) that the recipe asks for, as PEFT takes it."""
    ignore_peft_warnings()
    return look_up(recipe, task).config


def learner(recipe: Recipe) -> tuple[Any, Any]:
    """Return the model to train and, where its adapter is a new one, the shape of that.

    They are a TRL trainer's `model` and `peft_config`. One that prefers answers keeps to the
    adapter that it began with (`train.start`), as it does to the base where there is none.

    Raises:
        InputError: there is no such model, or the adapter is not one of it.
    """
    base, start = load_base(recipe), recipe.train.start
    name_for_trl(base)
    if start is None:
        return base, adapter_config(recipe)
    return attached(base, Path(start), trainable=True), None


def name_for_trl(model: Any) -> None:
    """Give a model's body and its number of experts the names by which TRL looks for them.

    Some classes of transformers have other names for these: Llama 4, Phi-3.5-MoE, Granite MoE.
    """
    from transformers import PreTrainedModel

    if model.base_model is model:
        bodies = [name for name, m in model.named_children() if isinstance(m, PreTrainedModel)]
        model.base_model_prefix = next(iter(bodies), model.base_model_prefix)
    config = model.config.get_text_config()
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        config.num_experts = config.num_local_experts


def options(run: TrainingRun, model: Any, folder: str, total: int) -> dict[str, Any]:
    """Return the arguments that every TRL trainer is given alike.

    Args:
        run: the run.
        model: what is trained.
        folder: where checkpoints go, in the run folder.
        total: steps.
    """
    told = run.recipe.train
    place = device(run.recipe.model)
    (run.path / folder).mkdir(mode=0o700, exist_ok=True)
    each = processes.share(told)
    return {
        "output_dir": str(run.path / folder),
        "num_train_epochs": 1,  # all epochs are laid out in the rows
        "per_device_train_batch_size": each,
        "learning_rate": told.learning_rate or plugin("methods", told.method).learning_rate,
        "warmup_steps": round(told.warmup * total),
        "lr_scheduler_type": told.scheduler,
        "activation_checkpointing": told.gradient_checkpointing,
        "seed": run.recipe.train_seed,
        "use_cpu": place == "cpu",
        "bf16": place.startswith("cuda") and next(model.parameters()).dtype.itemsize == 2,
        "ddp_find_unused_parameters": False if processes.count() > 1 else None,
        "dataloader_pin_memory": place.startswith("cuda"),
        "logging_steps": 1,
        # A logged loss is the mean since the last log: with one log a step, a resumed run's agree.
        "logging_nan_inf_filter": False,
        "save_steps": told.checkpoint_every,
        "save_total_limit": 2,
        "report_to": told.report_to or "none",
        "disable_tqdm": True,
    }


def follow(run: TrainingRun, trainer: Any, label: str = "train") -> Any:
    """Have a trainer show its progress, and mark a checkpoint once all of it is on disk.

    What its adapter covers goes to run.log.
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
            for path in folder.rglob("*"):  # a second adapter has a folder of its own
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
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())
    return trainer


def snapshot_steps(total: int, number: int) -> list[int]:
    """Return the steps after which the adapter is kept: evenly spaced, the last one among them."""
    return sorted({round(total * (i + 1) / number) for i in range(number)} - {0})


def last_checkpoint(run: TrainingRun, folder: str = "checkpoints") -> str | None:
    """The last checkpoint that was written to its end; those that were not are removed."""
    if processes.rank():
        processes.meet()  # until the first process has removed them
    found: dict[int, Path] = {}
    for path in (run.path / folder).glob("checkpoint-*"):
        if (path / WHOLE).exists():
            found[int(path.name.partition("-")[2])] = path
        else:
            shutil.rmtree(path)
    if not processes.rank():
        processes.meet()
    if not found:
        return None
    last = found[max(found)]
    run.log(f"train: going on from {last.name}")
    return str(last)


def save(run: TrainingRun, trainer: Any, adapter: Path, tokens: int, too_long: TooLong) -> int:
    """Save the adapter, the loss curve, and what the training read; return its tokens."""
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
            f"train: no gradient reached the adapters on {', '.join(idle)}: they have learned "
            "nothing; leave them out with train.lora.exclude"
        )
        log.warning(line)
        run.log(line)
    # Keys in order: a checkpoint gives them back sorted.
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in curve)
    write_atomic(run.path / "loss.jsonl", lines.encode())
    # Not in costs.jsonl alone: that may miss a line after a crash, and comparisons train by it.
    trained = {"steps": len(curve), "tokens": tokens}
    if too_long.cut or too_long.left_out:
        trained |= too_long._asdict()
    write_atomic(run.path / "trained.json", f"{json.dumps(trained)}\n".encode())
    save_adapter(run, trainer, adapter, weights)
    return tokens


def gathered(trainer: Any) -> Any:
    """Gather the weights where they are spread over processes: every process has to ask."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None


def save_adapter(run: TrainingRun, trainer: Any, adapter: Path, weights: Any = None) -> None:
    """Save an adapter with its card; its folder appears whole or not at all."""
    if adapter.exists():  # a snapshot that a resumed training comes to again
        return
    temporary = adapter.with_name(adapter.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # A trainer that began with an adapter has a copy of it beside, to keep to.
    trainer.model.save_pretrained(str(temporary), state_dict=weights, selected_adapters=["default"])
    config = temporary / "adapter_config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    # Sets come out in an order that changes from process to process.
    told = {k: sorted(v) if isinstance(v, list) else v for k, v in sorted(told.items())}
    # The hub's name of it, and not this machine's path to its cache.
    told["base_model_name_or_path"] = hub_id(run.recipe.model.model)
    config.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    card = _card(run, told["base_model_name_or_path"])
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
