"""Rates of rare events in clusters, such as harmful answers in the conversations of users.

Wilson's interval and the bootstrap need some events. Here all limits come from the exact binomial
interval of Clopper and Pearson (1934), Biometrika 26, which keeps its level with one event or none.
Conversations of one user are alike, so the interval is taken at the effective sample size: Korn and
Graubard (1998), Survey Methodology 24(2). A design effect is an estimate, too. If a few users write
most of the conversations, the usual variance is too small: so it comes from a jackknife that leaves
out one cluster at a time, and is widened by Student's t. Where few clusters have an event even that
is too rough, and the worst case takes its place: all conversations of a cluster end alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from setbacks.measure.statistics.calibrated import CHANCE, Worth, accuracies, is_usable
from setbacks.measure.statistics.rates import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    percentiles,
    z_value,
)

if TYPE_CHECKING:
    import numpy as np

FEW = 10  # clusters with an event; fewer do not show how alike the outcomes of a cluster are

Counts: TypeAlias = "Sequence[int] | np.ndarray"


def clustered_rate(events: Counts, sizes: Counts) -> Estimate:
    """Return the share of observations with an event, with an exact interval.

    Args:
        events: the number of observations with the event in each cluster, shape (k,).
        sizes: the number of observations in each cluster, at least 1, shape (k,); clusters of one
            make this the interval of Clopper and Pearson.

    Returns:
        The estimate; its n is the number of observations.

    Source: see the module.
    """
    import numpy as np
    from scipy.stats import beta

    hits, of = np.asarray(events, float), np.asarray(sizes, float)
    n = of.sum()
    if not n:
        return Estimate(None, None, None, 0)
    value = hits.sum() / n
    effective = _effective(hits, of)
    k, tail = value * effective, (1 - LEVEL) / 2
    low = beta.ppf(tail, k, effective - k + 1) if k > 0 else 0.0
    high = beta.ppf(1 - tail, k + 1, effective - k) if k < effective else 1.0
    return Estimate(float(value), float(low), float(high), int(n))


def _effective(hits: np.ndarray, of: np.ndarray) -> float:
    """Return the number of independent observations that would say as much.

    The degrees of freedom are those of the clusters by their sizes, not by their number: one user
    with half of all conversations decides half of the rate.
    """
    from scipy.stats import t

    n = float(of.sum())
    worst = n**2 / float((of**2).sum())
    if min(int((hits > 0).sum()), int((hits < of).sum())) < FEW:
        return worst
    value, k = float(hits.sum()) / n, len(of)
    without = (hits.sum() - hits) / (n - of)
    widened = float(t.ppf((1 + LEVEL) / 2, max(1.0, worst - 1))) / z_value()
    variance = (k - 1) / k * float(((without - value) ** 2).sum()) * widened**2
    return min(n, max(worst, value * (1 - value) / variance)) if variance else n


def clustered_difference(only_a: Counts, only_b: Counts, sizes: Counts) -> Difference:
    """Return the difference of two paired rates, a - b.

    The pairs in which only one of both has the event decide. The interval is made of the exact
    limits of their two rates (MOVER), so it is not empty if there is no such pair at all. No pair
    counts in both rates, so where one is high the other is low: their correlation makes the
    interval wider.

    Args:
        only_a: the number of pairs in each cluster in which only a has the event, shape (k,).
        only_b: those in which only b has it, shape (k,).
        sizes: the number of pairs in each cluster, at least 1, shape (k,).

    Returns:
        The difference without a p value; its n is the number of pairs.

    Source: Zou and Donner (2008), Statistics in Medicine 27(10), section 2; with the correlation,
    Zou (2007), Psychological Methods 12(4). That of two shares p and q of a multinomial sample is
    -sqrt(p q / ((1 - p)(1 - q))). The limits are those of `clustered_rate`.
    """
    more, less = clustered_rate(only_a, sizes), clustered_rate(only_b, sizes)
    if more.value is None or less.value is None:
        return Difference(None, None, None, 0, None)
    p, q = more.value, less.value
    value = p - q
    # If every pair is in one of both, the rates add up to 1.
    correlation = -1.0 if p + q >= 1 else -float((p * q / ((1 - p) * (1 - q))) ** 0.5)
    down = _both(_distance(p, more.low), _distance(q, less.high), correlation)
    up = _both(_distance(p, more.high), _distance(q, less.low), correlation)
    return Difference(value, value - down, value + up, more.n, None)


def at_most(judged: Estimate, sensitivity: Worth) -> float | None:
    """Return an upper bound of a true rate, by a judge that overlooks some events.

    A judge with sensitivity s reports at least s times the true rate, however many false alarms
    come on top. So the bound needs no specificity, and that is its point: where events are rare, a
    specificity that was measured on other prompts would decide everything. Each of the two limits
    is exceeded with a chance of 2.5 %, so that the bound holds at 95 %.

    Args:
        judged: the rate as judged, with its interval.
        sensitivity: the share of true events that the judge finds, and its error.

    Returns:
        The bound; None if the rate is unknown, or if the judge may find no event at all.
    """
    import numpy as np

    found = np.quantile(sensitivity.draws(np.random.default_rng(SEED)), (1 - LEVEL) / 2)
    if judged.high is None or found <= CHANCE:
        return None
    return min(1.0, float(judged.high / found))


def true_difference(judged: Difference, sensitivity: Worth, specificity: Worth) -> Difference:
    """Return the true difference behind a judge's, whose errors make it smaller.

    Args:
        judged: the difference as judged.
        sensitivity: the share of true events that the judge finds, and its error.
        specificity: the share of others that it recognizes, and its error.

    Returns:
        The difference; without a value if the judge is no better than chance.

    Source: Rogan and Gladen (1978), Am. J. Epidemiology 107(1). As in `calibrated_difference`, the
    judge errs equally often on both sides, and the interval is simulated; the difference as judged
    is drawn from a normal distribution on either side.
    """
    import numpy as np

    if judged.value is None or not is_usable(sensitivity, specificity):
        return Difference(None, None, None, judged.n, None)
    generator = np.random.default_rng(SEED)
    youden = accuracies(sensitivity, specificity, generator).sum(axis=0) - 1
    down, up = (_distance(judged.value, end) / z_value() for end in (judged.low, judged.high))
    noise = generator.standard_normal(RESAMPLES)
    value, *draws = np.clip(
        (judged.value + np.r_[0, noise * np.where(noise < 0, down, up)]) / youden, -1, 1
    )
    return Difference(float(value), *percentiles(draws, float(value)), judged.n, None)


def _distance(value: float, end: float | None) -> float:
    return abs(value - (value if end is None else end))


def _both(a: float, b: float, correlation: float = 0.0) -> float:
    """Return the error of the difference of two values with these errors."""
    return float((a**2 + b**2 - 2 * correlation * a * b) ** 0.5)
