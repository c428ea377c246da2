"""Variants: several runs that differ in a few values, each in its own folder.

A comparison or a study is a list of variants. Each is an ordinary run folder, so it is resumed,
inspected and reported like one. Files that are the same for several variants (mistakes, analyses,
the model's own helpful answers, the untrained model's answers, and the verdicts on them) are
produced by the first and copied to the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from setbacks.errors import InputError, SetbacksError
from setbacks.files import own_folder, write_atomic
from setbacks.methods.corrections import TEACHER
from setbacks.notices import notice
from setbacks.pipeline import carry_out, check, open_run
from setbacks.recipe import Recipe
from setbacks.runs.arms import planned_arms
from setbacks.runs.environment import cores
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.redo import described
from setbacks.signals import Tie

# The recipe's keys that mistakes, and the untrained model's answers to suites and to
# `train.helpful`, depend on.
_WORDS = ("language", "words", "policy")
_MODEL = ("model", "adapter")
_TRAINING = ("seed", *_WORDS, *_MODEL, "decontaminate", "held_out", "respond.suites")
_MISTAKES = (*_TRAINING, "instructions", "induce")
_ANSWERS = ("seed", *_WORDS, *_MODEL, "evaluate", "respond")
_FLIPS = (*_MISTAKES, "analyze", "preflight", *(f"train.{o}" for o in (*TEACHER, "judge")))
_OWN_ANSWERS = (
    *_TRAINING,
    *("train.helpful", "train.helpful_from", "train.helpful_sampling", "train.judge"),
)


class Variant(NamedTuple):
    """One run among several: the name of its folder, and its recipe."""

    name: str
    recipe: Recipe


def variant(recipe: Recipe, name: str, changes: dict[str, Any]) -> Variant:
    """Make a variant of a recipe: `variant(recipe, "short", {"train.epochs": 1})`.

    Args:
        recipe: what the variant differs from.
        name: of the variant; in its recipe it follows the recipe's own.
        changes: values by dotted key.

    Raises:
        InputError: there is no such key, or the value does not fit.
    """
    # A run does not record what it is compared with, so a comparison can grow without changing it.
    data = recipe.model_dump(mode="json", exclude={"compare", "study", "loop", "jobs"})
    for dotted, value in changes.items():
        *path, key = dotted.split(".")
        section = data
        for part in path:  # a section that does not exist is refused below
            inner = section.get(part)
            section[part] = inner if isinstance(inner, dict) else {}
            section = section[part]
        section[key] = value
    data["name"] = f"{recipe.name}: {name}"
    return Variant(name, Recipe.parse(data, name))


def without_probe(recipe: Recipe) -> dict[str, Any]:
    """Return overrides for a run without mistakes, which cannot fit a probe that ranks drafts."""
    posterior = recipe.respond.posterior
    by_probe = posterior is not None and posterior.rank_by == "states"
    return {"respond.posterior": None} if by_probe else {}


def each(
    folder: Path,
    variants: Sequence[Variant],
    until: str = "report",
    show: Show | None = None,
    lenders: Sequence[tuple[Variant, Path]] = (),
    jobs: int = 1,
) -> Iterator[tuple[Variant, Path]]:
    """Run the variants; yield each with its folder once it is done, in order.

    If one fails, a notice says so, and the others still run, unless it is the first one, which
    makes what they share.

    Args:
        folder: of the comparison or study; the variants' folders are in its `arms/`.
        variants: in the order in which to run them.
        until: the last step of each run.
        show: called with progress.
        lenders: other runs of the folder from which to copy shared files.
        jobs: number of runs in parallel, after the first has produced the shared files.

    Raises:
        InputError: two variants have one name, or a recipe is wrong.
        SetbacksError: variants failed; progress is saved.
    """
    names = [v.name for v in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two variants are called {min(twice)}; give each its own name")
    done, failed = list(lenders), list[str]()

    def report_progress(name: str, number: int, what: str, at: int, total: int) -> None:
        if show:
            show(f"{name} ({number}/{len(variants)}) {what}", at, total)

    def opened(current: Variant) -> RunFolder:
        path = folder / "arms" / current.name
        if not (path / "recipe.yaml").exists():
            check(current.recipe)
        return open_run(path, current.recipe)

    def keep(current: Variant, error: SetbacksError) -> None:
        failed.append(f"{current.name}: {error}")
        notice(f"{current.name} failed, and the others go on: {error}")

    alone = len(variants) if jobs == 1 else 1
    for number, current in enumerate(variants[:alone], 1):
        try:
            with opened(current) as run:
                for earlier, place in done:
                    lend(earlier.recipe, place, current.recipe, run.path)
                told = partial(report_progress, current.name, number) if show else None
                carry_out(run, until, told)
        except SetbacksError as error:
            if number == 1:
                raise
            keep(current, error)
            continue
        done.append((current, run.path))
        yield current, run.path

    stop = Event()  # when the command ends, the running variants finish, and no other starts

    def finish_run(path: Path) -> None:
        if not stop.is_set():
            _apart(path, until, jobs, tie)

    with Tie() as tie, ThreadPoolExecutor(jobs) as pool:
        try:
            started = []
            for number, current in enumerate(variants[alone:], alone + 1):
                with opened(current) as run:
                    for earlier, place in done:
                        lend(earlier.recipe, place, current.recipe, run.path)
                started.append((number, current, run.path, pool.submit(finish_run, run.path)))
            for number, current, path, future in started:
                report_progress(current.name, number, until, 0, 1)
                try:
                    future.result()
                except SetbacksError as error:
                    keep(current, error)
                    continue
                report_progress(current.name, number, until, 1, 1)
                yield current, path
        except BaseException as error:
            if not isinstance(error, SetbacksError):  # such as Ctrl-C
                tie.cut()
            raise
        finally:
            stop.set()
    if failed:
        raise SetbacksError(
            f"{len(failed)} of {len(variants)} runs failed, and the others are done; the same "
            f"command resumes those that failed. {'; '.join(failed)}"
        )


def _apart(path: Path, until: str, jobs: int, tie: Tie) -> None:
    """Run one variant in another process, with its share of the cores.

    Raises:
        SetbacksError: it failed; the message is that of the process.
    """
    threads = max(1, cores() // jobs)
    ended = subprocess.run(
        [sys.executable, "-m", "setbacks", until, str(path), "--quiet"],
        env={"OMP_NUM_THREADS": str(threads), **os.environ, **tie.environment},
        stdin=tie.stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    if ended.returncode:
        *_, last = ended.stderr.strip().splitlines() or [_ended(ended.returncode)]
        raise SetbacksError(last.removeprefix("setbacks: "))


def _ended(code: int) -> str:
    """Say how a process ended that printed no error."""
    if code == -9:
        return (
            "its process was killed, perhaps because memory ran out; progress is saved: run the "
            "same command with fewer --jobs to resume"
        )
    return f"its process ended with exit code {code}; run the same command to resume"


def lend(giver: Recipe, source: Path, taker: Recipe, target: Path) -> None:
    """Copy files of a finished run that would be the same in another run and are missing there."""
    for pattern, keys in _shared(taker):
        if any(_value(giver, key) != _value(taker, key) for key in keys):
            continue
        for path in sorted(source.glob(pattern)):
            place = target / path.relative_to(source)
            if not place.exists():
                place.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomic(place, path.read_bytes())


def _value(recipe: Recipe, key: str) -> Any:
    """Return the value at a dotted key; None where a method does not have this option."""
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def _shared(taker: Recipe) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the files that a run can copy from another, and the recipe keys they depend on."""
    yield "mistakes.jsonl", _MISTAKES
    yield "analyses.jsonl", (*_MISTAKES, "analyze")
    yield "preflight.jsonl", (*_MISTAKES, "analyze")
    yield "flips.jsonl", _FLIPS
    yield "benign.jsonl", _OWN_ANSWERS
    for arm in planned_arms(taker):
        # A probe that ranks drafts is also fitted on what a method writes for its training.
        by_probe = arm.way == "posterior" and bool(without_probe(taker))
        if arm.is_untrained and not by_probe:
            yield f"responses/{arm.name}.jsonl", _ANSWERS
            yield f"verdicts/{arm.name}.*.jsonl", (*_ANSWERS, "judges")
            yield f"thoughts/{arm.name}.*.jsonl", (*_ANSWERS, "judges")


def prepare_folder(folder: Path, recipe: Recipe) -> Recipe:
    """Make the folder of a comparison or a study, private to its owner, with its recipe.

    A later command may compare more, but must not change what the runs share.

    Returns:
        The recipe; as an earlier version began it, if the folder is older.

    Raises:
        InputError: the folder is something else, or holds the work of another recipe.
    """
    path = folder / "recipe.yaml"
    if own_folder(folder, path.name, "a comparison or study"):
        same = {key: getattr(recipe, key) for key in ("compare", "study", "loop", "jobs")}
        recipe = recipe.resuming(path)
        held = Recipe.load(path, of_run=True).model_copy(update=same)
        if held != recipe:
            changes = described(held.model_dump(mode="json"), recipe.model_dump(mode="json"))
            raise InputError(
                f"{folder}: holds the work of another recipe ({changes}); choose "
                "another folder with --out"
            )
    write_atomic(path, recipe.to_yaml().encode())
    return recipe
