"""Text as words: what the numbers of several steps count."""

from __future__ import annotations

import re
from collections.abc import Sequence


def distinct(words: Sequence[str], n: int = 3) -> float:
    """Return the share of distinct n-grams in a text; 0 where it is shorter than one.

    Source: distinct-n, Li et al. (2016), arXiv 1510.03055.
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def words_of(text: str) -> list[str]:
    """Split into lower-case words, and into single characters where words are not spaced."""
    unspaced = "\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff"
    return re.findall(rf"[{unspaced}]|(?:(?![{unspaced}_])[\w'’])+", text.lower())
