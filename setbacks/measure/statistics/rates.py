"""Rates and means with their intervals, paired differences, and Holm's correction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
RESAMPLES = 9_999
SEED = 20_231_016

Outcomes: TypeAlias = Any  # an array or list of booleans, or of numbers where a function says so


class Estimate(NamedTuple):
    """A value with its 95 % interval, from `n` observations; None where they are too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """A difference with its 95 % interval, from `n` pairs, and the p value of "there is none"."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None


def rate(successes: int, n: int) -> Estimate:
    """Return the share of successes with Wilson's score interval, in [0, 1].

    Wilson's interval keeps its level for small n and for rates near 0 or 1, where the usual
    plus-minus interval has width zero.

    Args:
        successes: the number of successes, 0 <= successes <= n.
        n: the number of observations; 0 gives an estimate without a value.

    Raises:
        ValueError: successes is not between 0 and n.

    Source: Wilson (1927), JASA 22; Brown, Cai and DasGupta (2001), Statistical Science 16(2);
    statsmodels.stats.proportion.proportion_confint.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Estimate(None, None, None, 0)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n
    # Rounding inside Wilson's formula can leave 0 or 1 outside by 1e-17.
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def mean_rate(shares: Sequence[float], seeds: int) -> Estimate:
    """Return a rate where each prompt's outcome is a share over several seeds, in [0, 1].

    Answers of several seeds to one prompt are alike, so they carry less information than answers to
    as many prompts. Wilson's interval is taken at the effective sample size, at which independent
    outcomes would vary as much. Where nothing varies at 0 or 1, only the prompts count.

    Args:
        shares: for each prompt, the share of seeds with the outcome, shape (n,).
        seeds: how many seeds.

    Returns:
        The estimate; its n is the number of prompts.

    Source: Korn and Graubard (1998), Survey Methodology 24(2); Franco et al. (2019), J. of Survey
    Statistics and Methodology 7(3), for Wilson's interval.
    """
    import numpy as np
    from statsmodels.stats.proportion import proportion_confint

    x = np.asarray(shares, float)
    n = len(x)
    if n < 2:
        return Estimate(float(x[0]) if n else None, None, None, n)
    value = float(x.mean())
    squared_error = float(x.var(ddof=1)) / n
    most = n if value in (0.0, 1.0) else n * seeds
    effective = min(most, value * (1 - value) / squared_error) if squared_error else most
    low, high = proportion_confint(value * effective, effective, alpha=1 - LEVEL, method="wilson")
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def mean(values: Iterable[float]) -> Estimate:
    """Return the mean with Student's t interval; one value has no interval.

    Args:
        values: numbers in any unit, such as scores of 1-10, shape (n,).

    Source: scipy.stats.ttest_1samp and its confidence_interval.
    """
    return Estimate(*_t(values)[:4])


def mcnemar(a: Outcomes, b: Outcomes) -> float:
    """Return the exact two-sided p value of "a and b succeed equally often", on paired outcomes.

    Only the pairs that differ count: under the null hypothesis they are fair coin tosses.

    Args:
        a: outcomes of one arm, shape (n,).
        b: outcomes of the other on the same prompts in the same order, shape (n,).

    Raises:
        ValueError: the two have different lengths.

    Source: McNemar (1947), Psychometrika 12; statsmodels.stats.contingency_tables.mcnemar.
    """
    import numpy as np
    from statsmodels.stats.contingency_tables import mcnemar as exact

    return float(exact(np.reshape(_contingency(a, b), (2, 2)), exact=True).pvalue)


def paired_difference(a: Outcomes, b: Outcomes) -> Difference:
    """Return mean(a) - mean(b) over the same prompts, with a paired interval and test.

    Booleans get a percentile bootstrap over the pairs, with half a pair added to each of the four
    outcomes (if no pair differs, that is little evidence, not certainty), and McNemar's exact test.
    Numbers get Student's t on the differences, for the interval and the test.

    Args:
        a: outcomes of one arm, shape (n,); booleans or numbers.
        b: outcomes of the other on the same prompts in the same order, shape (n,).

    Raises:
        ValueError: the two have different lengths.

    Source: the added pairs are the adjustment of Bonett and Price (2012), J. Educational and
    Behavioral Statistics 37(4), spread over all four outcomes; Fagerland et al. (2014),
    Statistics in Medicine 33(16), on why it is needed.
    """
    import numpy as np

    x, y = np.asarray(a), np.asarray(b)
    check_pairs(x, y)
    if x.dtype != bool or y.dtype != bool:
        return Difference(*_t(x.astype(float) - y.astype(float)))
    if not len(x):
        return Difference(None, None, None, 0, None)
    draws = resample(_contingency(x, y), np.random.default_rng(SEED))
    value = float(x.mean() - y.mean())
    low, high = percentiles(draws[:, 2] - draws[:, 1], value)
    return Difference(value, low, high, len(x), mcnemar(x, y))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values, in the order given.

    The chance that any of the tests with a corrected p value below 0.05 is a false alarm is at most
    0.05, however the tests depend on one another.

    Args:
        p_values: p values of one family of tests, shape (k,).

    Source: Holm (1979), Scandinavian J. of Statistics 6(2); the numbers are those of
    statsmodels' multipletests, whose import takes a tenth of a second.
    """
    import numpy as np

    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(p) for p in corrected]


def z_value() -> float:
    """Return how many standard errors a 95 % interval reaches to either side."""
    from scipy.stats import norm

    return float(norm.ppf((1 + LEVEL) / 2))


def _t(values: Iterable[float]) -> tuple[float | None, float | None, float | None, int, Any]:
    """Return the mean, its t interval, n, and the p value of "the mean is zero"."""
    import numpy as np
    from scipy.stats import ttest_1samp

    x = np.asarray(list(values), float)
    if len(x) < 2:
        return (float(x[0]) if len(x) else None, None, None, len(x), None)
    value = float(x.mean())
    if np.ptp(x) == 0:  # t is 0/0 here
        return (value, value, value, len(x), 1.0 if value == 0 else 0.0)
    test = ttest_1samp(x, 0)
    low, high = test.confidence_interval(LEVEL)
    return (value, float(low), float(high), len(x), float(test.pvalue))


def check_pairs(a: Outcomes, b: Outcomes) -> None:
    """Check that outcomes are pairs.

    Raises:
        ValueError: they have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} outcomes against {len(b)}: they must be pairs")


def _contingency(a: Outcomes, b: Outcomes) -> list[int]:
    """Return how many pairs have neither, only b, only a, both."""
    import numpy as np

    check_pairs(a, b)
    code = 2 * np.asarray(a, int) + np.asarray(b, int)
    return [int(n) for n in np.bincount(code, minlength=4)]


def resample(counts: Sequence[int] | np.ndarray, generator: np.random.Generator) -> Any:
    """Return the shares of each outcome in bootstrap samples, shape (RESAMPLES, outcomes).

    Drawing n outcomes with replacement is one multinomial draw of their counts.
    """
    import numpy as np

    padded = np.asarray(counts) + 0.5
    n = int(padded.sum())  # whole: there are two or four outcomes
    return generator.multinomial(n, padded / n, size=RESAMPLES) / n


def percentiles(draws: Any, value: float) -> tuple[float, float]:
    """Return the ends of the middle 95 % of the draws, extended to include the value itself."""
    import numpy as np

    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), value), max(float(high), value)


def bootstrap_p(differences: Any) -> float:
    """Return the p value of "no difference" from resampled differences, shape (RESAMPLES,).

    Source: Efron and Tibshirani (1993), chapter 15; the added 1 is from Davison and Hinkley (1997).
    """
    from scipy.stats import norm

    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    counted = float(2 * (tail + 1) / (len(differences) + 1))
    if tail:
        return min(1.0, counted)
    return min(counted, float(2 * norm.sf(abs(differences.mean()) / differences.std(ddof=1))))
