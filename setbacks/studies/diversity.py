"""Diversity: does more varied guidance of induction draw more varied mistakes, and does it help?

The model gets the same instructions with hints of tone, as personas, and by category of harm. The
study measures the mistakes before training (how many, how far apart, over which categories), and
the method's result after it (the paper's limitation, arXiv 2310.10477: it depends on how diverse
the induced mistakes are).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from setbacks.errors import InputError
from setbacks.measure.formatting import SCORE, listed, number, with_interval
from setbacks.measure.statistics import Estimate
from setbacks.methods import open_method
from setbacks.recipe import Recipe, Section
from setbacks.recipe.parts import Seeds, unique
from setbacks.records import Mistake
from setbacks.report.page import Findings, Table
from setbacks.runs.folder import Run
from setbacks.runs.progress import Show
from setbacks.studies import Study, against_first, at_least
from setbacks.studies.states import hidden_states
from setbacks.studies.variants import Variant, each, seeded

FEWEST = 10  # mistakes of each guidance: below, a spread says nothing

Guidance = Literal["hints", "persona", "category"]


class Drawn(NamedTuple):
    """The result of one guidance: the number of attempts, and the mistakes."""

    guidance: str
    attempts: int
    mistakes: list[Mistake]


class Diversity(Study):
    """Measure whether more varied guidance draws more varied mistakes, and whether that helps."""

    title = "diversity"
    question = "Does more varied guidance draw more varied mistakes, and does that help?"
    replaces = ("induce.guidance",)

    class Options(Section):
        """Options of `setbacks study diversity`."""

        guidances: Annotated[list[Guidance], unique()] = Field(
            ["hints", "persona", "category"],
            description="Kinds of guidance to compare, each with the first.",
            min_length=1,
        )
        seeds: Seeds = Field(1, description="Trainings of each variant, with different seeds.")

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe, and that it induces mistakes."""
        super().check(recipe, options)
        if recipe.induce.source == "existing":
            raise InputError(
                'induce.source is "existing": this study needs mistakes that are induced'
            )
        if not open_method(recipe).uses_mistakes:
            raise InputError(
                f"train.method: {recipe.train.method} learns from no mistakes, which this study "
                "varies; use mistake_distillation, or another method that does"
            )

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Induce mistakes, measure, train and measure again with each guidance.

        Raises:
            InputError: there are too few mistakes.
        """
        changes: dict[str, dict[str, Any]] = {
            guidance: {"induce.guidance": guidance} for guidance in options.guidances
        }
        variants = seeded(recipe, changes, options.seeds)
        # The mistakes do not depend on the training's seed, so one variant per guidance is enough.
        one_each = variants[:: options.seeds]
        drawn = _drawn(each(folder, one_each, "induce", show, jobs=recipe.jobs))
        spread = _spread(recipe, drawn, show)
        found = against_first(self, recipe, folder, variants, show, "What it did")
        return replace(
            found,
            answer=[_widest(drawn, spread), *found.answer],
            tables=[_table(drawn, spread), *found.tables],
            method=[
                "The distance is 1 - the cosine of two mistakes' mean hidden states in the "
                "untrained model (the response alone, each dimension standardized over all "
                "guidances), averaged over all pairs; its interval is a jackknife over mistakes. "
                "About 1 means as far apart as the mistakes of all guidances together; distances "
                "compare guidances of one page, and mean nothing beside those of another.",
                "Categories are those of the instructions, which every guidance shares: their "
                "entropy says over how many a guidance got mistakes at all, not of which kind of "
                "harm each response is.",
            ],
            data={
                "results": found.data,
                "drawn": [
                    {
                        "guidance": d.guidance,
                        "attempts": d.attempts,
                        "mistakes": len(d.mistakes),
                        "distance": s,
                        "category_entropy_bits": entropy([m.category for m in d.mistakes]),
                    }
                    for d, s in zip(drawn, spread, strict=True)
                ],
            },
        )


def _drawn(done: Iterable[tuple[Variant, Path]]) -> list[Drawn]:
    drawn = []
    for current, path in done:
        run = Run(path)
        rows = [
            m
            for m in run.records("mistakes.jsonl", Mistake)
            if m.hint is not None and m.kind == "harmful"
        ]
        guidance = current.recipe.induce.guidance
        mistakes = [m for m in rows if m.outcome == "mistake"]
        at_least(len(mistakes), FEWEST, f"mistakes induced by guidance {guidance}")
        drawn.append(Drawn(guidance, len(rows), mistakes))
    return drawn


def _spread(recipe: Recipe, drawn: Sequence[Drawn], show: Show | None) -> list[Estimate]:
    """The mean distance of each guidance's mistakes."""
    texts = [mistake.response for d in drawn for mistake in d.mistakes]
    states = hidden_states(recipe, texts, show)
    states = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-6)
    distances, start = [], 0
    for d in drawn:
        distances.append(dispersion(states[start : start + len(d.mistakes)]))
        start += len(d.mistakes)
    return distances


def dispersion(states: Any) -> Estimate:
    """Return the mean pairwise cosine distance of vectors, in [0, 2], with a jackknife interval.

    Args:
        states: numbers of shape [vectors, dimensions]; at least 3 vectors.

    Source: the mean is a U-statistic; Arvesen (1969), Annals of Mathematical Statistics 40(6), on
    the jackknife of it.
    """
    import numpy as np

    x = np.asarray(states, float)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    distance = 1 - x @ x.T
    np.fill_diagonal(distance, 0)
    n, of_each = len(x), distance.sum(axis=1)
    value = of_each.sum() / (n * (n - 1))
    without = (of_each.sum() - 2 * of_each) / ((n - 1) * (n - 2))
    error = 1.96 * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return Estimate(float(value), float(value - error), float(value + error), n)


def entropy(categories: Sequence[str | None]) -> float | None:
    """Return the Shannon entropy of categories in bits; None where one is not given."""
    from math import log2

    if not categories or None in categories:
        return None
    shares = [count / len(categories) for count in Counter(categories).values()]
    return -sum(share * log2(share) for share in shares) + 0.0


def _table(drawn: Sequence[Drawn], spread: Sequence[Estimate]) -> Table:
    rows = []
    for d, s in zip(drawn, spread, strict=True):
        bits = entropy([m.category for m in d.mistakes])
        rows.append(
            [
                d.guidance,
                str(d.attempts),
                str(len(d.mistakes)),
                with_interval(s, SCORE),
                "no categories given" if bits is None else number(bits),
                str(len({m.category for m in d.mistakes} - {None})),
            ]
        )
    return Table(
        "What each guidance drew",
        ["Guidance", "attempts", "mistakes", "mean distance", "entropy, bits", "categories"],
        rows,
        "95 % intervals in brackets.",
    )


def _widest(drawn: Sequence[Drawn], spread: Sequence[Estimate]) -> str:
    """Say which mistakes are furthest apart, and which intervals overlap with theirs."""
    by = {d.guidance: s for d, s in zip(drawn, spread, strict=True)}
    if len(by) == 1:
        distance = with_interval(spread[0], SCORE)
        return f"The mistakes of {drawn[0].guidance} have a mean distance of {distance}."
    first = max(by, key=lambda guidance: by[guidance].value or 0.0)
    level = [g for g in by if g != first and (by[g].high or 0.0) >= (by[first].low or 0.0)]
    distance = with_interval(by[first], SCORE)
    lead = f"The mistakes of {first} have the largest mean distance ({distance})"
    return lead + (f"; its interval overlaps with that of {listed(level)}." if level else ".")
