"""Text: where its last whole sentence ends."""

import pytest

from setbacks.text import whole_sentences, words_of


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is bad. It is also", "It is bad."),
        ("It is bad.", "It is bad."),
        ("It is bad! Is it? Yes", "It is bad! Is it?"),
        ('She said "stop!" Then she', 'She said "stop!"'),
        ("It happened in 1969. Then", "It happened in 1969."),
        ("1. Boil it.\n2. Wait", "1. Boil it."),
        ("1. Boil it.\n2.", "1. Boil it."),
        ("It costs 3.5 euros and", ""),
        ("no end in sight", ""),
        ("", ""),
        ("它有害。因为", "它有害。"),
        ("它有害！真的？不", "它有害！真的？"),
        ("It is bad.\n\nIt is", "It is bad."),
        ("यह बुरा है।फिर क्या", "यह बुरा है।"),  # often written without a space
        ("“यह बुरा है।” फिर", "“यह बुरा है।”"),
        ("أهو سيئ؟نعم", "أهو سيئ؟"),
        ("Il dit : « Non. » Et", "Il dit : « Non. »"),
    ],
)
def test_a_text_ends_with_its_last_whole_sentence(text, kept):
    assert whole_sentences(text) == kept


@pytest.mark.parametrize(("most", "kept"), [(1, "One."), (2, "One. Two!"), (9, "One. Two! Three?")])
def test_a_text_may_be_cut_after_a_number_of_sentences(most, kept):
    assert whole_sentences("One. Two! Three? Four", most) == kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's hat, again_again", ["the", "cat's", "hat", "again", "again"]),
        ("বাংলা ভাষা, দুঃখিত", ["বাংলা", "ভাষা", "দুঃখিত"]),  # vowel signs are no letters
        ("हिन्दी में।फिर", ["हिन्दी", "में", "फिर"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("天空 blue です", ["天", "空", "blue", "で", "す"]),
    ],
)
def test_words_keep_their_marks(text, words):
    assert words_of(text) == words
