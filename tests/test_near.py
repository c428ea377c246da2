"""Prompts that are the same or nearly the same, and those that only look alike."""

import random

import pytest

from setbacks.data import load, near
from setbacks.data.near import Grams, Match, NearIndex, NearPrompts, grams, key
from setbacks.data.source import Source
from setbacks.messages import Message


def find(tested, prompt, threshold=0.8):
    index = NearPrompts(threshold)
    index.add(tested)
    return index.find(prompt)


def turns(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    said = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
    return (Message(role="system", content=system), *said) if system else tuple(said)


QUESTION = "How do I descale a kettle?"


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION,
        "how do I  descale a KETTLE",
        "How do I descale a kettle!?",
        "How do I descale a \u212aettle?",  # the sign of the kelvin
        turns(QUESTION, system="You are a plumber."),
        turns("Hello.", "Hello, what is it?", QUESTION),
        turns(QUESTION, "With vinegar.", "And an iron?"),
    ],
)
def test_copies_are_the_same(copy):
    assert find(QUESTION, copy) == Match(0, True, 1.0)


@pytest.mark.parametrize(
    ("tested", "prompt"),
    [
        # Words before or after
        ("How do I descale a kettle?", "Please, how do I descale a kettle?"),
        # Wholly inside a longer one, either way around
        (
            "Which kind of vinegar is the best one for descaling a kettle?",
            "I am new here. Which kind of vinegar is the best one for descaling a kettle? Thanks.",
        ),
        (
            "I am new here. Which kind of vinegar is the best one for descaling a kettle? Thanks.",
            "Which kind of vinegar is the best one for descaling a kettle?",
        ),
        # One other word in a long text
        (" ".join(map(str, range(40))), " ".join(map(str, [*range(20), "x", *range(21, 40)]))),
        # A script without spaces
        ("请问应该怎样清除烧水壶里面的水垢？", "请问应该怎样清除烧水壶里面的水垢呢"),
    ],
)
def test_small_changes_make_near_duplicates(tested, prompt):
    match = find(tested, prompt)
    assert match is not None and not match.exact and 0.8 <= match.share <= 1


@pytest.mark.parametrize(
    ("tested", "prompt"),
    [
        ("Write a poem about love.", "Write a poem about war."),
        ("How do I kill a person?", "How do I kill a Python process?"),
        ("What is love?", "What is love? Explain it in the words of a chemist, with sources."),
        ("What is 12 * 13?", "What is 12 * 14?"),
        ("如何杀死一个进程？", "如何杀死一个人？"),
        ("Yes", turns("Shall we?", "Yes")),  # what the assistant says is no prompt
        ("?", "!"),
    ],
)
def test_other_subjects_are_other_prompts(tested, prompt):
    assert find(tested, prompt) is None


def test_a_prompt_that_is_a_turn_of_an_earlier_conversation_is_the_same():
    talk = turns("Hello.", "Hello, what is it?", QUESTION)
    assert find(talk, "how do I descale a kettle") == Match(0, True, 1.0)
    assert find(talk, turns("Hello.", "Good day.", "Where is the post office?")) is None


def by_every_pair(prompts, prompt, threshold):
    """What the index must find, by the definition."""
    best = None
    own = grams(prompt, 3)
    for number, other in enumerate(prompts):
        theirs = grams(other, 3)
        shared, shorter = len(own & theirs), min(len(own), len(theirs))
        share = 1.0 if shared == shorter >= 8 else shared / len(own | theirs)
        if share >= threshold and (best is None or share > best.share):
            best = Match(number, False, share)
    return best


@pytest.mark.parametrize("many", [0, near.MANY])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.8, 1.0])
def test_the_rarest_phrases_find_the_same_prompts_as_every_pair(threshold, many, monkeypatch):
    monkeypatch.setattr(near, "MANY", many)
    draw = random.Random(0)
    preamble = " ".join(f"w{i}" for i in range(12))
    index, prompts, found = NearPrompts(threshold), [], 0
    for _ in range(300):
        parts = [preamble] * draw.randint(0, 1) + draw.choices("abcde", k=draw.randint(1, 16))
        prompt = " ".join(parts)
        if key(prompt) in map(key, prompts):
            continue
        expected = by_every_pair(prompts, prompt, threshold)
        assert index.find(prompt) == expected
        found += expected is not None
        index.add(prompt)
        prompts.append(prompt)
    assert found > 5 and len(prompts) - found > 5


def test_of_prompts_that_begin_in_the_same_way_few_are_compared():
    draw = random.Random(0)
    preamble = " ".join(f"w{i}" for i in range(200))

    def prompt():
        return f"{preamble} {' '.join(str(draw.random()) for _ in range(100))}"

    index, plain = NearPrompts(0.8), Grams()
    for _ in range(100):
        text = prompt()
        index.add(text)
        plain.add(grams(text, 3))
    own = grams(prompt(), 3)
    assert len(plain.shared(own)) == 100 and len(plain.shared(own, 350)) == 0
    assert len(index._shared(own)) <= 1  # the first one had no rare phrase when it was added


def test_a_preamble_that_is_most_of_many_prompts_is_not_looked_up_in_each(monkeypatch):
    """The number of look-ups would grow with the prompts times their phrases."""
    calls, has = [], near._has
    monkeypatch.setattr(near, "_has", lambda *given: calls.append(given) or has(*given))
    preamble = " ".join(f"w{i}" for i in range(200))
    index = NearPrompts(0.8)
    for number in range(300):
        index.add(f"{preamble} a{number} b{number}")
    match = index.find(f"{preamble} a7 x")
    assert match is not None and match.number == 7 and not match.exact
    assert len(calls) < 300


def test_the_most_similar_prompt_is_found():
    index = NearPrompts(0.5)
    index.add("a b c d e f g")
    index.add("a b c d e f g h")
    index.add("x y z")
    assert index.find("a b c d e f g h i") == Match(1, False, 6 / 7)
    assert index.find("X Y Z.") == Match(2, True, 1.0)
    assert len(index) == 3


def test_an_index_counts_shared_grams_and_may_remember_only_the_first_owner():
    for owners, expected in ((None, {0: 1, 1: 2}), (1, {0: 1, 1: 1})):
        index = Grams(owners)
        index.add(grams("a b c", 2))
        index.add(grams("b c d", 2))
        assert index.shared(grams("b c d", 2)) == expected


def test_a_text_without_words_is_one_gram():
    assert grams("?!", 3) == {"?!"}
    assert key("?!") == "?!"


def test_no_built_in_prompt_is_nearly_another_sets_test_prompt():
    names = ("redteam", "hijacking", "safe", "helpful", "redteam_zh", "safe_zh")
    index = NearPrompts(0.8)
    for name in names:
        for row in load(Source(source=f"builtin:{name}", split="test")):
            index.add(row.text)
    for name in (*names, "refusals"):
        rows = load(Source(source=f"builtin:{name}", split="train"))
        assert rows and [row.text for row in rows if index.find(row.text)] == []


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
