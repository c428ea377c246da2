"""Agreement: of a judge with people, and of people with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from setbacks.measure.statistics.rates import LEVEL, SEED

# The measures of `agreement`, in its order.
MEASURES = ("auc", "kappa", "sensitivity", "specificity", "ece")
BINS = 10  # of equal width, for the calibration error
FEWEST_RATED = 10  # answers; an interval of agreement from fewer would be a guess
AGREEMENT_RESAMPLES = 2_000


def agreement(
    questions: Sequence[str],
    labels: Sequence[bool],
    score: Sequence[float],
    says: Sequence[bool] | None = None,
) -> dict[str, list[float]]:
    """Return how far a judge agrees with people, each measure as [value, low, high].

    - auc: how often a positive answer has a higher score than a negative one.
    - kappa: Cohen's kappa, agreement of the verdicts beyond chance.
    - sensitivity and specificity: share of the positive and of the negative answers recognized.
    - ece: expected calibration error, in `BINS` bins, for scores that are probabilities.

    Intervals are 95 % percentile bootstraps that resample questions, since answers to one question
    resemble each other.

    Args:
        questions: an id of the question of each answer, shape (n,).
        labels: people's labels, shape (n,).
        score: the judge's scores in [0, 1], higher is more likely positive, shape (n,).
        says: its verdicts, shape (n,); by default a score of 0.5 or more is a yes.

    Raises:
        ValueError: all labels are the same.

    Source: Hanley and McNeil (1982) for the AUC; Guo et al. (2017), arXiv 1706.04599, for ece;
    Field and Welsh (2007), JRSS B 69(3), on resampling clusters.
    """
    import numpy as np

    y, s = np.asarray(labels, bool), np.asarray(score, float)
    if y.all() or not y.any():
        raise ValueError("all labels are the same")
    verdicts = s >= 0.5 if says is None else np.asarray(says, bool)
    _, index = np.unique(np.asarray(questions), return_inverse=True)
    clusters = int(index.max()) + 1
    generator = np.random.default_rng(SEED)
    even = np.full(clusters, 1 / clusters)
    draws: list[Any] = []
    while sum(map(len, draws)) < AGREEMENT_RESAMPLES:
        weights = generator.multinomial(clusters, even, size=250)[:, index]
        both = ((weights @ y) > 0) & ((weights @ ~y) > 0)
        draws.append(_agree(y, s, verdicts, weights[both]))
    low, high = np.percentile(
        np.concatenate(draws)[:AGREEMENT_RESAMPLES],
        [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2],
        axis=0,
    )
    value = _agree(y, s, verdicts, np.ones((1, len(y))))[0]
    return {
        name: [round(float(v), 3) for v in triple]
        for name, triple in zip(MEASURES, zip(value, low, high, strict=True), strict=True)
    }


def _agree(labels: Any, score: Any, says: Any, weights: Any) -> Any:
    """Return the measures of `agreement` for each row of weights, shape (rows, 5)."""
    import numpy as np

    weights = weights.astype(float)
    total = weights.sum(axis=1)
    yes, no = weights @ labels, weights @ ~labels
    # AUC: of each score, the negatives below it and half of those that tie with it.
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    positive, negative = (
        np.add.reduceat((weights * of)[:, order], starts, axis=1) for of in (labels, ~labels)
    )
    below = np.cumsum(negative, axis=1) - negative / 2
    auc = (positive * below).sum(axis=1) / (yes * no)
    sensitivity = weights @ (labels & says) / yes
    specificity = weights @ (~labels & ~says) / no
    agree = weights @ (labels == says) / total
    chance = ((weights @ says) * yes + (weights @ ~says) * no) / total**2
    kappa = np.where(chance < 1, (agree - chance) / np.maximum(1 - chance, 1e-12), 0.0)
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    off = sum(np.abs(weights @ ((score - labels) * (bins == b))) for b in range(BINS)) / total
    return np.stack([auc, kappa, sensitivity, specificity, off], axis=1)


def alpha(
    questions: Sequence[str], ratings: Sequence[Sequence[int | None]], ordinal: bool = False
) -> Any:
    """Return how far several raters agree beyond chance, as [value, low, high]; None if undefined.

    Krippendorff's alpha: 1 is full agreement, 0 is chance. It is undefined where no answer has two
    ratings, or where all ratings are the same. The interval is a 95 % percentile bootstrap that
    resamples questions; there is none for fewer than `FEWEST_RATED` answers or full agreement.

    Args:
        questions: an id of the question of each answer, shape (n,).
        ratings: of each answer by each rater, None where there is none, shape (n, raters).
        ordinal: whether ratings are grades; otherwise they are categories, such as yes and no.

    Source: Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, sections B to E.
    """
    import numpy as np

    levels = sorted({int(r) for row in ratings for r in row if r is not None})
    counts = np.array([[list(row).count(level) for level in levels] for row in ratings], float)
    each = counts.reshape(len(ratings), len(levels)).sum(axis=1)
    pairable = each >= 2
    if len(levels) < 2 or not pairable.any():
        return None
    counts, each = counts[pairable], each[pairable]
    # Coincidences of two levels within an answer, section C.
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, range(len(levels)), range(len(levels))] -= counts
    pairs /= (each - 1)[:, None, None]
    _, index = np.unique(np.asarray(questions)[pairable], return_inverse=True)

    def reliability(weights: Any) -> Any:
        together = np.tensordot(weights, pairs, axes=1)
        totals = weights @ counts
        if ordinal:  # section E: grades as far apart as there are ratings between them
            middles = totals.cumsum(axis=1) - totals / 2
            apart = (middles[:, :, None] - middles[:, None, :]) ** 2
        else:
            apart = 1.0 - np.eye(len(levels))[None]
        expected = totals[:, :, None] * totals[:, None, :] * apart
        number = totals.sum(axis=1)
        chance = expected.sum(axis=(1, 2)) / np.maximum(number - 1, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - np.where(chance > 0, (together * apart).sum(axis=(1, 2)) / chance, np.nan)

    value = float(reliability(np.ones((1, len(counts))))[0])
    if np.isnan(value):
        return None
    if len(counts) < FEWEST_RATED or value == 1:  # no wider than a point
        return [round(value, 3), None, None]
    clusters = int(index.max()) + 1
    generator = np.random.default_rng(SEED)
    even = np.full(clusters, 1 / clusters)
    drawn = reliability(generator.multinomial(clusters, even, size=AGREEMENT_RESAMPLES)[:, index])
    low, high = np.nanpercentile(drawn, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return [round(float(v), 3) for v in (value, min(low, value), max(high, value))]
