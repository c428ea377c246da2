"""Decontamination: train and test never share a prompt.

The recipe of a session carries the suites' prompts with each source of training data. Whatever
reads such a source, a stage or a method, gets no row whose prompt is, or nearly is, a prompt of a
suite (`setbacks.data.near`). So nothing is generated for such a row, and it is not learned. Nor are
examples of earlier runs, which may have been trained with other suites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from pydantic import Field

from setbacks.data.near import NearPrompts
from setbacks.data.source import Row, Source
from setbacks.data.sources import load
from setbacks.errors import InputError
from setbacks.measure.formatting import listed
from setbacks.messages import Prompt
from setbacks.notices import notice
from setbacks.recipe import Recipe, Section, parts_of
from setbacks.records import Record, digest

T = TypeVar("T")
TRAINING = ("instructions", "induce", "analyze", "train")  # sections with training data


class LeftOut(Record):
    """A training prompt that was left out, since a suite has it, or nearly."""

    source: str = Field(
        description="Source of the prompt, as in the recipe; the folder of a run in `train.replay`."
    )
    instruction: Prompt = Field(description="The prompt.")
    suite: str = Field(description="Name of the suite.")
    like: Prompt = Field(description="The prompt of the suite that it is like.")
    exact: bool = Field(
        description="True if they differ only in case, spaces, Unicode form or final punctuation, "
        "or if one is a turn of the other."
    )
    share: float = Field(
        description="Share of word 3-grams in common; 1 if one is wholly inside the other."
    )


class Decontamination:
    """Leaves training rows out whose prompts are in a suite.

    Args:
        recipe: names the suites and the threshold; null for no threshold leaves nothing out, nor
            does an evaluation, which trains nothing.

    Attributes:
        recipe: the same, with training sources that leave such rows out.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._held_out = [
            *((suite.name, source) for suite in recipe.respond.suites for source in suite.sources),
            *(("held_out", source) for source in recipe.held_out),
        ]
        self._given, self._threshold = recipe, recipe.decontaminate
        self._found: dict[str, list[LeftOut | None]] = {}  # by source: what each row is like
        self.recipe = recipe
        if self._threshold is not None and not recipe.evaluate:
            training = {key: self._marked(getattr(recipe, key)) for key in TRAINING}
            self.recipe = recipe.model_copy(update=training)

    def leaves_out(self, sections: Sequence[str]) -> set[str]:
        """Return the ids of all rows that are left out of some sections of the recipe.

        Args:
            sections: keys of the recipe that hold training data, as they were given.
        """
        if self._threshold is None or self._given.evaluate:
            return set()
        parts = [getattr(self._given, key) for key in sections]
        rows = ((source, row) for source in parts_of(parts, Source) for row in load(source))
        return {like.id for source, row in rows if (like := self._like(source.source, row.text))}

    def holds_out(self, prompt: Prompt) -> bool:
        """Return whether a prompt is held out, or is nearly one that is."""
        return self._threshold is not None and self._tested[0].find(prompt) is not None

    @property
    def left_out(self) -> list[LeftOut]:
        """The rows left out of every source that was read so far, in an order of their own."""
        rows = {row.id: row for found in self._found.values() for row in found if row}
        return sorted(rows.values(), key=lambda row: (row.source, row.id))

    def _marked(self, value: Any) -> Any:
        """Return a part of a recipe in which each source leaves rows out."""
        if isinstance(value, Source):
            return value.filtered(self._kept)
        if isinstance(value, Section):
            return value.model_copy(update={key: self._marked(inner) for key, inner in value})
        return [self._marked(item) for item in value] if isinstance(value, list) else value

    def has_learnable(self, source: Source) -> bool:
        """Return whether a source has rows that may be learned; give a notice if it has none."""
        rows = load(source)
        return bool(self.learnable(source.source, rows, [row.text for row in rows], source))

    def learnable(
        self, name: str, rows: Sequence[T], prompts: Sequence[Prompt], source: Source | None = None
    ) -> list[T]:
        """Return the rows that may be learned; give a notice of the others.

        Args:
            name: where the rows are from.
            rows: rows of training data, or examples.
            prompts: the prompt of each.
            source: how the rows were read, if one file can be read in several ways.
        """
        if self._threshold is None:
            return list(rows)
        found = self._matches(name, prompts, source)
        lost = [like for like in found if like is not None]
        if lost:
            exact = sum(like.exact for like in lost)
            notice(
                f"{name}: left out {len(lost)} of {len(rows)} rows whose prompts are also in a "
                f"suite ({exact} the same, {len(lost) - exact} nearly the same): {_suites(lost)}"
            )
        return [row for row, like in zip(rows, found, strict=True) if like is None]

    def _kept(self, source: Source, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a source that may be learned.

        Raises:
            InputError: none may.
        """
        prompts = [row.text for row in rows]
        found = self._matches(source.source, prompts, source)
        lost = [like for like in found if like is not None]
        if rows and len(lost) == len(rows):
            raise InputError(
                f"{source.source}: each of its {len(rows)} prompts is also in a suite "
                f"({_suites(lost)}); use other data, or set decontaminate=null to train on test "
                "prompts"
            )
        return self.learnable(source.source, rows, prompts, source)

    def _matches(
        self, name: str, prompts: Sequence[Prompt], source: Source | None
    ) -> list[LeftOut | None]:
        """Return the held-out prompt that each prompt is like."""
        key = name if source is None else source.model_dump_json()
        if key not in self._found:
            self._found[key] = [self._like(name, prompt) for prompt in prompts]
        return self._found[key]

    def _like(self, name: str, prompt: Prompt) -> LeftOut | None:
        tested, places = self._tested
        match = tested.find(prompt)
        if match is None:
            return None
        suite, like = places[match.number]
        return LeftOut(
            id=digest("left out", name, prompt),
            source=name,
            instruction=prompt,
            suite=suite,
            like=like,
            exact=match.exact,
            share=round(match.share, 6),
        )

    @cached_property
    def _tested(self) -> tuple[NearPrompts, list[tuple[str, Prompt]]]:
        """Every prompt that is held out, to find again, and the suite of each."""
        assert self._threshold is not None
        places = [(name, row.text) for name, source in self._held_out for row in load(source)]
        tested = NearPrompts(self._threshold)
        for _, prompt in places:
            tested.add(prompt)
        return tested, places


def _suites(rows: Iterable[LeftOut]) -> str:
    """Return the suites that rows are like, in words."""
    return listed(list(dict.fromkeys(row.suite for row in rows)))


def leave_out_others(old: Recipe, new: Recipe, *sections: str) -> bool:
    """Whether the suites of two recipes keep different rows out of sections of training data.

    Args:
        old: the recipe of a run.
        new: the recipe to redo stages with.
        sections: keys of the recipe that hold training data.
    """
    if old.respond.suites == new.respond.suites:
        return False
    return Decontamination(old).leaves_out(sections) != Decontamination(new).leaves_out(sections)


def counted(rows: Iterable[LeftOut]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the number of exact and near matches, by source and suite."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        of_suite = counts.setdefault(row.source, {}).setdefault(row.suite, {"exact": 0, "near": 0})
        of_suite["exact" if row.exact else "near"] += 1
    return counts
