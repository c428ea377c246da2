"""How varied answers are: the statistics, and their intervals."""

import numpy as np
import pytest

from setbacks.studies.variety import cut, variety


def test_variety_is_1_where_nothing_is_said_twice_and_low_where_all_say_the_same():
    apart = variety([["a", "b"], ["c", "d"], ["e", "f"]])
    assert {name: found.value for name, found in apart.items()} == pytest.approx(
        {"distinct_1": 1, "distinct_2": 1, "unlikeness": 1}
    )
    same = variety([["a", "b"]] * 4)
    assert same["distinct_1"].value == 2 / 8 and same["distinct_2"].value == 1 / 4
    assert same["unlikeness"].value == pytest.approx(0)
    assert variety([[], [], []])["unlikeness"].value == 0


def test_each_answer_left_out_in_turn_gives_what_the_others_give():
    draw = np.random.default_rng(0)
    answers = [[str(w) for w in draw.integers(0, 9, draw.integers(1, 8))] for _ in range(8)]
    for name, found in variety(answers).items():
        others = [variety(answers[:i] + answers[i + 1 :])[name].value for i in range(8)]
        assert list(found.without) == pytest.approx(others)


def test_the_interval_of_a_difference_covers_it():
    draw, covered, runs = np.random.default_rng(0), 0, 200
    zipf = 1 / np.arange(1, 41)  # some words come often, as they do in a language
    for _ in range(runs):  # both arms draw alike, so the true difference is 0
        one, two = draw.choice(40, (2, 20, 6), p=zipf / zipf.sum()).astype(str)
        found = variety(one)["unlikeness"].minus(variety(two)["unlikeness"])
        covered += found.low <= 0 <= found.high
    assert 0.89 < covered / runs < 0.99


def test_all_answers_to_a_prompt_are_cut_to_the_shortest():
    assert cut([["abc", "de"], ["f", "ghi"]]) == [["a", "de"], ["f", "gh"]]
