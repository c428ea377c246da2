"""Variants: several runs that differ in a few values, each in its own folder.

A comparison or a study is a list of variants. Each is an ordinary run folder, so it is resumed,
inspected and reported like one. Files that are the same for several variants (mistakes, analyses,
corrections, the model's own helpful answers, the untrained model's answers, and the verdicts on
them) are produced by the first and copied to the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from setbacks.errors import InputError, SetbacksError
from setbacks.files import own_folder, write_atomic
from setbacks.methods import open_method
from setbacks.methods.corrections import CORRECTING, TEACHER
from setbacks.notices import notice
from setbacks.pipeline import carry_out, check, open_run
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.runs.arms import untrained_arms
from setbacks.runs.environment import cores
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.redo import described
from setbacks.runs.weights import lend_weights
from setbacks.signals import Tie

# The recipe's keys that mistakes, and the untrained model's answers to suites and to
# `train.helpful`, depend on.
_WORDS = ("language", "words", "policy")
_MODEL = ("model", "adapter")
_TRAINING = ("seed", *_WORDS, *_MODEL, "decontaminate", "held_out", "respond.suites")
_MISTAKES = (*_TRAINING, "instructions", "induce")
_ANSWERS = ("seed", *_WORDS, *_MODEL, "evaluate", "respond")
_FLIPS = (*_MISTAKES, "analyze", "preflight", *(f"train.{o}" for o in (*TEACHER, "judge")))
_CORRECTED = ("judge", "analyses", "categories", "most_analyses", *sorted(CORRECTING))
_CORRECTIONS = (*_MISTAKES, "analyze", *(f"train.{o}" for o in _CORRECTED))
_OWN_ANSWERS = (
    *_TRAINING,
    *("train.helpful", "train.helpful_from", "train.helpful_sampling", "train.judge"),
)

_FOR_TRAINING = {"corrections.jsonl", "answered.jsonl", "benign.jsonl"}  # written in its stage


class Variant(NamedTuple):
    """One run among several: the name of its folder, and its recipe."""

    name: str
    recipe: Recipe

    @property
    def arm(self) -> str:
        """Its name without the seed: "short" of "short.0"."""
        return self.name.rpartition(".")[0]


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


def seeded(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]], seeds: int) -> list[Variant]:
    """Make several variants of a recipe, each with several seeds of training, as NAME.SEED.

    Args:
        recipe: what the variants differ from; its seed is the first one.
        changes: values by dotted key, for each name.
        seeds: the number of trainings of each.

    Raises:
        InputError: as `variant`.
    """
    return [
        variant(recipe, f"{name}.{seed}", {"train.seed": recipe.seed + seed, **values})
        for name, values in changes.items()
        for seed in range(seeds)
    ]


# Keys of `train` that choose the examples, and change nothing else in the training.
_CHOOSING = {"analyses", "context", "mix", "most_analyses", "question", "safe", "verdict"}


def same_model(done: Sequence[tuple[Variant, Path]]) -> dict[str, str]:
    """Return the variants that learned the same as an earlier one, each with that one.

    Several variants are one model if what differs between them changes no example, such as two
    sizes above the number of examples that there are.

    Args:
        done: variants named NAME.SEED, with their folders.

    Returns:
        Names without seeds.
    """
    learned: dict[str, list[Any]] = {}
    for current, path in done:
        examples = Run(path).records("training.jsonl", Example)
        train = current.recipe.train.model_dump(mode="json", exclude=_CHOOSING)
        learned.setdefault(current.arm, []).append(([(e.id, e.teacher) for e in examples], train))
    names = list(learned)
    first = {name: next(one for one in names if learned[one] == learned[name]) for name in names}
    return {name: one for name, one in first.items() if name != one}


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

    All are checked before the first one runs. If one fails, a notice says so, and the others still
    run, unless it is the first one, which makes what they share. Finished ones lend their files to
    those that an option added, wherever these are in the order.

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
    _check_new(folder, variants)
    places = {one.name: folder / "arms" / one.name for one in variants}
    finished = {name: at for name, at in places.items() if (at / "metrics.json").exists()}
    done = [*lenders, *((Variant(name, Run(at).recipe), at) for name, at in finished.items())]
    failed: list[str] = []

    def report_progress(name: str, number: int, what: str, at: int, total: int) -> None:
        if show:
            show(f"{name} ({number}/{len(variants)}) {what}", at, total)

    @contextmanager
    def opened(current: Variant) -> Iterator[RunFolder]:
        with open_run(places[current.name], current.recipe) as run:
            if current.name not in finished:
                for earlier, place in done:
                    lend(earlier.recipe, place, current.recipe, run.path)
            yield run

    def keep(current: Variant, error: SetbacksError) -> None:
        failed.append(f"{current.name}: {error}")
        notice(f"{current.name} failed, and the others go on: {error}")

    alone = len(variants) if jobs == 1 else 1
    for number, current in enumerate(variants[:alone], 1):
        try:
            with opened(current) as run:
                told = partial(report_progress, current.name, number) if show else None
                carry_out(run, until, told)
        except SetbacksError as error:
            if number == 1:
                raise
            keep(current, error)
            continue
        done.append((current, run.path))
        yield current, run.path

    started = []
    for number, current in enumerate(variants[alone:], alone + 1):
        with opened(current) as run:
            started.append((number, current, run.path))
    with closing(_side_by_side([path for *_, path in started], until, jobs)) as results:
        for number, current, path in started:
            report_progress(current.name, number, until, 0, 1)
            if failure := next(results):
                keep(current, failure)
                continue
            report_progress(current.name, number, until, 1, 1)
            yield current, path
    if failed:
        raise SetbacksError(
            f"{len(failed)} of {len(variants)} runs failed, and the others are done; the same "
            f"command resumes those that failed. {'; '.join(failed)}"
        )


def _check_new(folder: Path, variants: Sequence[Variant]) -> None:
    """Check the variants that have no run yet.

    Raises:
        InputError: two have one name, or a recipe is wrong.
    """
    names = [one.name for one in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two variants are called {min(twice)}; give each its own name")
    for one in variants:
        if not (folder / "arms" / one.name / "recipe.yaml").exists():
            check(one.recipe)


def _side_by_side(
    paths: Sequence[Path], until: str, jobs: int
) -> Generator[SetbacksError | None, None, None]:
    """Run what is missing in several run folders, each in its own process.

    Yields the error of each, in order; None if it is done. When this is closed or interrupted, the
    processes end.

    Args:
        paths: of the run folders.
        until: the last step of each run.
        jobs: number of processes at a time.
    """
    stop = Event()  # set before the pool waits for what is running, so that no other run starts

    def finish_run(path: Path) -> None:
        if not stop.is_set():
            _apart(path, until, jobs, tie)

    with Tie() as tie, ThreadPoolExecutor(jobs) as pool:
        try:
            for future in [pool.submit(finish_run, path) for path in paths]:
                try:
                    future.result()
                except SetbacksError as error:
                    yield error
                else:
                    yield None
        except BaseException:  # such as Ctrl-C
            tie.cut()
            raise
        finally:
            stop.set()


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
            name = path.relative_to(source).as_posix()
            if (place := target / name).exists():
                continue
            place.parent.mkdir(mode=0o700, exist_ok=True)
            if lend_weights(source, target, "training.jsonl" if name in _FOR_TRAINING else name):
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
    if open_method(taker).has_teacher(taker):
        yield "corrections.jsonl", _CORRECTIONS
        yield "answered.jsonl", (*_CORRECTIONS, "train.helpful_sampling")
    yield "benign.jsonl", _OWN_ANSWERS
    for arm in untrained_arms(taker):
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
