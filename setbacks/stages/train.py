"""Step 3, fine-tuning (arXiv 2310.10477, section 3.2: unguided-analysis fine-tuning).

The method decides what is trained on, and how. Most methods use `training.supervised`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.files import failed_write
from setbacks.judges import weights_of_judge
from setbacks.methods import Method, examples_of, open_method
from setbacks.methods.corrections import READS
from setbacks.methods.refused_requests import READS as READS_OF_REFUSALS
from setbacks.models.fingerprint import weights_of
from setbacks.models.loading import check_quantize
from setbacks.notices import notice
from setbacks.recipe import JudgeSpec, Recipe, Train
from setbacks.records import Analysis, Example
from setbacks.runs.decontamination import LeftOut, leave_out_others
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session
from setbacks.runs.weights import START, check_weights
from setbacks.stages.benign import with_own_answers
from setbacks.stages.checks import (
    OURS,
    check_examples,
    check_judge_of_texts,
    keys_of_judge,
)
from setbacks.stages.replayed import check as check_replayed
from setbacks.stages.replayed import replayed
from setbacks.training import processes
from setbacks.training.follower import Follower
from setbacks.training.targets import check_served, look_up, look_up_start

log = logging.getLogger(__name__)


def train(run: Session, analyses: Sequence[Analysis]) -> Path:
    """Fine-tune an adapter on the method's examples; return its folder.

    Args:
        run: the session.
        analyses: every candidate analysis.

    Raises:
        InputError: the method lacks the data that it needs, no example fits, several processes
            cannot share the work, or the model or an adapter has changed.
        SetbacksError: the disk is full or fails, or memory runs out; the last checkpoint is kept.
    """
    method, adapter = open_method(run.recipe), run.path / "adapter"
    _check_processes(run.recipe.train, method)
    names = ("training.jsonl", *STAGE.outputs, *_more_outputs(run.recipe))
    outputs = [run.path / name for name in names]
    check_weights(run, "train", outputs, _weights(method, run.recipe))
    only = run.recipe.train.categories
    if only is not None:
        analyses = of_categories(analyses, only)
    material = method.prepare(run, analyses)
    recipe = with_own_answers(run)
    own = examples_of(method, recipe, material)
    old = replayed(recipe, own, run.decontamination)
    examples = sorted([*own, *old], key=lambda example: example.id)
    if not examples:
        cause = (
            "check train.mix"
            if method.uses_mistakes
            else "check train.mix; its `uses_mistakes` is False, so no mistakes were analyzed"
        )
        raise InputError(f"{run.path}: {method.name} has nothing to train on; {cause}")
    run.journal("left_out.jsonl", LeftOut).write(run.decontamination.left_out)
    journal = run.journal("training.jsonl", Example)
    journal.write(examples)  # what is trained on is on disk before training
    journal.finish()
    processes.meet()  # the other processes start here
    if not adapter.exists():
        from safetensors import SafetensorError

        run.release_engines()
        start = time.monotonic()
        try:
            tokens = method.fit(run, examples, adapter)
        except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
            raise _explained(error, run.path) from error
        run.spend("train", time.monotonic() - start, len(examples), 0, tokens)
        run.release_engines()  # frees the trainer, too: reference cycles hold its model
    processes.part()
    for leftover in ("checkpoints", *method.temporary):
        shutil.rmtree(run.path / leftover, ignore_errors=True)
    return adapter


def _weights(method: Method, recipe: Recipe) -> dict[str, Path]:
    """Return what writes and checks texts for the training, and what it starts from."""
    used = weights_of(recipe.model, recipe.current)
    if recipe.train.start is not None:
        used[START] = Path(recipe.train.start)
    if checks_texts(method, recipe):
        used |= weights_of_judge(recipe.train.judge, recipe)
    return used


def of_categories(analyses: Sequence[Analysis], only: Sequence[str]) -> list[Analysis]:
    """Return the analyses of some categories of harm, and of benign responses, which have none.

    A notice names the categories that no mistake is of.
    """
    known = {a.category for a in analyses if a.harmful and a.category}
    if missing := [name for name in only if name not in known]:
        there = ", ".join(sorted(known)) or "none"
        hint = nearest(missing[0], known)
        notice(f"train.categories: no mistake is of {', '.join(missing)}.{hint} There are: {there}")
    return [a for a in analyses if not a.harmful or a.category in only]


def train_along(folder: Path) -> None:
    """Train along with the first process, once it has written the examples.

    Args:
        folder: the run folder, which only the first process opens for writing.
    """
    processes.meet()
    run = Follower(folder)
    adapter = run.path / "adapter"
    if not adapter.exists():
        open_method(run.recipe).fit(run, run.records("training.jsonl", Example), adapter)
    processes.part()


def _check_processes(train: Train, method: Method) -> None:
    """Reject several processes if they cannot share a step, or the method."""
    processes.share(train)
    if processes.count() > 1 and method.one_process:
        raise InputError(
            f"train.method {method.name} trains only in one process; run setbacks without a "
            "launcher such as accelerate"
        )


def _explained(error: Exception, folder: Path) -> Exception:
    """Recognize a full disk and full memory, which each library reports differently."""
    import torch

    message = str(error)
    no_room = "t allocate memory" in message or "out of memory" in message
    if no_room or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return SetbacksError(
            "train: not enough memory; lower train.batch_size or train.max_length, or set "
            "train.gradient_checkpointing=true, then redo with --from train; mistakes and "
            "analyses are kept"
        )
    if shutil.disk_usage(folder).free < 2**20 or "No space left" in message:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return failed_write(folder / "checkpoints", error) if isinstance(error, OSError) else error


def check(recipe: Recipe) -> None:
    """Look up the method, its data, and the modules that the adapter covers.

    A model for another package's engine is looked up when training begins.

    Raises:
        InputError: something is missing, or the model cannot be trained this way.
    """
    check_quantize(recipe)
    method = open_method(recipe)
    examples = examples_of(method, recipe, [])
    check_replayed(recipe)
    if checks_texts(method, recipe):
        judge, declines = recipe.train.judge or JudgeSpec(), method.has_teacher(recipe)
        check_judge_of_texts(judge, recipe, declines=declines)
    if recipe.model.engine not in OURS:
        return
    check_examples(recipe.model, examples)
    if recipe.start is not None:
        look_up_start(recipe, recipe.start)
    else:
        check_served(recipe)
        if left_out := look_up(recipe).left_out:
            _warn_once(left_out)
    method.check(recipe)


def checks_texts(method: Method, recipe: Recipe) -> bool:
    """Return whether the judge `train.judge` checks texts that the model writes."""
    return method.has_teacher(recipe) or recipe.train.helpful_from == "model"


@cache
def _warn_once(line: str) -> None:
    """Warn once for all the runs of a comparison."""
    log.warning(line)


def _more_outputs(recipe: Recipe) -> tuple[str, ...]:
    method = open_method(recipe)
    return (*method.outputs, *method.temporary)


def _more_keys(recipe: Recipe) -> tuple[str, ...]:
    method = open_method(recipe)
    checks = checks_texts(method, recipe)
    judge = keys_of_judge(recipe.train.judge or JudgeSpec()) if checks else ()
    teacher = (*READS, *READS_OF_REFUSALS) if method.has_teacher(recipe) else ()
    return () if recipe.evaluate else (*method.reads, *teacher, *judge)


STAGE = Stage(
    "train",
    outputs=(
        "corrections.jsonl",
        "answered.jsonl",
        "benign.jsonl",
        "left_out.jsonl",
        "training.jsonl",
        "loss.jsonl",
        "trained.json",
        "checkpoints",
        "snapshots",
        "adapter",
    ),
    keys=("train",),
    check=check,
    other_data=lambda old, new: leave_out_others(old, new, "train"),
    more_outputs=_more_outputs,
    more_keys=_more_keys,
)
