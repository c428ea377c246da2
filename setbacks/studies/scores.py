"""What variants reached, prompt by prompt: outcomes over seeds, and how two arms differ.

With several seeds an outcome is the mean over them: intervals and tests are over prompts, and what
each seed reached is kept beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.judges import gives
from setbacks.measure import statistics
from setbacks.measure.metrics import METRICS, about, by_prompt
from setbacks.measure.statistics import Difference, Estimate
from setbacks.methods import open_method
from setbacks.records import Response, Verdict
from setbacks.runs.folder import Run
from setbacks.studies.variants import Variant


class Scores(NamedTuple):
    """What one arm reached on each prompt: outcomes in [0, 1] (or 1-10), mean over the seeds.

    `seeds` holds the mean over prompts of each seed; `asked` is the number of prompts that should
    have a score.
    """

    prompts: dict[tuple[str, str], float]
    seeds: list[float]
    asked: int = 0


def gather(done: Sequence[tuple[Variant, Path]], judge: str) -> dict[str, dict[str, Scores]]:
    """Return, for each metric, what each arm reached: untrained arms first.

    Args:
        done: the variants with their folders; a name ends with a dot and its seed.
        judge: whose verdicts count.
    """
    by_arm: dict[str, list[dict[str, dict[tuple[str, str], Any]]]] = {}
    asked: dict[str, dict[str, int]] = {}
    for made, path in done:
        name = made.name.rpartition(".")[0]
        run = Run(path)
        for arm in run.arms():
            untrained = arm.startswith("vanilla")
            called = arm if untrained else arm.replace(open_method(run.recipe).name, name, 1)
            if untrained and called in by_arm:
                continue
            rows = run.records(f"responses/{arm}.jsonl", Response)
            verdicts = run.records(f"verdicts/{arm}.{judge}.jsonl", Verdict)
            said = by_prompt(rows, {v.response_id: v for v in verdicts})
            by_arm.setdefault(called, []).append(said)
            spec = next(spec for spec in run.recipe.judges if spec.called == judge)
            given = gives(spec, run.recipe)
            if given is None:
                given = frozenset(key for key, outcomes in said.items() if outcomes)
            asked[called] = {
                key: sum(key in given and about(key, r) for r in rows) for key in METRICS
            }
    order = sorted(by_arm, key=lambda arm: not arm.startswith("vanilla"))
    return {
        metric: {
            arm: _scores([said[metric] for said in by_arm[arm]], asked[arm][metric])
            for arm in order
        }
        for metric in METRICS
    }


def _scores(seeds: Sequence[Mapping[tuple[str, str], Any]], asked: int) -> Scores:
    prompts = [key for key in seeds[0] if all(key in other for other in seeds)]
    return Scores(
        {key: sum(float(seed[key]) for seed in seeds) / len(seeds) for key in prompts},
        [sum(map(float, seed.values())) / len(seed) for seed in seeds if seed],
        asked,
    )


def estimate(metric: str, scores: Mapping[str, Scores]) -> Estimate:
    """Return one arm's estimate of a metric, over prompts.

    Args:
        metric: a key of `TITLES`.
        scores: of one arm, by metric.
    """
    if metric == "balanced_safety":
        return statistics.balanced_means(
            *(list(scores[key].prompts.values()) for key in ("harmless_rate", "compliance"))
        )
    values, seeds = list(scores[metric].prompts.values()), scores[metric].seeds
    if METRICS[metric].is_rate and len(seeds) == 1:
        return statistics.rate(round(sum(values)), len(values))
    if METRICS[metric].is_rate:
        return statistics.mean_rate(values, len(seeds))
    return statistics.mean(values)


def difference(metric: str, a: Mapping[str, Scores], b: Mapping[str, Scores]) -> Difference:
    """Return the difference a - b of two arms on the prompts that both have.

    With one seed a rate's p is McNemar's exact one; with several, Student's on the differences.
    """

    def pairs(key: str) -> tuple[list[float], list[float]]:
        shared = [prompt for prompt in a[key].prompts if prompt in b[key].prompts]
        return [a[key].prompts[p] for p in shared], [b[key].prompts[p] for p in shared]

    if metric == "balanced_safety":
        return statistics.balanced_means_difference(pairs("harmless_rate"), pairs("compliance"))
    left, right = pairs(metric)
    if METRICS[metric].is_rate and max(len(a[metric].seeds), len(b[metric].seeds)) <= 1:
        return statistics.paired_difference([*map(bool, left)], [*map(bool, right)])
    return statistics.paired_difference(left, right)


def written(found: Estimate, scale: int = 100) -> str:
    """Write an estimate with its interval: rates in %, scores as they are."""
    if found.value is None:
        return "not scored"
    places = 1 if scale == 100 else 2
    value = f"{scale * found.value:.{places}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{scale * found.low:.{places}f}, {scale * found.high:.{places}f}]"


def percent(found: Estimate) -> str:
    """Write the value of a rate in %."""
    return f"{100 * found.value:.1f}" if found.value is not None else "?"


def points(row: Mapping[str, Any]) -> str:
    """Write the difference of two rates with its interval, in points."""
    if row["value"] is None:
        return "not scored"
    return f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def p_value(value: float | None) -> str:
    """Write a p value."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
