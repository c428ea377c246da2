"""What changed between two sets of results: matched by prompt, with a paired test for each metric.

It reads our run folders and the results of other tools, so nobody needs our pipeline to use it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, mean

from setbacks.errors import InputError
from setbacks.files import write_atomic
from setbacks.loop.results import Key, Results, shared
from setbacks.measure import statistics
from setbacks.measure.differences import corrected
from setbacks.measure.results import Change
from setbacks.measure.statistics import Difference
from setbacks.text import one_line


@dataclass(frozen=True)
class MetricDiff:
    """How one metric differs between two sets of results, on the prompts that both have.

    Both means and their difference are over prompts: a prompt that comes several times counts once.

    Args:
        metric: its name.
        a: its mean in the first results.
        b: its mean in the second.
        change: the second minus the first, with interval and test; p values are corrected together
            over all metrics (Holm).
        higher: the prompts whose score is higher in the second.
        lower: those whose score is lower.
    """

    metric: str
    a: float
    b: float
    change: Change
    higher: Sequence[Key]
    lower: Sequence[Key]


@dataclass(frozen=True)
class Diff:
    """The comparison of two sets of results.

    Args:
        a: the first.
        b: the second.
        metrics: every metric that both have.
        only_a: the number of prompts that only the first has.
        only_b: the number that only the second has.
    """

    a: Results
    b: Results
    metrics: Sequence[MetricDiff]
    only_a: int
    only_b: int


def diff(a: Results, b: Results, metrics: Sequence[str] = ()) -> Diff:
    """Compare two sets of results.

    Args:
        a: the results to compare with.
        b: the results to look at.
        metrics: names of the metrics; all that both have by default.

    Raises:
        InputError: they share no prompt or no metric, or a metric is not in both.
    """
    if not a.items.keys() & b.items.keys():
        raise InputError(
            one_line(
                f"{a.name} and {b.name} share no prompt: the first has {len(a.items)}, such as "
                f'"{_short(a)}", the second {len(b.items)}, such as "{_short(b)}"'
            )
        )
    both = [metric for metric in a.metrics() if metric in b.metrics()]
    for metric in metrics:
        if metric not in both:
            raise InputError(
                one_line(
                    f"no metric {metric} in both; {a.name} has {', '.join(a.metrics()) or 'none'}, "
                    f"{b.name} has {', '.join(b.metrics()) or 'none'}"
                )
            )
    pairs = {metric: keys for metric in metrics or both if (keys := shared(a, b, metric))}
    if not pairs:
        raise InputError(
            one_line(
                f"{a.name} and {b.name} have no scores of one name; the first has "
                f"{', '.join(a.metrics()) or 'none'}, the second {', '.join(b.metrics()) or 'none'}"
            )
        )
    differences = [_difference(a, b, metric, keys) for metric, keys in pairs.items()]
    return Diff(
        a,
        b,
        [
            _metric(a, b, metric, pairs[metric], change)
            for metric, change in zip(pairs, corrected(differences), strict=True)
            if change is not None
        ],
        len(a.items.keys() - b.items.keys()),
        len(b.items.keys() - a.items.keys()),
    )


def _difference(a: Results, b: Results, metric: str, keys: Sequence[Key]) -> Difference:
    """Test the second against the first."""
    sides = [_by_prompt(side, metric, keys) for side in (b, a)]
    kind = bool if all(isinstance(value, bool) for side in sides for value in side) else float
    first, second = ([*map(kind, side)] for side in sides)
    return statistics.paired_difference(first, second)


def _by_prompt(side: Results, metric: str, keys: Sequence[Key]) -> list[bool | float]:
    """Return one score for each prompt; repeats of a prompt count as one, by their mean."""
    by_prompt: dict[str, list[bool | float]] = {}
    for key in keys:
        by_prompt.setdefault(key[0], []).append(side.items[key].scores[metric])
    return [one[0] if len(one) == 1 else mean(one) for one in by_prompt.values()]


def _metric(a: Results, b: Results, metric: str, keys: Sequence[Key], change: Change) -> MetricDiff:
    scores = {key: (a.items[key].scores[metric], b.items[key].scores[metric]) for key in keys}
    return MetricDiff(
        metric,
        fmean(_by_prompt(a, metric, keys)),
        fmean(_by_prompt(b, metric, keys)),
        change,
        [key for key, (old, new) in scores.items() if new > old],
        [key for key, (old, new) in scores.items() if new < old],
    )


def write_items(result: Diff, path: Path) -> int:
    """Write every item whose score changed, with both answers, as JSON Lines; return their number.

    The file is private: answers can be harmful.
    """
    rows = [
        {
            "metric": one.metric,
            "prompt": key[0],
            "repeat": key[1],
            "a": result.a.items[key].scores[one.metric],
            "b": result.b.items[key].scores[one.metric],
            "answer_a": result.a.items[key].answer,
            "answer_b": result.b.items[key].answer,
        }
        for one in result.metrics
        for key in [*one.lower, *one.higher]
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, text.encode("utf-8", "surrogatepass"))
    return len(rows)


def as_json(result: Diff) -> dict[str, object]:
    """Return a comparison as plain data, without answers."""
    return {
        "a": result.a.name,
        "b": result.b.name,
        "only_a": result.only_a,
        "only_b": result.only_b,
        "metrics": [
            {
                "metric": one.metric,
                "n": one.change.n,
                "a": one.a,
                "b": one.b,
                "difference": one.change.value,
                "low": one.change.low,
                "high": one.change.high,
                "p": one.change.p,
                "p_holm": one.change.p_holm,
                "higher": len(one.higher),
                "lower": len(one.lower),
            }
            for one in result.metrics
        ],
    }


def _short(results: Results) -> str:
    prompt, _ = next(iter(results.items))
    return prompt[:60]
