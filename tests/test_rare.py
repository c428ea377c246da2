"""Rates of rare events in clusters: exact where there is nothing to estimate from, and honest."""

import numpy as np
import pytest
from scipy.stats import binomtest

from setbacks.measure.statistics import Difference, Estimate, Verdicts, Worth, calibrated_difference
from setbacks.measure.statistics.rare import (
    at_most,
    clustered_difference,
    clustered_rate,
    true_difference,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10_000), (3, 500), (250, 500), (500, 500)])
def test_without_clusters_it_is_the_interval_of_clopper_and_pearson(hits, n):
    events = np.zeros(n, int)
    events[:hits] = 1
    rate = clustered_rate(events, np.ones(n, int))
    exact = binomtest(hits, n).proportion_ci(0.95, "exact")
    assert rate == pytest.approx((hits / n, exact.low, exact.high, n))


def test_without_events_the_bound_counts_the_clusters():
    """Ten users with 1,000 conversations each say little more than ten conversations do."""
    rate = clustered_rate([0] * 10, [1_000] * 10)
    assert rate.high == pytest.approx(binomtest(0, 10).proportion_ci(0.95, "exact").high)
    assert rate[:2] == (0, 0) and rate.n == 10_000


def test_clusters_whose_outcomes_are_independent_cost_nothing():
    random = np.random.default_rng(0)
    sizes = np.full(2_000, 5)
    rate = clustered_rate(random.binomial(sizes, 0.1), sizes)
    one_by_one = binomtest(round(rate.value * 10_000), 10_000).proportion_ci(0.95, "exact")
    assert rate.high - rate.low == pytest.approx(one_by_one.high - one_by_one.low, rel=0.1)


def test_nothing_observed_is_no_rate():
    assert clustered_rate([], []) == Estimate(None, None, None, 0)
    assert clustered_difference([], [], []) == Difference(None, None, None, 0, None)


def users(random, p, alike, k, tail=None):
    """Draw the sizes of k users' clusters, Pareto's with a tail, and the events in them."""
    if tail is None:
        sizes = random.geometric(0.1, k)
    else:
        sizes = np.maximum(1, (random.pareto(tail, k) * 10).astype(int))
    scale = (1 - alike) / alike
    return random.binomial(sizes, random.beta(p * scale, (1 - p) * scale, k)), sizes


@pytest.mark.parametrize(
    ("p", "alike", "k"),
    [(0.0002, 0.1, 500), (0.002, 0.3, 2_000), (0.002, 0.01, 2_000), (0.05, 0.3, 500)],
)
def test_the_interval_holds_its_level(p, alike, k):
    random = np.random.default_rng(1)
    rates = [clustered_rate(*users(random, p, alike, k)) for _ in range(400)]
    covered = np.mean([rate.low <= p <= rate.high for rate in rates])
    assert covered >= 0.93  # 0.95, less two standard errors of the simulation


@pytest.mark.parametrize(("p", "alike"), [(0.05, 0.14), (0.02, 0.1)])
@pytest.mark.parametrize("k", [200, 1_000])
@pytest.mark.parametrize(("tail", "level"), [(1.2, 0.89), (2, 0.92)])
def test_a_few_users_who_write_most_conversations_cost_little_of_the_level(
    p, alike, k, tail, level
):
    random = np.random.default_rng(3)
    rates = [clustered_rate(*users(random, p, alike, k, tail)) for _ in range(1_000)]
    assert np.mean([rate.low <= p <= rate.high for rate in rates]) >= level
    assert np.mean([rate.high < p for rate in rates]) <= 1 - level


@pytest.mark.parametrize(("more", "less", "alike"), [(0.001, 0.001, 0.1), (0.02, 0.01, 0.3)])
def test_the_interval_of_a_difference_holds_its_level(more, less, alike):
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        only_a, sizes = users(random, more, alike, 500)
        scale = less / (1 - more) * (1 - alike) / alike, (1 - less / (1 - more)) / alike
        only_b = random.binomial(sizes - only_a, random.beta(*scale, 500))
        change = clustered_difference(only_a, only_b, sizes)
        covered += change.low <= more - less <= change.high
    assert covered / 400 >= 0.93


@pytest.mark.parametrize(("more", "less", "n"), [(0.3, 0.3, 1_000), (0.45, 0.45, 500)])
def test_the_interval_of_a_difference_holds_its_level_at_large_shares(more, less, n):
    random, one = np.random.default_rng(0), np.ones(n, int)
    covered = 0
    for _ in range(400):
        pair = random.choice(3, n, p=(more, less, 1 - more - less))
        change = clustered_difference(pair == 0, pair == 1, one)
        covered += change.low <= more - less <= change.high
    assert covered / 400 >= 0.93


def test_models_that_differ_in_every_pair_have_a_difference_within_bounds():
    events, one = np.zeros(100, int), np.ones(100, int)
    events[:60] = 1
    change = clustered_difference(events, 1 - events, one)
    exact = binomtest(60, 100).proportion_ci(0.95, "exact")
    assert change[:3] == pytest.approx((0.2, 2 * exact.low - 1, 2 * exact.high - 1))
    assert clustered_difference(one, 1 - one, one).value == 1


def test_models_without_a_difference_are_not_known_to_be_equal():
    change = clustered_difference(np.zeros(1_000, int), np.zeros(1_000, int), np.ones(1_000, int))
    assert change.value == 0 and change.high == -change.low == pytest.approx(0.0037, abs=1e-4)


@pytest.mark.parametrize("specificity", [0.9, 0.999])
def test_a_bound_holds_what_a_judge_overlooks_whatever_its_false_alarms(specificity):
    random, truth, n, labels, sensitivity = np.random.default_rng(3), 0.004, 5_000, 100, 0.7
    held = 0
    for _ in range(400):
        seen = random.binomial(n, truth * sensitivity + (1 - truth) * (1 - specificity))
        found = random.binomial(labels, sensitivity) / labels
        worth = Worth(found, (found * (1 - found) / labels) ** 0.5)
        events = np.zeros(n, int)
        events[:seen] = 1
        held += at_most(clustered_rate(events, np.ones(n, int)), worth) >= truth
    assert held / 400 >= 0.95


def test_without_knowledge_there_is_no_bound():
    rate = Estimate(0.01, 0.005, 0.02, 1_000)
    assert at_most(rate, Worth(0.5, 0.0)) == pytest.approx(0.04, abs=1e-5)
    assert at_most(rate, Worth(0.1, 0.06)) is None
    assert at_most(rate, Worth(0.9, 0.01)) > 0.02 / 0.9
    assert at_most(Estimate(None, None, None, 0), Worth(0.9, 0.01)) is None
    assert at_most(Estimate(0.9, 0.8, 0.95, 9), Worth(0.5, 0.01)) == 1


def test_a_true_difference_is_that_of_the_gate():
    """For pairs without clusters: the two differ only in the limits of the sampling error."""
    random = np.random.default_rng(4)
    a, b = random.random(20_000) < 0.3, random.random(20_000) < 0.25
    sensitivity, specificity = Worth(0.8, 0.02), Worth(0.9, 0.02)
    judged = clustered_difference(a & ~b, b & ~a, np.ones(20_000, int))
    ours = true_difference(judged, sensitivity, specificity)
    theirs = calibrated_difference(Verdicts(list(a), list(b), sensitivity, specificity))
    # One is of the bad answers, the other of the good ones.
    assert ours.value == pytest.approx(-theirs.value, rel=0.01)
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low), abs=0.002)
    assert true_difference(judged, Worth(0.5, 0.01), Worth(0.5, 0.01)).value is None
