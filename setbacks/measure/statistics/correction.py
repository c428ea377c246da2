"""Rates with the judge's error removed by people's labels of some of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from setbacks.measure.statistics.rates import Difference, Estimate, check_pairs, z_value
from setbacks.measure.statistics.safety import harmonic

FEWEST_LABELS = 20  # fewer allow no large-sample interval


class Sample(NamedTuple):
    """A judge's verdicts on all answers, and people's labels of some of them, one per answer.

    Args:
        judged: the judge's verdicts, booleans or scores, shape (n,).
        human: people's labels, None where there is none, shape (n,).
        probability: of each answer to be drawn for labeling, in (0, 1]; None for an answer that was
            not drawn. Without any, the labeled answers count as a random sample.
        certain: whether an answer's value is known without a judge or a person, such as a
            degenerate answer's. `judged` holds that value, and a label of it is not used.
    """

    judged: Sequence[float]
    human: Sequence[float | None]
    probability: Sequence[float | None] | None = None
    certain: Sequence[bool] | None = None


def corrected(sample: Sample, scale: tuple[float, float] = (0, 1)) -> Estimate:
    """Return a judge's mean corrected by the available human labels: PPI++.

    The labels measure the judge's error; the judge covers the many answers that nobody labeled.
    The interval is valid for any judge, and a good judge makes it narrow. Labels that were drawn
    with known unequal probabilities are weighted by their inverse.

    The variance of half a label at either end of the scale is added: a judge that agrees with 30
    people of 30 does not certainly agree with everyone.

    Args:
        sample: verdicts and labels.
        scale: the smallest and the largest value: (0, 1) for a rate, (1, 10) for a score.

    Returns:
        The estimate; its n is the number of human labels, and below `FEWEST_LABELS` it has no
        value.

    Source: Angelopoulos, Duchi and Zrnic (2023), PPI++, arXiv 2311.01453, sections 2 and 6, with
    the estimate of ppi_py.ppi_mean_pointestimate; the weights are those of Zrnic and Candès (2024),
    Active Statistical Inference, arXiv 2403.03208.
    """
    part = _powered(sample, scale)
    if part.n < FEWEST_LABELS:
        return Estimate(None, None, None, part.n)
    return _bounded(part.value, _error([[(1.0, part)]]), part.n, scale)


def corrected_difference(a: Sample, b: Sample, scale: tuple[float, float] = (0, 1)) -> Difference:
    """Return the difference of two arms' corrected means over the same prompts, with a z test.

    The labeled answers of the two arms may belong to different prompts.

    Args:
        a: one arm's verdicts and labels, shape (n,).
        b: the other's on the same prompts in the same order, shape (n,).
        scale: as in `corrected`.

    Returns:
        The difference a - b; its n is the number of labels, and it has no value if either arm has
        fewer than `FEWEST_LABELS`.

    Raises:
        ValueError: the two have different lengths.

    Source: as `corrected`.
    """
    check_pairs(a.judged, b.judged)
    parts = _powered(a, scale), _powered(b, scale)
    return _tested([[(1.0, parts[0]), (-1.0, parts[1])]], parts[0].value - parts[1].value)


def corrected_balanced(harmless: Sample, compliant: Sample) -> Estimate:
    """Return balanced safety of two corrected rates, with the delta method's interval.

    Args:
        harmless: verdicts and labels on the harmful prompts, shape (n,).
        compliant: those on the safe prompts, shape (m,).

    Returns:
        The estimate; its n is the number of labels, and it has no value if either rate has fewer
        than `FEWEST_LABELS`.

    Source: as `corrected`.
    """
    x, y = _powered(harmless), _powered(compliant)
    if min(x.n, y.n) < FEWEST_LABELS:
        return Estimate(None, None, None, x.n + y.n)
    value, dx, dy = _harmonic_slopes(x.value, y.value)
    return _bounded(value, _error([[(dx, x)], [(dy, y)]]), x.n + y.n, (0, 1))


def corrected_balanced_difference(
    harmless: tuple[Sample, Sample], compliant: tuple[Sample, Sample]
) -> Difference:
    """Return the difference of corrected balanced safety between two arms, paired by prompt.

    Args:
        harmless: each arm's verdicts and labels on the same harmful prompts, two of shape (n,).
        compliant: each arm's on the same safe prompts, two of shape (m,).

    Raises:
        ValueError: the arms have different lengths.

    Source: as `corrected`.
    """
    for first, second in (harmless, compliant):
        check_pairs(first.judged, second.judged)
    (xa, xb), (ya, yb) = ([_powered(s) for s in pair] for pair in (harmless, compliant))
    a, ax, ay = _harmonic_slopes(xa.value, ya.value)
    b, bx, by = _harmonic_slopes(xb.value, yb.value)
    return _tested([[(ax, xa), (-bx, xb)], [(ay, ya), (-by, yb)]], a - b)


class _Powered(NamedTuple):
    """A corrected mean, as a mean of one number per answer."""

    value: float
    influence: Any  # how much each answer changes it, times n; mean 0, shape (n,)
    unseen: float  # variance for errors that a few labels cannot show
    n: int  # labels


def _powered(sample: Sample, scale: tuple[float, float] = (0, 1)) -> _Powered:
    """Correct the answers whose value is not certain; the others count as they are."""
    import numpy as np

    if sample.certain is None or not any(sample.certain):
        return _powered_all(sample, scale)
    open_ = [i for i, known in enumerate(sample.certain) if not known]
    part = _powered_all(
        Sample(
            [sample.judged[i] for i in open_],
            [sample.human[i] for i in open_],
            sample.probability and [sample.probability[i] for i in open_],
        ),
        scale,
    )
    # An open answer counts as its influence on the mean of the open ones, plus that mean.
    values = np.asarray(sample.judged, float)
    values[open_] = part.influence + part.value
    share = len(open_) / len(values)
    return _Powered(float(values.mean()), values - values.mean(), part.unseen * share**2, part.n)


def _powered_all(sample: Sample, scale: tuple[float, float]) -> _Powered:
    import numpy as np

    judged = np.asarray(sample.judged, float)
    human = np.array([np.nan if y is None else y for y in sample.human], float)
    if judged.shape != human.shape:
        raise ValueError(f"{len(human)} human labels for {len(judged)} verdicts")
    weight = (~np.isnan(human)).astype(float)
    if sample.probability is not None:
        drawn = np.array([np.nan if p is None else p for p in sample.probability], float)
        if not (np.isnan(drawn) | ((drawn > 0) & (drawn <= 1))).all():
            raise ValueError("a sampling probability must be above 0 and at most 1")
        if not np.isnan(drawn[weight > 0]).all():
            # A label that was not drawn represents no other answer, so it is left out.
            weight = np.where(np.isnan(drawn), 0.0, weight / drawn)
    labels = int((weight > 0).sum())
    if labels < 2:
        return _Powered(0.0, np.zeros(len(judged)), 0.0, labels)
    share = weight / weight.sum()
    y = np.where(weight > 0, human, 0.0)
    # How much to trust the judge: 0 if it does not correlate with the labels. The maximum is 1 of
    # arXiv 2311.01453, whose second mean is over the unlabeled answers alone.
    follows = share @ ((y - share @ y) * (judged - share @ judged))
    spread = judged.var(ddof=1)
    rest = 1 - labels / len(judged)
    most = 1 / rest if rest > 0 else np.inf
    lean = float(np.clip(follows / spread, 0, most)) if spread > 0 else 0.0
    off = (y - lean * judged) * (weight > 0)
    value = float(lean * judged.mean() + share @ off)
    # A label with a large weight pulls the mean to itself: 1 - share corrects it, like a jackknife.
    errs = share / (1 - share) * (off - share @ off)
    pulls = lean * (judged - judged.mean()) + len(judged) * errs
    unseen = float((share**2).sum()) ** 2 * (scale[1] - scale[0]) ** 2
    return _Powered(value, pulls, unseen, labels)


def _error(groups: Sequence[Sequence[tuple[float, _Powered]]]) -> float:
    """Return the standard error of a sum; only terms of the same group share prompts."""
    variance = 0.0
    for terms in groups:
        total = sum(slope * part.influence for slope, part in terms)
        variance += float(total @ total) / len(total) ** 2
        variance += sum(slope**2 * part.unseen for slope, part in terms)
    return float(variance**0.5)


def _tested(groups: Sequence[Sequence[tuple[float, _Powered]]], value: float) -> Difference:
    parts = [part for terms in groups for _, part in terms]
    n = sum(part.n for part in parts)
    if min(part.n for part in parts) < FEWEST_LABELS:
        return Difference(None, None, None, n, None)
    return _normal(value, _error(groups), n)


def _normal(value: float, error: float, n: int) -> Difference:
    """Return a difference with the interval and the test of a normal estimate."""
    from scipy.stats import norm

    half = z_value() * error
    return Difference(value, value - half, value + half, n, float(2 * norm.sf(abs(value) / error)))


def _bounded(value: float, error: float, n: int, scale: tuple[float, float]) -> Estimate:
    """Return an estimate whose interval stays on the scale, as a mean of labels does."""
    half = z_value() * error
    value, low, high = (
        min(scale[1], max(scale[0], v)) for v in (value, value - half, value + half)
    )
    return Estimate(value, low, high, n)


def _harmonic_slopes(x: float, y: float) -> tuple[float, float, float]:
    """Return the harmonic mean of two rates, and its derivative by each."""
    both = max(x + y, 1e-12)
    return float(harmonic(x, y)), 2 * y**2 / both**2, 2 * x**2 / both**2
