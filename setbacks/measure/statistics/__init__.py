"""Intervals and tests for every number: small functions over statsmodels and scipy.

A rate has Wilson's interval, a difference between two arms with a paired interval and a
paired test, several tests with Holm's correction (`rates`, and `safety` for balanced safety). Where
people have labeled some of the answers, `corrected` and its relatives remove the judge's error
(`correction`); without labels, `rogan_gladen` and its relatives correct by the judge's calibration
(`calibrated`). `agreement` and `alpha` measure how far a judge or people agree (`raters`). All
intervals are 95 %. Everything is deterministic: resampling uses a fixed seed.
"""

from setbacks.measure.statistics.calibrated import (
    Verdicts,
    Worth,
    calibrated_difference,
    calibrated_safety_difference,
    informed,
    pooled,
    rogan_gladen,
)
from setbacks.measure.statistics.correction import (
    FEWEST_LABELS,
    Sample,
    corrected,
    corrected_balanced,
    corrected_balanced_difference,
    corrected_difference,
)
from setbacks.measure.statistics.raters import (
    AGREEMENT_RESAMPLES,
    BINS,
    FEWEST_RATED,
    MEASURES,
    agreement,
    alpha,
)
from setbacks.measure.statistics.rates import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    Outcomes,
    holm,
    mcnemar,
    mean,
    mean_rate,
    paired_difference,
    rate,
)
from setbacks.measure.statistics.safety import balanced, balanced_difference, harmonic

__all__ = [
    "AGREEMENT_RESAMPLES",
    "BINS",
    "FEWEST_LABELS",
    "FEWEST_RATED",
    "LEVEL",
    "MEASURES",
    "RESAMPLES",
    "SEED",
    "Difference",
    "Estimate",
    "Outcomes",
    "Sample",
    "Verdicts",
    "Worth",
    "agreement",
    "alpha",
    "balanced",
    "balanced_difference",
    "calibrated_difference",
    "calibrated_safety_difference",
    "corrected",
    "corrected_balanced",
    "corrected_balanced_difference",
    "corrected_difference",
    "harmonic",
    "holm",
    "mcnemar",
    "mean",
    "mean_rate",
    "paired_difference",
    "informed",
    "pooled",
    "rate",
    "rogan_gladen",
]
