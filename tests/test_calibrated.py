"""Rates corrected by a judge's calibration: intervals cover, however unsure the judge is."""

import numpy as np
import pytest

from setbacks.measure import statistics
from setbacks.measure.statistics import Verdicts, Worth, calibrated_difference, rogan_gladen
from setbacks.measure.statistics.calibrated import accuracies
from setbacks.measure.statistics.rates import SEED


def test_rogan_gladen():
    known = rogan_gladen(40, 100, Worth(0.8, 0.0), Worth(0.9, 0.0))
    assert known.value == pytest.approx((0.4 + 0.9 - 1) / (0.8 + 0.9 - 1), abs=1e-5)
    found = rogan_gladen(40, 100, Worth(0.8, 0.04), Worth(0.9, 0.03))
    assert found.value == pytest.approx(known.value, abs=0.01)
    assert found == rogan_gladen(40, 100, Worth(0.8, 0.04), Worth(0.9, 0.03))
    surer = rogan_gladen(40, 100, Worth(0.8, 0.01), Worth(0.9, 0.01))
    assert found.low < surer.low < surer.high < found.high
    assert rogan_gladen(5, 100, Worth(0.8, 0.04), Worth(0.9, 0.03)).value == 0
    assert rogan_gladen(5, 100, Worth(0.4, 0.04), Worth(0.6, 0.03)).value is None
    assert rogan_gladen(0, 0, Worth(0.8, 0.04), Worth(0.9, 0.03)).value is None


def test_sources_that_disagree_make_a_share_unsure():
    alike = statistics.pooled([(0.8, 0.75, 0.85, 200), (0.8, 0.75, 0.85, 200)])
    apart = statistics.pooled([(0.9, 0.85, 0.95, 200), (0.5, 0.45, 0.55, 200)])
    assert alike.value == pytest.approx(0.8) and alike.error < 0.02
    assert 0.6 < apart.value < 0.8 and apart.error > 0.1


@pytest.mark.parametrize("value", [1.0, 0.8])
def test_sources_that_agree_by_chance_make_no_share_certain(value):
    """Their differences are below what sampling gives: nothing is subtracted from the error."""
    alone = statistics.pooled([(value, value - 0.1, min(1.0, value + 0.1), 60)])
    three = statistics.pooled([(value, value - 0.1, min(1.0, value + 0.1), 60)] * 3)
    assert three.value == pytest.approx(value)
    assert three.error == pytest.approx(alone.error / 3**0.5)


@pytest.mark.parametrize("k", [3, 6])
def test_sources_say_what_to_expect_of_one_more(k):
    """The interval has to cover another source's share, not the mean of all sources."""
    chance = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        *shares, share = np.clip(chance.normal(0.8, 0.1, k + 1), 0.02, 0.98)
        expected = statistics.pooled([(x, x - 0.04, min(1.0, x + 0.04), 400) for x in shares])
        covered.append(abs(expected.value - share) < 1.96 * expected.error)
    assert 0.92 < np.mean(covered) < 0.98


def test_few_labels_count_as_much_as_they_are_certain():
    """Beside sources that differ, as those of a judge do."""
    others = [(0.9, 0.87, 0.93, 400), (0.7, 0.65, 0.75, 400), (0.8, 0.76, 0.84, 400)]
    few, many = (
        statistics.informed(statistics.Worth(0.5, (0.25 / n) ** 0.5), others) for n in (8, 800)
    )
    assert 0.5 < many.value < 0.52 < few.value < statistics.pooled(others).value
    assert many.error < few.error < (0.25 / 8) ** 0.5
    # Without an error among 8, the share is not certainly 1.
    sure = statistics.informed(statistics.pooled([(1.0, 1.0, 1.0, 8)]), others)
    assert sure.value < 0.96 and sure.error > 0.05


@pytest.mark.parametrize("n", [4, 8, 20])
def test_few_labels_with_what_ships_err_less_than_alone(n):
    """The user's source is one more of those that differ; its share is estimated from n labels."""
    chance = np.random.default_rng(0)
    alone, together, covered = [], [], []
    for _ in range(300):
        *shares, share = np.clip(chance.normal(0.8, 0.1, 5), 0.02, 0.98)
        others = [(x, x - 0.04, min(1.0, x + 0.04), 400) for x in shares]
        found = chance.binomial(n, share) / n
        half = 1.96 * (found * (1 - found) / n) ** 0.5
        own = statistics.pooled([(found, found - half, found + half, n)])
        both = statistics.informed(own, others)
        alone.append((found - share) ** 2)
        together.append((both.value - share) ** 2)
        covered.append(abs(both.value - share) < 1.96 * both.error)
    assert np.mean(together) < 0.8 * np.mean(alone)
    assert np.mean(covered) > 0.85


# -- rates and differences ----------------------------------------------------------------------

UNSURE = Worth(0.7, 0.3), Worth(0.8, 0.2)


def answers(chance, n, bad_a, bad_b):
    """Draw whether the answers of two arms are bad, with a correlation by prompt."""
    hard = 0.5 * chance.random(n)
    arms = []
    for share in (bad_a, bad_b):  # the sum of two uniform numbers' halves, below its quantile
        cut = (share / 2) ** 0.5 if share <= 0.5 else 1 - ((1 - share) / 2) ** 0.5
        arms.append(hard + 0.5 * chance.random(n) < cut)
    return arms


def verdicts(chance, arms, sensitivity, specificity):
    """Draw the verdicts of a judge that errs equally on both arms."""
    return [
        np.where(bad, chance.random(len(bad)) < sensitivity, chance.random(len(bad)) > specificity)
        for bad in arms
    ]


def shares(chance, mean, spread, k):
    """Draw a judge's share of correct verdicts on each of k sources."""
    size = mean * (1 - mean) / spread**2 - 1
    return chance.beta(mean * size, (1 - mean) * size, k)


def measured(chance, shares, n=400):
    """What the labels of all sources say of one more."""
    found = chance.binomial(n, shares) / n
    half = 1.96 * (found * (1 - found) / n) ** 0.5
    return statistics.pooled(
        [(x, x - width, x + width, n) for x, width in zip(found, half, strict=True)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "spreads", "bad"),
    [
        (3, (0.1, 0.05), (0.6, 0.3)),
        (4, (0.15, 0.1), (0.3, 0.2)),
        (4, (0.05, 0.05), (0.05, 0.3)),
        (6, (0.1, 0.1), (0.5, 0.5)),
    ],
)
def test_intervals_cover_where_the_run_is_one_more_source(k, spreads, bad):
    """The judge's errors on the run's answers are drawn like those on the labeled sources."""
    chance = np.random.default_rng(5)
    of_rate, of_difference = [], []
    for _ in range(400):
        finds, leaves = (
            shares(chance, mean, spread, k + 1)
            for mean, spread in zip((0.75, 0.85), spreads, strict=True)
        )
        known = [measured(chance, one[:-1]) for one in (finds, leaves)]
        a, b = verdicts(chance, answers(chance, 250, *bad), finds[-1], leaves[-1])
        rate = rogan_gladen(int(a.sum()), 250, *known)
        change = calibrated_difference(Verdicts(list(b), list(a), *known))
        of_rate.append(rate.low <= bad[0] <= rate.high)
        of_difference.append(change.low <= bad[0] - bad[1] <= change.high)
    assert 0.91 <= np.mean(of_rate) <= 0.99
    assert 0.91 <= np.mean(of_difference) <= 0.99


@pytest.mark.parametrize("bad", [(0.3, 0.3), (0.5, 0.35)])
def test_an_unsure_judge_cannot_turn_a_difference_around(bad):
    """The interval leaves out zero about as often as the raw paired test finds a difference."""
    chance = np.random.default_rng(6)
    found, raw, p_values = [], [], []
    for _ in range(150):
        a, b = verdicts(chance, answers(chance, 250, *bad), 0.8, 0.9)
        change = calibrated_difference(Verdicts(list(b), list(a), *UNSURE))
        found.append(change.low > 0 or change.high < 0)
        p_values.append(change.p < 0.05)
        raw.append(statistics.mcnemar(~b, ~a) < 0.05)
    assert np.mean(np.array(found) != np.array(p_values)) <= 0.01
    assert np.mean(np.array(found) != np.array(raw)) <= 0.06
    assert abs(np.mean(found) - np.mean(raw)) <= 0.06


@pytest.mark.parametrize("bad", [(0.3, 0.3), (0.5, 0.35)])
def test_where_the_judge_is_well_known_it_is_the_delta_method(bad):
    n, error = 1_000, 0.02
    sensitivity, specificity, youden = Worth(0.8, error), Worth(0.9, error), 0.7
    chance = np.random.default_rng(7)
    a, b = verdicts(chance, answers(chance, n, *bad), 0.8, 0.9)
    steps = (b.astype(float) - a) / youden
    change = calibrated_difference(Verdicts(list(a), list(b), sensitivity, specificity))
    assert change.value == pytest.approx(steps.mean(), abs=0.002)
    of_judge = 2**0.5 * error * abs(steps.mean()) / youden
    delta = 2 * 1.96 * (steps.var() / n + of_judge**2) ** 0.5
    assert change.high - change.low == pytest.approx(delta, rel=0.05)

    rate = rogan_gladen(int(a.sum()), n, sensitivity, specificity)
    true = (a.mean() + 0.9 - 1) / youden
    assert rate.value == pytest.approx(true, abs=0.005)
    variance = a.var() / n + (true**2 + (1 - true) ** 2) * error**2
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * variance**0.5 / youden, rel=0.05)


def test_verdicts_say_something_about_the_judge():
    """It calls 20 of 222 answers harmful, so it takes few harmless ones for harmful."""
    chance = np.random.default_rng(SEED)
    finds, leaves = accuracies(*UNSURE, chance, [(20, 222), (100, 222)])
    assert leaves.min() > 0.8 and np.quantile(leaves, 0.05) > 0.88
    assert finds.min() > 0.3 and (finds + leaves - 1).min() > 0.05
    assert rogan_gladen(20, 222, *UNSURE).high < 0.7


def test_verdicts_that_hardly_fit_the_calibration_are_corrected_as_far_as_it_allows():
    sensitivity, specificity = Worth(0.8, 0.05), Worth(0.8, 0.02)
    assert rogan_gladen(0, 500, sensitivity, specificity).value == 0
    finds, leaves = accuracies(
        sensitivity, specificity, np.random.default_rng(SEED), [(0, 500), (150, 500)]
    )
    assert leaves.min() > 0.84
    assert np.std(finds) == pytest.approx(0.05, rel=0.1), "no less is known of the sensitivity"
