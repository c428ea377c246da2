"""What several runs have in common: files that would be the same are copied, and made once.

So do the runs of a comparison, and so does a run that is redone from a stage of training: neither
changes what the untrained model answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from setbacks.files import write_atomic
from setbacks.methods import open_method
from setbacks.methods.corrections import CORRECTING, TEACHER
from setbacks.recipe import Recipe
from setbacks.runs.arms import planned_arms
from setbacks.runs.folder import RunFolder
from setbacks.runs.redo import STAGE_NAMES, is_before

Files = tuple[str, tuple[str, ...]]  # a pattern, and the recipe's keys that they depend on

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


def lend(giver: Recipe, source: Path, taker: Recipe, target: Path) -> None:
    """Copy files of a finished run that would be the same in another run and are missing there."""
    _copy(giver, source, taker, target, [*_of_training(taker), *_of_the_untrained(taker)])


def keep_untrained(run: RunFolder) -> None:
    """Copy the untrained model's answers back that a redo has set aside, and the verdicts on them.

    They stay if the run is redone from a stage before `respond`, which changes neither. A run that
    is redone from its beginning keeps nothing.

    Args:
        run: the open run folder.
    """
    if run.redone is None:
        return
    first, place = run.redone
    if first != STAGE_NAMES[0] and is_before(first, "introspect"):
        before = Recipe.load(place / "recipe.yaml", of_run=True)
        _copy(before, place, run.recipe, run.path, _of_the_untrained(run.recipe))


def _copy(giver: Recipe, source: Path, taker: Recipe, target: Path, files: Iterable[Files]) -> None:
    for pattern, keys in files:
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


def _of_training(taker: Recipe) -> Iterator[Files]:
    """Yield what a run makes to learn from."""
    yield "mistakes.jsonl", _MISTAKES
    yield "analyses.jsonl", (*_MISTAKES, "analyze")
    yield "preflight.jsonl", (*_MISTAKES, "analyze")
    yield "flips.jsonl", _FLIPS
    if open_method(taker).has_teacher(taker):
        yield "corrections.jsonl", _CORRECTIONS
        yield "answered.jsonl", (*_CORRECTIONS, "train.helpful_sampling")
    yield "benign.jsonl", _OWN_ANSWERS


def _of_the_untrained(taker: Recipe) -> Iterator[Files]:
    """Yield the untrained model's answers, and the verdicts on them."""
    for arm in planned_arms(taker):
        # A probe that ranks drafts is also fitted on what a method writes for its training.
        by_probe = arm.way == "posterior" and ranks_by_states(taker)
        if arm.is_untrained and not by_probe:
            yield f"responses/{arm.name}.jsonl", _ANSWERS
            yield f"verdicts/{arm.name}.*.jsonl", (*_ANSWERS, "judges")
            yield f"thoughts/{arm.name}.*.jsonl", (*_ANSWERS, "judges")


def ranks_by_states(recipe: Recipe) -> bool:
    """Return whether a probe on the model's states ranks drafts, which is fitted on mistakes."""
    posterior = recipe.respond.posterior
    return posterior is not None and posterior.rank_by == "states"


def without_probe(recipe: Recipe) -> dict[str, Any]:
    """Return overrides for a run without mistakes, which cannot fit a probe that ranks drafts."""
    return {"respond.posterior": None} if ranks_by_states(recipe) else {}
