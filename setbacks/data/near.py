"""Near-duplicates: a text that repeats most of an earlier one."""

from __future__ import annotations

from collections import Counter

from setbacks.records import digest
from setbacks.text import words_of


class NearIndex:
    """Texts, looked up by what they share.

    A text is near an earlier one if that one contains at least a given share of its word 5-grams.
    Each 5-gram belongs to the first text that has it, so memory grows only with new ones.

    Args:
        threshold: the share, above 0; from 1 on, nothing is near.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._owners: dict[int, int] = {}
        self._texts = 0

    def add(self, text: str) -> None:
        """Remember a text."""
        for shingle in _shingles(text):
            self._owners.setdefault(shingle, self._texts)
        self._texts += 1

    def has_near(self, text: str) -> bool:
        """Return whether an earlier text contains most of this one."""
        if self.threshold >= 1:
            return False
        shingles = _shingles(text)
        owners = Counter(self._owners[s] for s in shingles if s in self._owners)
        return max(owners.values(), default=0) >= self.threshold * len(shingles)


def _shingles(text: str) -> set[int]:
    """Return hashes of a text's word 5-grams."""
    words = words_of(text) or [text]
    return {
        int(digest(*words[start : start + 5])[:12], 16) for start in range(max(1, len(words) - 4))
    }
