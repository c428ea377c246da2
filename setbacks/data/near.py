"""Texts and prompts that are the same, or nearly: indexes by word n-grams.

Two prompts are the *same* if they differ only in case, spaces, Unicode form or final punctuation,
or if one is a whole user turn of the other. They are *nearly the same* if most of their word
3-grams are in both (the Jaccard index), or if the shorter one is wholly inside the longer one and
has ten words or more. One other word among ten changes three 3-grams of eight, so a short question
with another subject is another question: "How do I kill a process?", "How do I kill a person?".
In scripts without spaces, a character counts as a word.

An inverted index gives the exact shares, and takes seconds for 200,000 prompts against 5,000. The
rarest 3-grams of a prompt decide which others are looked at, so a common preamble costs little.
MinHash, the usual method for whole corpora, estimates the shares, which is imprecise for a question
of a few words.
"""

from __future__ import annotations

import math
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from setbacks.messages import Prompt, transcript
from setbacks.text import words_of

NUMBERS = "I"  # the type of texts' numbers in an array
MANY = 10_000  # look-ups of a text in a list, from which on all lists are counted at once
FEWEST = 8  # 3-grams, of ten words, in a prompt that is found inside a longer one


def key(text: str) -> str:
    """Return a text that is equal for prompts that count as the same."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(".?!…。؟। ") or plain


def grams(text: str, size: int) -> set[str]:
    """Return a text's word n-grams; a shorter text is one n-gram."""
    words = words_of(text) or [text]
    return {" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}


class Grams:
    """An inverted index: which texts, by number, contain an n-gram.

    Args:
        owners: number of texts to remember for an n-gram, the earliest; None for all.
    """

    def __init__(self, owners: int | None = None) -> None:
        self._owners: dict[str, array[int]] = {}
        self._most = owners
        self._texts = 0

    def add(self, of_text: Iterable[str]) -> None:
        """Add the n-grams of the next text."""
        for gram in of_text:
            owners = self._owners.setdefault(gram, array(NUMBERS))
            if self._most is None or len(owners) < self._most:
                owners.append(self._texts)
        self._texts += 1

    def number_of(self, gram: str) -> int:
        """Return how many texts have an n-gram."""
        return len(self._owners.get(gram, ()))

    def shared(self, of_text: Collection[str], least: int = 1) -> Counter[int]:
        """Return how many n-grams of a text are in each text of the index that has enough of them.

        Args:
            of_text: the n-grams of a text, each once.
            least: how many are enough. Texts with fewer may be missing.

        Source: prefix filtering, Chaudhuri, Ganti and Kaushik (2006), ICDE: a text that lacks all
        of the rarest `len(of_text) - least + 1` cannot have enough. So the common n-grams are
        counted only for texts that have a rare one.
        """
        none = array(NUMBERS)
        in_order = sorted((self._owners.get(gram, none) for gram in of_text), key=len)
        deciding = len(in_order) - least + 1
        counts: Counter[int] = Counter()
        for owners in in_order[:deciding]:
            counts.update(owners)
        rest = in_order[deciding:]
        if len(counts) * len(rest) > MANY:  # a preamble is most of many texts
            return _added(counts, rest, self._texts)
        for owners in rest:
            if len(owners) < len(counts):
                counts.update(number for number in owners if number in counts)
            else:
                counts.update([number for number in counts if _has(owners, number)])
        return counts

    def shared_with(self, number: int, of_text: Iterable[str]) -> int:
        """Return how many n-grams of a text are in one text of the index."""
        return sum(_has(self._owners.get(gram, ()), number) for gram in of_text)


def _added(counts: Counter[int], lists: Sequence[array[int]], texts: int) -> Counter[int]:
    """Return counts with the number of lists that each text is in; no list is empty.

    Args:
        counts: by the number of a text.
        lists: of numbers of texts.
        texts: number of all texts.
    """
    import numpy as np

    numbers = np.concatenate([np.frombuffer(owners, NUMBERS) for owners in lists])
    more = np.bincount(numbers, minlength=texts)
    return Counter({number: count + int(more[number]) for number, count in counts.items()})


def _has(owners: Sequence[int], number: int) -> bool:
    """Return whether a text is among the owners, which are in order."""
    place = bisect_left(owners, number)
    return place < len(owners) and owners[place] == number


class NearIndex:
    """Texts of any kind, in which one that contains most of another can be found.

    A text is near an earlier one if that one contains at least a given share of its word 5-grams.
    Each 5-gram belongs to the first text that has it, so memory grows only with new ones.

    Args:
        threshold: the share, above 0; from 1 on, nothing is near.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._earlier = Grams(owners=1)

    def add(self, text: str) -> None:
        """Add a text."""
        self._earlier.add(grams(text, 5))

    def has_near(self, text: str) -> bool:
        """Return whether an earlier text contains most of this one."""
        own = grams(text, 5)
        most = max(self._earlier.shared(own).values(), default=0)
        return self.threshold < 1 and most >= self.threshold * len(own)


class Match(NamedTuple):
    """What was found for a prompt.

    Args:
        number: of the found prompt, in the order in which prompts were added.
        exact: whether it is the same, and not only nearly.
        share: of the 3-grams that are in both; 1 if one prompt is wholly inside the other.
    """

    number: int
    exact: bool
    share: float


class NearPrompts:
    """Prompts in which the same prompt, or nearly the same, can be found again.

    Args:
        threshold: share of the 3-grams of two prompts, above 0 and up to 1, that makes them nearly
            the same.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._exact: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._grams = Grams()
        self._sizes: list[int] = []
        self._by_rarest: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, prompt: Prompt) -> None:
        """Add a prompt; its number is how many came before."""
        whole, *turns = _keys(prompt)
        self._exact.setdefault(whole, len(self))
        for turn in turns:
            self._turns.setdefault(turn, len(self))
        own = grams(user_text(prompt), 3)
        # A longer prompt that contains all of this one has this 3-gram.
        rarest = min(own, key=self._grams.number_of)
        self._by_rarest.setdefault(rarest, []).append(len(self))
        self._grams.add(own)
        self._sizes.append(len(own))

    def find(self, prompt: Prompt) -> Match | None:
        """Return the most similar prompt of those that are the same or nearly; None if none is."""
        whole, *turns = _keys(prompt)
        for one in (whole, *turns):
            if one in self._exact:
                return Match(self._exact[one], True, 1.0)
        if whole in self._turns:
            return Match(self._turns[whole], True, 1.0)
        own = grams(user_text(prompt), 3)
        shares = {
            number: _share(shared, len(own), self._sizes[number])
            for number, shared in self._shared(own).items()
        }
        number = min(shares, key=lambda number: (-shares[number], number), default=None)
        if number is None or shares[number] < self._threshold:
            return None
        return Match(number, False, shares[number])

    def _shared(self, own: set[str]) -> Counter[int]:
        """Return the number of 3-grams in common with each prompt that may be nearly the same."""
        # Of both together at least `threshold` are in common, so of one alone, too.
        counts = self._grams.shared(own, math.ceil(self._threshold * len(own) - 1e-9))
        for gram in own:
            for number in self._by_rarest.get(gram, ()):
                if number not in counts and FEWEST <= self._sizes[number] < len(own):
                    counts[number] = self._grams.shared_with(number, own)
        return counts


def _share(shared: int, size: int, other: int) -> float:
    shorter = min(size, other)
    if shared == shorter >= FEWEST:
        return 1.0
    return shared / (size + other - shared)


def _turns(prompt: Prompt) -> list[str]:
    """Return what the user says; system prompts and answers come with many prompts."""
    if isinstance(prompt, str):
        return [prompt]
    return [turn.content for turn in prompt if turn.role == "user"] or [transcript(prompt)]


def user_text(prompt: Prompt) -> str:
    """Return everything that the user says; of a prompt without a user, all of it."""
    return "\n".join(_turns(prompt))


def _keys(prompt: Prompt) -> list[str]:
    """Return the keys of a prompt: of the whole, then of each user turn."""
    turns = _turns(prompt)
    return [key("\n".join(turns)), *(map(key, turns) if len(turns) > 1 else ())]
