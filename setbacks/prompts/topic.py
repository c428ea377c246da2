"""What a text is about: its words without those that say nothing about a topic."""

from __future__ import annotations

from functools import cache

from setbacks.prompts import Words, prompts
from setbacks.text import words_of


def topic(text: str, words: Words, given: str = "") -> frozenset[str]:
    """Return the words that tell what a text is about.

    Args:
        text: in the language of the pack, or in English.
        words: a pack, which has the stop words of its language.
        given: words that the model did not choose, such as the beginning that it continued; they
            tell nothing.
    """
    return frozenset(words_of(text)) - stop_words(words) - {*words_of(given)}


def stop_words(words: Words) -> frozenset[str]:
    """Return the words that say nothing about a topic: those of a language, and of English."""
    return _split(words["stop_words"]) | _split(prompts("en")["stop_words"])


@cache
def _split(text: str) -> frozenset[str]:
    return frozenset(text.split())
