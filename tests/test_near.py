"""Near-duplicates among texts."""

import pytest

from setbacks.data.near import NearIndex

LONG = "the quick brown badger sleeps under the old oak tree near the river"


@pytest.mark.parametrize(
    ("text", "is_near"),
    [
        (LONG, True),
        (LONG.upper() + "!", True),
        (LONG + " today", True),
        (LONG.replace("badger", "otter"), False),
        ("the old oak tree near the river", True),
        ("the quick brown badger", False),
        ("a text about something else entirely, of the same length as that one", False),
    ],
)
def test_a_text_is_near_if_an_earlier_one_has_most_of_its_phrases(text, is_near):
    index = NearIndex(0.7)
    assert not index.has_near(LONG)
    index.add(LONG)
    assert index.has_near(text) is is_near


def test_phrases_count_only_if_they_are_of_one_text():
    index = NearIndex(0.7)
    first, second = "a b c d e f g h", "i j k l m n o p"
    index.add(first)
    index.add(second)
    assert not index.has_near(f"{first} {second}")


def test_chinese_characters_count_as_words():
    index = NearIndex(0.7)
    index.add("这只獾在河边的老橡树下睡觉")
    assert index.has_near("这只獾在河边的老橡树下睡觉了")
    assert not index.has_near("今天的天气非常好我们去散步吧")


def test_a_threshold_of_one_turns_it_off():
    index = NearIndex(1)
    index.add(LONG)
    assert not index.has_near(LONG)
