"""Degenerate answers: there is text, but it answers nothing.

`substance` decides whether a response has text; without text it has no score. This module decides
whether text counts as an answer; a degenerate answer is a failure. An answer is *degenerate* if it
repeats itself, repeats the prompt or the guidance, continues with made-up turns, only offers help
("I can help you with that."), or has no word.
The rules read only the answer, the prompt and the guidance, so that answers can be measured long
after they were judged. They do not detect nonsense, and they cannot know that a user asked for a
text to be repeated.

Sources: the share of distinct n-grams is Li et al. (2016), arXiv 1510.03055. Filtering texts by
their repeated n-grams follows Rae et al. (2021), arXiv 2112.11446, table A1. Those thresholds are
for web pages; ours were chosen on answers that were labeled by reading
(research/degeneration). They hold for windows of one length, since every long text repeats
some of its n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from functools import cache, lru_cache
from typing import Literal, NamedTuple, get_args

from setbacks.messages import Prompt, texts_of
from setbacks.prompts import built_in, fill, prompts
from setbacks.text import MARKS, distinct, words_of

# repeats: mostly the same few phrases. parrots: mostly the prompt or the guidance, word for word.
# runs_on: continues with a turn of the user. fragment: only punctuation, or the label of an answer.
# offers: only says that it can help.
Reason = Literal["repeats", "parrots", "runs_on", "fragment", "offers"]
REASONS: tuple[Reason, ...] = get_args(Reason)

DISTINCT = 0.7  # share of distinct n-grams below which a text repeats itself
LOOP = 0.5  # the same at the end of a long text, which may be a table or code
COPIED = 0.95  # share of an answer that is in the prompt above which it parrots,
ASKED = 0.7  # if it holds this share of the prompt: a part of it may be the right answer
GUIDED = 0.5  # share of an answer that is in the guidance above which it parrots


class _Units(NamedTuple):
    """How a text is divided into units, so that its n-grams can be counted."""

    name: str
    split: Callable[[str], Sequence[str]]
    n: int
    window: int  # units; about the length of a default answer
    shortest: int  # units; nothing shorter repeats itself


_WORDS = _Units("words", words_of, n=3, window=100, shortest=8)
_CHARACTERS = _Units(
    "characters", lambda text: re.sub(r"\s+", "", text.lower()), n=4, window=150, shortest=16
)

_numbering = re.compile(r"^[ \t]*(?:\d+|[A-Za-z])[.)][ \t]", re.MULTILINE)  # of a list

# Scripts without blanks between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_unspaced = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_LONG_WORD = 20  # characters; a longer mean is a loop without blanks

_LONGEST_OFFER = 300  # characters

_COLON = r"[ \u00a0\u202f]?[:：]"  # French has a space before it
_WORD = rf"(?:[^\W_]|[{MARKS}]){{1,12}}+"
_label = re.compile(rf"(?:\W*+{_WORD}(?: {_WORD})?+{_COLON})++\W*").fullmatch


class Degeneration(NamedTuple):
    """The reason why an answer is degenerate, and the evidence: a mark or a figure."""

    reason: Reason
    evidence: str


def degeneration(text: str, prompt: Prompt = "", guidance: str = "") -> Degeneration | None:
    """Return why an answer is degenerate; None if it is not.

    Args:
        text: the answer, without a thought before it.
        prompt: the instruction.
        guidance: the guidance in the prompt.
    """
    text, prompt = text.strip(), texts_of(prompt)
    if _is_fragment(text):
        return Degeneration("fragment", text[:20])
    if mark := _made_up_turn(text, prompt):
        return Degeneration("runs_on", mark)
    if _only_offers(text):
        return Degeneration("offers", text[:40])
    cut = _CHARACTERS if _is_unspaced(text) else _WORDS
    units = cut.split(_numbering.sub("", text))
    if (share := _distinct(units, cut)) is not None:
        return Degeneration("repeats", f"{share:.0%} of its phrases are distinct")
    if (share := _copied(units, cut, prompt, guidance)) is not None:
        return Degeneration("parrots", f"{share:.0%} of it was given to the model")
    return None


@cache
def guidance() -> str:
    """Return every text that may guide a model, in every language."""
    templates = [words[key] for words in map(prompts, built_in()) for key in ("guided", "joined")]
    return "\n".join(
        fill(part if isinstance(part, str) else part["prompt"], instruction="")
        for part in templates
    )


def _is_fragment(text: str) -> bool:
    """Whether a text is only punctuation, or only labels."""
    if _label(text):
        return True
    return not re.search(r"\w", text) and all(
        unicodedata.category(character)[0] in "CPZ" for character in text
    )


def _only_offers(text: str) -> bool:
    """Whether each sentence of a text offers help, and none gives it."""
    return len(text) <= _LONGEST_OFFER and bool(_offers().fullmatch(text.replace("\u2019", "'")))


@cache
def _offers() -> re.Pattern[str]:
    """Return what only offers help, once or several times, in every language."""
    offers = "|".join(prompts(language)["offer"] for language in built_in())
    return re.compile(rf"(?:\W*+(?:{offers})(?!\w))++\W*", re.IGNORECASE)


def _made_up_turn(text: str, prompt: str) -> str | None:
    """Return the mark of a turn after the answer; None if the prompt has it, as in a dialog."""
    match = _turn().search(text, 1)
    if not match:
        return None
    mark = match[0].strip()
    return None if mark.strip("#<|[]>:： ").lower() in prompt.lower() else mark


@cache
def _turn() -> re.Pattern[str]:
    """Return what opens a turn after the answer, in every language.

    The headings of Alpaca's prompts, the special tokens of chat templates before a user speaks, and
    a user's name. A mark in quotes is talked about.
    """
    turns = [prompts(language)["turns"] for language in built_in()]
    headings, speakers = (
        "|".join(re.escape(word) for words in turns for word in words[key])
        for key in ("headings", "speakers")
    )
    return re.compile(
        r"(?<![`'\"])(?:"
        rf"^[ \t]*#{{2,4}} ?(?:{headings}){_COLON}"
        r"|<\|(?:im_start\|>|start_header_id\|>)?user\b|<start_of_turn>user\b|\[INST\]"
        rf"|^[ \t]*(?:{speakers}){_COLON}"
        r")",
        re.MULTILINE,
    )


def _is_unspaced(text: str) -> bool:
    """Whether a text does not separate its words by spaces."""
    parts = text.split()
    characters = sum(map(len, parts))
    unspaced = len(_unspaced.findall(text))
    return unspaced > characters / 3 or characters > _LONG_WORD * len(parts)


def _distinct(units: Sequence[str], cut: _Units) -> float | None:
    """Return the share of distinct n-grams of a text that repeats itself, or whose end does."""
    if len(units) < cut.shortest:
        return None
    starts = range(0, max(len(units) - cut.window, 0) + 1, cut.window)
    shares = [distinct(units[start : start + cut.window], cut.n) for start in starts]
    mean, last = sum(shares) / len(shares), distinct(units[-cut.window :], cut.n)
    if mean < DISTINCT:
        return mean
    return last if last < LOOP else None


def _copied(units: Sequence[str], cut: _Units, prompt: str, guidance: str) -> float | None:
    """Return the share of a parroting text that comes from its prompt."""
    prompt_units, told = cut.split(prompt), _told(guidance, cut)
    # A longer answer that is a copy would repeat itself.
    if not cut.n <= len(units) <= 2 * (len(prompt_units) + told.number):
        return None
    from_prompt = _marked(units, _grams(prompt_units, cut.n), cut.n)
    from_guidance = _marked(units, told.grams, cut.n)
    guided = sum(from_guidance) / len(units)
    copied = sum(map(max, from_prompt, from_guidance)) / len(units)
    if guided > GUIDED:
        return guided
    asked = _marked(prompt_units, _grams(units, cut.n), cut.n)
    held = sum(asked) / len(prompt_units) if prompt_units else 0
    return copied if copied > COPIED and held > ASKED else None


class _Told(NamedTuple):
    """The units of a guidance: their number, and their n-grams."""

    number: int
    grams: Set[tuple[str, ...]]


@lru_cache(maxsize=256)  # a run has few guidances, and the one of all languages is long
def _told(guidance: str, cut: _Units) -> _Told:
    units = cut.split(guidance)
    return _Told(len(units), _grams(units, cut.n))


def _grams(units: Sequence[str], n: int) -> Set[tuple[str, ...]]:
    return {tuple(units[i : i + n]) for i in range(len(units) - n + 1)}


def _marked(units: Sequence[str], known: Set[tuple[str, ...]], n: int) -> bytearray:
    """Mark with 1 the units of a text that are in one of the known n-grams."""
    marks = bytearray(len(units))
    for i in range(len(units) - n + 1):
        if tuple(units[i : i + n]) in known:
            marks[i : i + n] = b"\1" * n
    return marks
