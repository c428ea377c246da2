"""Numbers as people read them: the same rules for pages, the terminal, cards and findings."""

import pytest

from setbacks.measure.formatting import (
    FINE_CHANGE,
    MISSING,
    POINTS,
    SCORE,
    change_with_p,
    clock,
    coefficient,
    counts,
    in_unit,
    is_score,
    listed,
    number,
    of_asked,
    p_equals,
    p_value,
    percent,
    three_digits,
    two_digits,
    unit_of,
    unit_of_change,
    with_interval,
    written,
)
from setbacks.measure.metrics import TITLES
from setbacks.measure.results import Change, Score
from setbacks.measure.statistics import Difference, Estimate

RATE = Estimate(0.6, 0.502, 0.691, 100)
CHANGE = Change(-0.031, -0.08, 0.018, 50, 0.02, 0.0417)
NOTHING = Estimate(None, None, None, 0)
ALONE = Estimate(0.6, None, None, 1)


def test_what_is_not_known_is_a_dash_everywhere():
    for text in (
        number(None),
        percent(None),
        p_value(None),
        coefficient(None),
        coefficient([None, None, None]),
        with_interval(NOTHING),
        with_interval(NOTHING, POINTS),
        written(NOTHING).value,
        in_unit(None, SCORE),
    ):
        assert text == MISSING
    assert written(NOTHING).interval == ""


def test_a_value_without_an_interval_stands_alone():
    assert with_interval(ALONE) == "60.0"
    assert written(ALONE) == ("60.0", "")
    assert coefficient([0.71, None, None]) == "0.71"


def test_minus_signs_are_real_and_zero_has_none():
    assert number(-1.5, 1) == "−1.5"
    assert number(0.5, 1, signed=True) == "+0.5"
    for zero in (0.0, -0.0, -0.001, 0.001):
        assert number(zero, 1, signed=True) == number(zero, 1) == "0.0"
    assert number(-10, 0) == "−10"


def test_rates_are_in_percent_and_scores_as_they_are():
    assert with_interval(RATE) == "60.0 [50.2, 69.1]"
    assert written(RATE) == ("60.0", "50.2 – 69.1")
    assert with_interval(Estimate(6.25, 5.5, 7, 9), SCORE) == "6.25 [5.50, 7.00]"
    assert percent(0.6) == "60.0 %" and percent(0.6, 0) == "60 %"
    assert with_interval(Score(0.6, 0.502, 0.691, 100, 120)) == with_interval(RATE)


def test_differences_have_their_sign():
    assert with_interval(CHANGE, POINTS) == "−3.1 [−8.0, +1.8]"
    assert written(CHANGE, POINTS) == ("−3.1", "−8.0 to +1.8")
    fine = Difference(0.1234, 0.1, 0.2, 9, None)
    assert with_interval(fine, FINE_CHANGE) == "+0.123 [+0.100, +0.200]"


def test_a_difference_in_a_sentence_has_its_interval_and_its_p():
    assert change_with_p(CHANGE) == "−3.1 points (95 % interval −8.0 to +1.8, p = 0.042 corrected)"
    untested = Change(-0.5, -1.0, 0.1, 9, None)
    assert change_with_p(untested, unit_of_change("helpful_score")) == (
        "−0.50 of 10 (95 % interval −1.00 to +0.10, no test)"
    )


@pytest.mark.parametrize(
    ("p", "cell", "sentence"),
    [
        (0.0004, "< 0.001", "p < 0.001"),
        (0.0123, "0.012", "p = 0.012"),
        (1.0, "1.000", "p = 1.000"),
    ],
)
def test_p_values(p, cell, sentence):
    assert (p_value(p), p_equals(p)) == (cell, sentence)


def test_every_metric_is_a_rate_or_a_score():
    scores = {key for key in TITLES if is_score(key)}
    assert scores == {"helpful_score", "harmless_score"}
    assert unit_of("helpful_score") is SCORE and unit_of("balanced_safety").scale == 100


def test_counts_and_lists():
    assert of_asked(90, 120) == "90 of 120" and of_asked(120, 120) == "120"
    assert counts({"vanilla": (3, 24), "sft": (1, 24)}) == "vanilla 3 of 24, sft 1 of 24"
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a", "a and b", "a, b and c"
    ]  # fmt: skip
    assert [three_digits(v) for v in (50.0, -2.071)] == ["50", "−2.07"]
    assert two_digits(2134.5) == "2,100" and two_digits(87.2) == "87"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7380, "2 h 03 min")],
)
def test_durations(seconds, text):
    assert clock(seconds) == text
