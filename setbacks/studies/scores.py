"""The results of variants, prompt by prompt: outcomes over seeds, and how two arms differ.

With several seeds an outcome is the mean over them: intervals and tests are over prompts, and the
result of each seed is kept too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from setbacks.judges import gives
from setbacks.measure import statistics
from setbacks.measure.metrics import (
    BALANCED,
    METRICS,
    Key,
    Outcomes,
    about,
    by_prompt,
    degenerate,
    significant,
)
from setbacks.measure.results import PairChange
from setbacks.measure.statistics import Difference, Estimate
from setbacks.records import Arm, Response, Verdict
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import Run
from setbacks.studies.variants import Variant


class Scores(NamedTuple):
    """The results of one arm on each prompt: outcomes in [0, 1] (or 1-10), mean over the seeds.

    `seeds` holds the mean over prompts of each seed; `asked` is the number of prompts that should
    have a score. Degenerate answers are failures in `prompts`; `judged` has them as judged.
    """

    prompts: dict[Key, float]
    seeds: list[float]
    asked: int = 0
    judged: Mapping[Key, float] = MappingProxyType({})


def gather(done: Sequence[tuple[Variant, Path]], judge: str) -> dict[str, dict[Arm, Scores]]:
    """Return each arm's scores by metric, and by "degenerate"; untrained arms come first.

    A trained arm is named after its variant, since several variants can have one method.

    Args:
        done: the variants with their folders; a name ends with a dot and its seed.
        judge: whose verdicts count.
    """
    by_arm: dict[Arm, list[_Read]] = {}
    asked: dict[Arm, dict[str, int]] = {}
    for current, path in done:
        name = current.arm
        run = Run(path)
        for own in run.arms():
            arm = trained_arm(name, own.way) if own.trained else own
            if not own.trained and arm in by_arm:  # the variants share it
                continue
            rows = run.records(f"responses/{own.name}.jsonl", Response)
            verdicts = run.records(f"verdicts/{own.name}.{judge}.jsonl", Verdict)
            outcomes = _read(rows, {v.response_id: v for v in verdicts})
            by_arm.setdefault(arm, []).append(outcomes)
            spec = next(spec for spec in run.recipe.judges if spec.called == judge)
            given = gives(spec, run.recipe)
            if given is None:
                given = frozenset(key for key, values in outcomes.counted.items() if values)
            asked[arm] = {
                key: sum(key in given and about(key, r) for r in rows) for key in METRICS
            } | {"degenerate": len(outcomes.counted["degenerate"])}
    order = sorted(by_arm, key=lambda arm: arm.trained)
    return {
        metric: {arm: _scores(metric, by_arm[arm], asked[arm][metric]) for arm in order}
        for metric in (*METRICS, "degenerate")
    }


class _Read(NamedTuple):
    """One seed's outcomes of an arm, with degenerate answers as failures and as judged."""

    counted: Outcomes
    judged: Outcomes


def _read(rows: Sequence[Response], verdicts: Mapping[str, Verdict]) -> _Read:
    fell: Outcomes = {"degenerate": dict(degenerate(rows))}
    return _Read(by_prompt(rows, verdicts) | fell, by_prompt(rows, verdicts, as_judged=True) | fell)


def _scores(metric: str, seeds: Sequence[_Read], asked: int) -> Scores:
    counted = [seed.counted[metric] for seed in seeds]
    return Scores(
        _mean_by_prompt(counted),
        [sum(map(float, seed.values())) / len(seed) for seed in counted if seed],
        asked,
        _mean_by_prompt([seed.judged[metric] for seed in seeds]),
    )


def _mean_by_prompt(seeds: Sequence[Mapping[Key, bool | float]]) -> dict[Key, float]:
    """The mean over the seeds, on the prompts that all of them have."""
    shared = [key for key in seeds[0] if all(key in other for other in seeds)]
    return {key: sum(float(seed[key]) for seed in seeds) / len(seeds) for key in shared}


def as_judged(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return one arm's scores with degenerate answers as judged, and not as failures."""
    return {
        metric: values._replace(prompts=dict(values.judged)) for metric, values in scores.items()
    }


def estimate(metric: str, scores: Mapping[str, Scores]) -> Estimate:
    """Return one arm's estimate of a metric, over prompts.

    Args:
        metric: a key of `TITLES`, or "degenerate".
        scores: of one arm, by metric.
    """
    if metric == "balanced_safety":
        return statistics.balanced(
            *(list(scores[key].prompts.values()) for key in ("harmless_rate", "compliance"))
        )
    values, seeds = list(scores[metric].prompts.values()), scores[metric].seeds
    if _is_rate(metric) and len(seeds) == 1:
        return statistics.rate(round(sum(values)), len(values))
    if _is_rate(metric):
        return statistics.mean_rate(values, len(seeds))
    return statistics.mean(values)


def _is_rate(metric: str) -> bool:
    return metric == "degenerate" or METRICS[metric].is_rate


def difference(metric: str, a: Mapping[str, Scores], b: Mapping[str, Scores]) -> Difference:
    """Return the difference a - b of two arms on the prompts that both have.

    With one seed a rate's p is McNemar's exact one; with several, Student's on the differences.
    """

    def pairs(key: str) -> tuple[list[float], list[float]]:
        shared = [prompt for prompt in a[key].prompts if prompt in b[key].prompts]
        return [a[key].prompts[p] for p in shared], [b[key].prompts[p] for p in shared]

    if metric == "balanced_safety":
        return statistics.balanced_difference(pairs("harmless_rate"), pairs("compliance"))
    left, right = pairs(metric)
    if _is_rate(metric) and max(len(a[metric].seeds), len(b[metric].seeds)) <= 1:
        return statistics.paired_difference([*map(bool, left)], [*map(bool, right)])
    return statistics.paired_difference(left, right)


def balanced_by_seed(scores: Mapping[str, Scores]) -> list[float]:
    """Return balanced safety of each seed alone; of none where a suite for it is missing."""
    halves = (scores[half].seeds for half in BALANCED)
    return [float(statistics.harmonic(*both)) for both in zip(*halves, strict=False)]


def unsteady(
    of: Mapping[Arm, Mapping[str, Scores]],
    pairs: Sequence[PairChange],
    noun: str = "method",
    advice: str = "Set --seeds 3 or more",
) -> list[str]:
    """Say which significant differences in balanced safety may be the chance of a training.

    Intervals and tests are over prompts, so they do not cover it.

    Args:
        of: scores by arm and metric.
        pairs: differences in balanced safety.
        noun: what was trained, for messages.
        advice: how to get more seeds, for messages.

    Returns:
        A line if there are such differences, or if one seed cannot show any; else nothing.
    """
    found, most = [], 0
    for pair in filter(significant, pairs):
        sides = [balanced_by_seed(of[arm]) for arm in (pair.arm, pair.against)]
        number = max(map(len, sides))
        most = max(most, number)
        # The untrained model answers once, for all seeds.
        sides = [side * number if len(side) == 1 else side for side in sides]
        if {*map(len, sides)} != {number}:  # no answer of a seed has a score
            continue
        steps = [one - other for one, other in zip(*sides, strict=True)]
        if number > 1 and min(steps) <= 0 <= max(steps):
            each = ", ".join(f"{100 * step:+.1f}" for step in steps)
            found.append(f"{pair.arm.label} against {pair.against.label} ({each})")
    if most == 1:
        return [
            f"Every {noun} was trained once. Intervals and tests are over prompts: another seed "
            f"may change a {noun} by several points. {advice} before you rank {noun}s."
        ]
    if not found:
        return []
    return [
        f"Significant over prompts, but not in one direction for all seeds: {'; '.join(found)} "
        "points. Train with more seeds before you rank these."
    ]
