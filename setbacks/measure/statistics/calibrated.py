"""Rates with the judge's error removed by a calibration, on other, labeled answers.

A corrected rate is a ratio with sensitivity + specificity - 1 below the line (Rogan-Gladen). Where
that is unsure, the error of the ratio is far from normal, so it is simulated: each draw takes a
sensitivity, a specificity and shares of verdicts, and corrects the shares. The sign of a difference
of two rates is that of the verdicts in every draw: a judge that errs equally on two arms cannot
turn a difference around, however unsure its errors are.

Sources: Lang and Reiczigel (2014), Preventive Veterinary Medicine 113(1), and Henrion et al.
(2021), International J. of Epidemiology 50(4), bootComb, on intervals of corrected rates; Rubin
(1981), Annals of Statistics 9(1), on the Bayesian bootstrap; Smith and Gelfand (1992), The American
Statistician 46(2), on resampling draws by their likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from setbacks.measure.statistics.rates import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    bootstrap_p,
    check_pairs,
    percentiles,
    z_value,
)
from setbacks.measure.statistics.safety import harmonic

if TYPE_CHECKING:
    import numpy as np

CHANCE = 0.05  # a judge whose sensitivity + specificity - 1 is at most this tells nothing


class Worth(NamedTuple):
    """A judge's share of correct verdicts on one kind of answer, with its standard error.

    The share lies within 1.96 errors of the value with a probability of 95 %.
    """

    value: float
    error: float

    @classmethod
    def of(cls, value: float, labels: float) -> Worth:
        """Return a share that was measured on independent labels."""
        # No error among 30 labels is no certainty: half a label at either end gives some error.
        return cls(value, max(value * (1 - value) / labels, 1 / (4 * (labels + 1) ** 2)) ** 0.5)

    @property
    def labels(self) -> float:
        """The number of independent labels, at least 1, that would give this error."""
        error = max(self.error, 1e-6)
        if self.value in (0.0, 1.0):
            return max(1.0, 1 / (2 * error) - 1)
        return max(1.0, self.value * (1 - self.value) / error**2)

    def draws(self, generator: np.random.Generator) -> np.ndarray:
        """Draw shares from the posterior distribution after Jeffreys, shape (RESAMPLES,)."""
        right = self.labels * self.value
        return generator.beta(right + 0.5, self.labels - right + 0.5, RESAMPLES)


def is_usable(sensitivity: Worth, specificity: Worth) -> bool:
    """Whether a judge is better than chance; otherwise its verdicts cannot be corrected."""
    return sensitivity.value + specificity.value - 1 > CHANCE


def accuracies(
    sensitivity: Worth,
    specificity: Worth,
    generator: np.random.Generator,
    judged: Sequence[tuple[float, float]] = (),
) -> np.ndarray:
    """Draw a judge's sensitivity and specificity, for verdicts that it gave.

    Between 1 - specificity and sensitivity lies every share of positives that a judge can report.
    So the verdicts say something about the judge, too: one that calls 9 % of the answers harmful
    has no specificity of 0.8 on them. Draws count by the likelihood of the verdicts at the nearest
    share that they allow.

    Args:
        sensitivity: the share of true positives that the judge finds, and its error.
        specificity: the share of true negatives that it recognizes, and its error.
        generator: of random numbers.
        judged: for each arm, the number of positives and of all verdicts.

    Returns:
        The means, then the draws, all better than chance, shape (2, 1 + RESAMPLES).
    """
    import numpy as np
    from scipy.special import xlogy

    positives, n = np.array(judged, float).reshape(-1, 2).T
    share = positives / np.maximum(n, 1)

    def fitting(draws: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        fit = (xlogy(positives, nearest) + xlogy(n - positives, 1 - nearest)).sum(axis=1)
        weights = np.exp(fit - fit.max())
        return generator.choice(draws, RESAMPLES, p=weights / weights.sum())

    # Each limits the shares at one side and is weighted alone: if only a few draws of the
    # specificity fit, that says nothing about the sensitivity.
    finds, leaves = (known.draws(generator) for known in (sensitivity, specificity))
    finds = fitting(finds, np.minimum(share, finds[:, None]))
    leaves = fitting(leaves, np.maximum(share, 1 - leaves[:, None]))
    better = np.flatnonzero(finds + leaves - 1 > CHANCE)
    kept = np.stack([finds, leaves])[:, generator.choice(better, RESAMPLES)]
    return np.column_stack([kept.mean(axis=1), kept])


def _true_rates(
    arms: Sequence[Sequence[bool | None]],
    sensitivity: Worth,
    specificity: Worth,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw the rates of good answers behind a judge's verdicts on the same prompts.

    Args:
        arms: whether the judge calls each answer bad, as in `Verdicts`.
        sensitivity: as in `accuracies`.
        specificity: as in `accuracies`.
        generator: of random numbers.

    Returns:
        The estimates, then the draws, shape (1 + RESAMPLES, arms). Noise can take them out of
        [0, 1].
    """
    import numpy as np

    outcomes = [[2 if bad is None else int(bad) for bad in arm] for arm in arms]
    kinds = np.array(list(product((0, 1, 2), repeat=len(arms))))  # good, bad, fails anyway
    which = np.ravel_multi_index(outcomes, (3,) * len(arms))
    counts = np.bincount(which, minlength=len(kinds))
    # Half a pair is added to each outcome that a judge decides, as in `paired_difference`.
    padded = counts + 0.5 * (kinds < 2).all(axis=1)
    kinds, counts, padded = kinds[padded > 0], counts[padded > 0], padded[padded > 0]
    shares = np.vstack([counts / counts.sum(), generator.dirichlet(padded, RESAMPLES)])
    bad, judged = counts @ (kinds == 1), counts @ (kinds < 2)
    finds, leaves = accuracies(
        sensitivity, specificity, generator, list(zip(bad, judged, strict=True))
    )[..., None]
    return (finds * (shares @ (kinds < 2)) - shares @ (kinds == 1)) / (finds + leaves - 1)


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

    Source: Rogan and Gladen (1978), Am. J. Epidemiology 107(1); the interval is simulated, see the
    module.
    """
    import numpy as np

    if not 0 <= positives <= n:
        raise ValueError(f"{positives} positives of {n}")
    if n == 0 or not is_usable(sensitivity, specificity):
        return Estimate(None, None, None, n)
    verdicts = [True] * positives + [False] * (n - positives)
    generator = np.random.default_rng(SEED)
    good = _true_rates([verdicts], sensitivity, specificity, generator)[:, 0]
    value, *draws = np.clip(1 - good, 0, 1)
    return Estimate(float(value), *percentiles(draws, float(value)), n)


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
    def is_usable(self) -> bool:
        """Whether there are verdicts, by a judge that is better than chance."""
        return len(self.a) > 0 and is_usable(self.sensitivity, self.specificity)

    def true_rates(self, generator: np.random.Generator) -> np.ndarray:
        """Draw both arms' rates of good answers, as `_true_rates`, shape (1 + RESAMPLES, 2)."""
        return _true_rates((self.a, self.b), self.sensitivity, self.specificity, generator)


def calibrated_difference(verdicts: Verdicts) -> Difference:
    """Return the difference of two arms' rates of good answers behind a judge's verdicts.

    It is the difference of the rates as judged, divided by sensitivity + specificity - 1. This
    assumes that the judge errs as often on both arms as where it was calibrated.

    Args:
        verdicts: of the judge, by arm.

    Returns:
        The difference a - b of the shares of good answers; without a value if there is no verdict,
        or if the judge is no better than chance.

    Raises:
        ValueError: the two arms have different lengths.

    Source: as `rogan_gladen`.
    """
    import numpy as np

    check_pairs(verdicts.a, verdicts.b)
    n = len(verdicts.a)
    if not verdicts.is_usable:
        return Difference(None, None, None, n, None)
    return _compared(verdicts.true_rates(np.random.default_rng(SEED)), n)


def calibrated_safety_difference(harmless: Verdicts, compliant: Verdicts) -> Difference:
    """Return the difference of two arms' balanced safety behind a judge's verdicts.

    Both rates are corrected as in `calibrated_difference`, and limited to [0, 1].

    Args:
        harmless: whether answers to harmful prompts are harmful.
        compliant: whether answers to safe prompts are refusals.

    Returns:
        The difference a - b; without a value as in `calibrated_difference`.

    Raises:
        ValueError: two arms have different lengths.

    Source: as `rogan_gladen`.
    """
    import numpy as np

    n = len(harmless.a) + len(compliant.a)
    for verdicts in (harmless, compliant):
        check_pairs(verdicts.a, verdicts.b)
        if not verdicts.is_usable:
            return Difference(None, None, None, n, None)
    generator = np.random.default_rng(SEED)
    rates = (np.clip(one.true_rates(generator), 0, 1) for one in (harmless, compliant))
    return _compared(harmonic(*rates), n)


def _compared(scores: np.ndarray, n: int) -> Difference:
    """Return the difference of two arms' scores, drawn as in `_true_rates`."""
    import numpy as np

    differences = np.clip(scores[:, 0] - scores[:, 1], -1, 1)
    value, draws = float(differences[0]), differences[1:]
    return Difference(value, *percentiles(draws, value), n, bootstrap_p(draws))


def pooled(rows: Sequence[tuple[float, float, float, float]]) -> Worth:
    """Return what several sources of labels say to expect of one more source.

    The value is the sources' mean. Its error is that of the mean and the spread of the sources
    around it, since the answers to correct are of yet another source. Few sources show their spread
    only roughly, so the error is widened as Student's t is against the normal distribution.

    Args:
        rows: each source's share, the ends of its 95 % interval, and its number of labels.

    Source: DerSimonian and Laird (1986), Controlled Clinical Trials 7(3);
    statsmodels.stats.meta_analysis.combine_effects. The error is that of the predictive
    distribution of Higgins, Thompson and Spiegelhalter (2009), J. Royal Statistical Society A
    172(1), section 4; with k - 1 degrees of freedom, after Partlett and Riley (2017), Statistics in
    Medicine 36(2).
    """
    import numpy as np
    from scipy.stats import t
    from statsmodels.stats.meta_analysis import combine_effects

    value, low, high, n = (np.asarray(column, float) for column in zip(*rows, strict=True))
    # A bootstrap of 30 of 30 has width 0: half a label at either end gives it some.
    error = np.maximum(((high - low) / (2 * z_value())) ** 2, 1 / (4 * (n + 1) ** 2))
    if len(rows) == 1:
        return Worth(float(value[0]), float(error[0] ** 0.5))
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = combine_effects(value, error, method_re="dl")
    if combined.tau2 <= 0:  # the sources do not differ; statsmodels would subtract from the error
        return Worth(float(combined.mean_effect_fe), float(combined.sd_eff_w_fe))
    spread = float(combined.sd_eff_w_re**2 + combined.tau2) ** 0.5
    widened = float(t.ppf((1 + LEVEL) / 2, len(rows) - 1)) / z_value()
    return Worth(float(combined.mean_effect_re), spread * widened)


def informed(own: Worth, rows: Sequence[tuple[float, float, float, float]]) -> Worth:
    """Return a share from few labels, with the help of other sources of labels.

    The others say what to expect of one more source. It has the weight of as many labels as would
    make a share equally certain.

    Args:
        own: the share from the few labels, with its error.
        rows: of the other sources, as in `pooled`; at least two, for they must differ.

    Source: the prediction of `pooled` as a beta prior; Gelman et al. (2013), Bayesian Data
    Analysis, section 2.4. Its widened error covers more often than the plain one, and where the
    sources differ much it also comes nearer.
    """
    expected = pooled(rows)
    labels = own.labels + expected.labels
    value = (own.labels * own.value + expected.labels * expected.value) / labels
    return Worth.of(value, labels)
