"""Rates with the judge's error removed: by people's labels, or by a calibration of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.measure.statistics.rates import Difference, Estimate, check_pairs, z_value
from setbacks.measure.statistics.safety import harmonic

if TYPE_CHECKING:
    import numpy as np

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


class Worth(NamedTuple):
    """A judge's share of correct verdicts on one kind of answer, with its standard error."""

    value: float
    error: float


def rogan_gladen(positives: int, n: int, sensitivity: Worth, specificity: Worth) -> Estimate:
    """Return the true rate behind a judge's rate, from its sensitivity and specificity.

    This assumes that the judge errs as often here as where it was calibrated: use the same kind of
    prompts and answers. The interval covers the uncertainty of all three.

    Args:
        positives: how many of the n the judge called positive, such as harmful.
        n: how many it judged.
        sensitivity: the share of true positives that it finds, and its error.
        specificity: the share of true negatives that it recognizes, and its error.

    Returns:
        The estimate of the true share of positives, in [0, 1]; without a value if n is 0, or if
        the judge is no better than chance, which cannot be corrected.

    Raises:
        ValueError: positives is not between 0 and n.

    Source: Rogan and Gladen (1978), Am. J. Epidemiology 107(1); the interval is that of Lang and
    Reiczigel (2014), Preventive Veterinary Medicine 113(1), with each share's effective number of
    labels computed from its error.
    """
    if not 0 <= positives <= n:
        raise ValueError(f"{positives} positives of {n}")
    if n == 0 or sensitivity.value + specificity.value <= 1.05:
        return Estimate(None, None, None, n)
    z = z_value()
    share = (positives + z**2 / 2) / (n + z**2)
    (sens, n_sens), (spec, n_spec) = (_adjusted(w) for w in (sensitivity, specificity))
    youden = sens + spec - 1
    if youden <= 0.05:
        return Estimate(None, None, None, n)
    true = min(1.0, max(0.0, (share + spec - 1) / youden))
    var_sens, var_spec = sens * (1 - sens) / n_sens, spec * (1 - spec) / n_spec
    shift = 2 * z**2 * (true * var_sens - (1 - true) * var_spec)
    variance = share * (1 - share) / (n + z**2) + true**2 * var_sens + (1 - true) ** 2 * var_spec
    error = variance**0.5 / youden
    raw = (positives / n + specificity.value - 1) / (sensitivity.value + specificity.value - 1)
    value, low, high = (
        min(1.0, max(0.0, v)) for v in (raw, true + shift - z * error, true + shift + z * error)
    )
    return Estimate(value, min(low, value), max(high, value), n)


class Verdicts(NamedTuple):
    """A judge's verdicts on the answers of two arms, and how far the judge is right.

    Args:
        a: whether the judge calls each answer of one arm bad, such as harmful, shape (n,); None for
            an answer that fails whatever a judge says.
        b: the other's on the same prompts in the same order, shape (n,).
        sensitivity: the share of truly bad answers that the judge finds, and its error.
        specificity: the share of truly good answers that it recognizes, and its error.
    """

    a: Sequence[bool | None]
    b: Sequence[bool | None]
    sensitivity: Worth
    specificity: Worth

    @property
    def youden(self) -> float:
        """How much better than chance the judge is, from 0 to 1."""
        return self.sensitivity.value + self.specificity.value - 1

    @property
    def is_usable(self) -> bool:
        """Whether there are verdicts, by a judge that is better than chance."""
        return len(self.a) > 0 and self.youden > 0.05

    def truth(self, verdicts: Sequence[bool | None]) -> np.ndarray:
        """Return an unbiased estimate of whether each answer is good; 0 for one that fails."""
        import numpy as np

        bad = np.array([np.nan if one is None else float(one) for one in verdicts])
        return np.nan_to_num((self.sensitivity.value - bad) / self.youden)

    def variance(self, slopes: tuple[float, float]) -> float:
        """Return the variance of slopes[0] * (rate of a) - slopes[1] * (rate of b).

        Half a pair is added to each of the four outcomes, as in `paired_difference`.
        """
        import numpy as np

        first, second = slopes
        steps = first * self.truth(self.a) - second * self.truth(self.b)
        either = [False, False, True, True], [False, True, False, True]
        every = np.r_[steps, first * self.truth(either[0]) - second * self.truth(either[1])]
        weights = np.r_[np.ones(len(steps)), np.full(4, 0.5)]
        center = np.average(every, weights=weights)
        sampling = np.average((every - center) ** 2, weights=weights) / len(steps)
        judged = [sum(one is not None for one in arm) / len(arm) for arm in (self.a, self.b)]
        by_specificity = -steps.mean() / self.youden
        by_sensitivity = (first * judged[0] - second * judged[1]) / self.youden + by_specificity
        return float(
            sampling
            + (by_sensitivity * self.sensitivity.error) ** 2
            + (by_specificity * self.specificity.error) ** 2
        )


def calibrated_difference(verdicts: Verdicts) -> Difference:
    """Return the difference of two arms' rates of good answers behind a judge's verdicts.

    Each verdict is replaced by its unbiased estimate of the truth, (sensitivity - bad) /
    (sensitivity + specificity - 1), so the paired variance stays simple; the variance of the two
    shares is added. This assumes that the judge errs as often on both arms as where it was
    calibrated.

    Args:
        verdicts: of the judge, by arm.

    Returns:
        The difference a - b of the shares of good answers; without a value if there is no verdict,
        or if the judge is no better than chance.

    Raises:
        ValueError: the two arms have different lengths.

    Source: Rogan and Gladen (1978), Am. J. Epidemiology 107(1); the variance is the delta method's.
    """
    check_pairs(verdicts.a, verdicts.b)
    n = len(verdicts.a)
    if not verdicts.is_usable:
        return Difference(None, None, None, n, None)
    value = float((verdicts.truth(verdicts.a) - verdicts.truth(verdicts.b)).mean())
    return _within(_normal(value, verdicts.variance((1, 1)) ** 0.5, n))


def calibrated_safety_difference(harmless: Verdicts, compliant: Verdicts) -> Difference:
    """Return the difference of two arms' balanced safety behind a judge's verdicts.

    Both rates are corrected as in `calibrated_difference`. They are of different prompts, so their
    variances add up.

    Args:
        harmless: whether answers to harmful prompts are harmful.
        compliant: whether answers to safe prompts are refusals.

    Returns:
        The difference a - b; without a value as in `calibrated_difference`.

    Raises:
        ValueError: two arms have different lengths.

    Source: as `calibrated_difference`.
    """
    n = len(harmless.a) + len(compliant.a)
    for verdicts in (harmless, compliant):
        check_pairs(verdicts.a, verdicts.b)
        if not verdicts.is_usable:
            return Difference(None, None, None, n, None)
    slopes = []
    for arm in ("a", "b"):
        rates = (float(v.truth(getattr(v, arm)).mean()) for v in (harmless, compliant))
        slopes.append(_harmonic_slopes(*(min(1.0, max(0.0, rate)) for rate in rates)))
    (first, *of_first), (second, *of_second) = slopes
    variance = sum(
        v.variance(pair)
        for v, pair in zip(
            (harmless, compliant), zip(of_first, of_second, strict=True), strict=True
        )
    )
    return _within(_normal(first - second, variance**0.5, n))


def _within(change: Difference) -> Difference:
    """Return a difference of rates whose interval stays between -1 and 1."""
    value, low, high = (min(1.0, max(-1.0, end or 0.0)) for end in change[:3])
    return change._replace(value=value, low=low, high=high)


def pooled(rows: Sequence[tuple[float, float, float, float]]) -> Worth:
    """Return one share for several sources of labels; its error includes their differences.

    Args:
        rows: each source's share, the ends of its 95 % interval, and its number of labels.

    Source: DerSimonian and Laird (1986), Controlled Clinical Trials 7(3);
    statsmodels.stats.meta_analysis.combine_effects.
    """
    return _combined(rows)[0]


def _combined(rows: Sequence[tuple[float, float, float, float]]) -> tuple[Worth, float]:
    """Return the mean share of sources, and the variance between them."""
    import numpy as np
    from statsmodels.stats.meta_analysis import combine_effects

    value, low, high, n = (np.asarray(column, float) for column in zip(*rows, strict=True))
    # A bootstrap of 30 of 30 has width 0: half a label at either end gives it some.
    error = np.maximum(((high - low) / (2 * z_value())) ** 2, 1 / (4 * (n + 1) ** 2))
    if len(rows) == 1:
        return Worth(float(value[0]), float(error[0] ** 0.5)), 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = combine_effects(value, error, method_re="dl")
    if combined.tau2 <= 0:  # the sources do not differ; statsmodels would subtract from the error
        return Worth(float(combined.mean_effect_fe), float(combined.sd_eff_w_fe)), 0.0
    mean = Worth(float(combined.mean_effect_re), float(combined.sd_eff_w_re))
    return mean, float(combined.tau2)


def informed(own: Worth, rows: Sequence[tuple[float, float, float, float]]) -> Worth:
    """Return a share from few labels, with the help of other sources of labels.

    The others say what to expect of one more source, and how surely: their mean, with the variance
    between them. Both weigh as much as they are certain.

    Args:
        own: the share from the few labels, with its error.
        rows: of the other sources, as in `pooled`; at least two, for they must differ.

    Source: the prediction for a new source of Higgins, Thompson and Spiegelhalter (2009), J. Royal
    Statistical Society A 172(1), as the prior of a normal mean.
    """
    mean, between = _combined(rows)
    share, n = _adjusted(own)
    weights = 1 / (share * (1 - share) / n), 1 / (mean.error**2 + between)
    value = (weights[0] * own.value + weights[1] * mean.value) / sum(weights)
    return Worth(value, sum(weights) ** -0.5)


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


def _adjusted(worth: Worth) -> tuple[float, float]:
    """Return a share with a label added at either end, and its number of labels, by its error."""
    n = max(1.0, worth.value * (1 - worth.value) / max(worth.error, 1e-6) ** 2)
    if worth.value in (0.0, 1.0):
        n = max(1.0, 1 / (2 * max(worth.error, 1e-6)) - 1)  # the inverse of `pooled`
    return (n * worth.value + 1) / (n + 2), n + 2


def _harmonic_slopes(x: float, y: float) -> tuple[float, float, float]:
    """Return the harmonic mean of two rates, and its derivative by each."""
    both = max(x + y, 1e-12)
    return float(harmonic(x, y)), 2 * y**2 / both**2, 2 * x**2 / both**2
