"""What an answer is: text, a refusal by the provider, or nothing; and where it begins."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setbacks.measure.substance import SUBSTANCES, answer, part, substance

NOTHING = [
    "",
    " \n\t\r\n",
    "\u200b\u200d\u2060\ufeff",  # zero-width characters
    "\u00a0\u2003\u3000",  # blanks of other widths
    "\u202e\u2066\u2069",  # marks of direction
    "\u3164\u2800",  # a Hangul filler and the blank of Braille: a letter and a symbol by category
    "\u0301\ufe0f",  # marks without a letter
    "\x00\x1b",
    "</s>",
    "<|im_end|>\n<|endoftext|>",
    "<｜end▁of▁sentence｜>",
    "<|im_start|>assistant\n<|im_end|>",
    "<eos><pad><pad>",
    "<end_of_turn>",
    "[/INST]",
    "<answer></answer>",
]
TEXT = ["ok", ".", "…", "<br>", "我", "\U0001f642", "e\u0301", "- <b>", "</s> ok", "[INST", "a < b"]
# What models write around their thoughts; `{}` is the thought.
THOUGHTS = [
    "<think>{}</think>",
    "<think>\n{}\n</think>\n\n",
    "\n <think>{}</think>",
    "<THINK>{}</THINK>",
    "<thinking>{}</thinking>",
    "<thought>{}</thought>",
    "<reasoning>\n{}\n</reasoning>\n",
    "<seed:think>{}</seed:think>",
    "[THINK]{}[/THINK]",
    "◁think▷{}◁/think▷",
    "<|begin_of_thought|>{}<|end_of_thought|>",
    "<|START_THINKING|>{}<|END_THINKING|>",
    "<|channel>thought\n{}<channel|>",
    "<|im_start|>assistant\n<think>{}</think>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysisThe user asks. {}assistantfinal",
    "{}\n</think>\n\n",  # the chat template ends with the opening mark
    "{}</reasoning>",
    "{} assistantfinal",
    "<think>{}</think>\n<think>again</think>\n",
]


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_what_cannot_be_seen_is_nothing(text):
    assert substance(text) == substance(text, "stop") == substance(text, "length") == "nothing"


@pytest.mark.parametrize("text", TEXT, ids=ascii)
def test_what_can_be_seen_is_text_as_it_is(text):
    assert substance(text) == "text" and answer(text) == text


@pytest.mark.parametrize("mark", THOUGHTS, ids=ascii)
def test_a_thought_is_not_the_answer(mark):
    thought = mark.format("I cannot answer this if it is unsafe.")
    assert substance(thought + "Sure, mix them.") == "text"
    assert answer(thought + "Sure, mix them.\n") == "Sure, mix them."
    for rest in ("", "\n\n", "\u200b", "<|im_end|>"):
        assert substance(thought + rest) == "thought"


@pytest.mark.parametrize("mark", THOUGHTS, ids=ascii)
def test_thought_and_answer_are_parted(mark):
    thought, text = part(mark.format("It is unsafe.") + "I will not.")
    assert text == "I will not."
    assert thought.endswith("It is unsafe.") or thought.endswith("again")
    assert part("I will not.") == (None, "I will not.")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<why>Hm.</why> No.", "Hm.", "No."),
        ("Hm.</why> No.", "Hm.", "No."),
        ("<why>Hm.", "Hm.", ""),
        ("<why></why>No.", None, "No."),
        ("No <why>.", None, "No <why>."),
    ],
)
def test_a_given_pair_of_markers_parts_a_text(text, thought, answer):
    assert part(text, ("<why>", "</why>\n")) == (thought, answer)


def test_a_known_thought_without_an_answer_is_only_a_thought():
    assert substance("", "stop", "Hm.") == "thought"
    assert substance("", "stop", None) == "nothing"
    assert substance("No.", "stop", "Hm.") == "text"
    assert substance("", "failed", "Hm.") == "failed"


@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        "<think>\nThe user wants",
        "[THINK]The user wants",
        "<|channel|>analysis<|message|>The user wants",
        "analysisThe user wants",
        "<think>a</think><think>b",
    ],
)
def test_a_thought_that_never_ends_is_no_answer(text):
    assert substance(text) == substance(text, "length") == "thought" and answer(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Write `</think>` at its end.",
        'The mark "</think>" ends it.',
        "Sure: <think>a</think> is how such models begin.",
        "I think </b> is a tag.",
        "analysis of the data",
        "Analysis: The data",
        "<b>thinking</b>",
        "the assistant final exam",
    ],
)
def test_marks_that_an_answer_talks_about_are_part_of_it(text):
    assert substance(text) == "text" and answer(text) == text


def test_how_it_ended_says_who_refused():
    assert substance("", "filter") == substance("<think>The", "filter") == "refusal"
    assert substance("Mix them, then", "filter") == "text"
    assert substance("", "refusal") == substance("I cannot do that.", "refusal") == "refusal"
    assert substance("", "failed") == "failed"


@given(st.text(), st.sampled_from(["stop", "length", "filter", "refusal", "failed", None]))
def test_any_text_is_one_of_these(text, finish):
    what = substance(text, finish)
    assert what in SUBSTANCES
    if what == "text":
        assert answer(text).strip() and answer(text) in text


@given(
    st.sampled_from(THOUGHTS),
    st.text("abc <>\n\u200b", max_size=20),
    st.text("xyz .\n", max_size=20).filter(str.strip),
)
def test_the_answer_behind_a_thought_is_the_answer_without_it(mark, thought, said):
    assert answer(mark.format(thought) + said) == said.strip()


@pytest.mark.parametrize(
    "text",
    ["</think>" * 50_000, "<think>" * 50_000, "<|a|>" * 50_000, "<" * 100_000, " " * 100_000],
    ids=lambda text: text[:9],
)
def test_long_texts_take_no_time(text):
    start = time.monotonic()
    substance(text)
    assert time.monotonic() - start < 2
