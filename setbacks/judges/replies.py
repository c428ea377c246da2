"""Reads the replies of language models that judge: a rating, or the better of two responses.

Chat models decorate what they are asked for: ``**Rating:** 9``, ``Rating: **9/10**``,
``{"rating": 9}``, ``评分：９``. All of these are read. A reply that could mean something else is
not: another scale ("4 out of 5"), a range, two different ratings, half a point (the rubrics ask for
whole numbers). Then the judge is asked again, and after all retries the response is unscored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

from setbacks.measure.substance import answer

T = TypeVar("T")

# Decoration around a word that a guard model writes.
MARKS = r"""[\s*_`"'#>-]*"""
END = r"(?![a-z0-9])"  # of that word: not a mark of emphasis, which an underscore can be

# Full-width characters, and other ways to write a slash.
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(
    map(ord, "⁄∕"), "/"
)
# Marks of a final answer count as the word before them: [[9]], \boxed{9}, <rating>9</rating>.
_FINAL = re.compile(r"\[\[|\\boxed\s*\{|<\s*(?:rating|better)\s*>", re.IGNORECASE)
_TAGS = re.compile(r"</?[a-z][^<>\n]*>", re.IGNORECASE)
_DECORATION = re.compile(r"[*_`\"'“”‘’$\\{}\[\]#]")

_NUMBER = r"[0-9][0-9.,]*"
_RATING = re.compile(
    r"(?<![a-z])(?:rating|[评評]分)\s*"
    r"(?:\(?\s*(?:1\s*(?:-|–|to|到|至)|out\s+of|/)\s*10\s*\)?\s*)?"  # Rating (1-10): 9
    r"[:=|]\s*(?:\(|<(?=[^<>\n]*>))?\s*(?P<sign>[-+–−~≈<>≤≥]?)\s*"
    rf"(?P<number>{_NUMBER})(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
# The top of the scale: behind a rating, or named anywhere.
_OUT_OF = re.compile(
    r"\s*[)>]?\s*(?:points?|pts\.?|分)?\s*,?\s*\(?\s*(?:/|(?:out\s+)?of\b|over\b|满分)\s*[:=]?\s*"
    rf"(?P<top>{_NUMBER})(?P<rest>.*)",
    re.IGNORECASE,
)
_SCALES = re.compile(
    rf"\bscale\s*(?:of|from|is|[:=(])?\s*\(?\s*(?:[01]\s*(?:-|–|to)\s*)?(?P<a>{_NUMBER})"
    rf"|\b(?P<b>[0-9]+)\s*-?\s*(?:point|star)\s+scale|\bmax(?:imum)?\s*[:=]\s*(?P<c>{_NUMBER})"
    rf"|满分\s*[:=]?\s*(?P<d>{_NUMBER})|(?P<e>[0-9]+)\s*分制",
    re.IGNORECASE,
)
# What follows a number that is not a rating: a unit, a range, another number.
_GOES_ON = re.compile(
    r"\s*[)>]?\s*(?:[%/0-9★⭐°]|percent\b|stars?\b|out\s+of\b(?!\s*ten\b)|[-–—~〜]\s*[0-9]|,\s*[0-9])"
    r"|[a-z]"
    r"|\s*(?:(?:to|or|and)\b|或|到|至)[^0-9\n]{0,12}[0-9]",
    re.IGNORECASE,
)
_TEN = re.compile(r"0*10(?:[.,]0*)?[.,]?")
_WHOLE = re.compile(r"0*([1-9]|10)(?:[.,]0+)?")

_ONE = r"(?:response|answer|option|assistant|model|回答|回复|选项)?\s*"
_BETTER = re.compile(
    rf"(?<![a-z])(?:better|更好)\s*{_ONE}(?:is\s*)?[:=|]\s*\(?\s*{_ONE}(?P<one>[AB])(?![a-z0-9])"
    r"(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
# "A" can be an article, and can be one of both.
_NAMED = re.compile(
    r"\s*(?:$|[.,;:!()-]|[–—]|\b(?:is|because|since|as|than|over)\b)", re.IGNORECASE
)
_BOTH = re.compile(rf"\s*(?:[,/&=+]|or\b|and\b|和|或|与)\s*{_ONE}[AB]\b", re.IGNORECASE)


def rating(text: str) -> int | None:
    """Return the one rating from 1 to 10 in an answer; None if there is none, or several."""
    text = _plain(text, "rating")
    scales = [top for match in _SCALES.finditer(text) for top in match.groups() if top]
    if not all(_TEN.fullmatch(top) for top in scales):
        return None
    return _only(map(_score, _RATING.finditer(text)))


def better(text: str) -> str | None:
    """Return the one of two responses, A or B, that an answer names as the better."""
    return _only(map(_choice, _BETTER.finditer(_plain(text, "better"))))


def _plain(text: str, word: str) -> str:
    """Return an answer without the thought before it, and without decoration."""
    text = answer(text).translate(_ASCII)
    text = _FINAL.sub(f" {word}: ", text)
    return _DECORATION.sub(" ", _TAGS.sub(" ", text))


def _score(match: re.Match[str]) -> int | None:
    """Return the rating in one place; None if it is not from 1 to 10."""
    rest = match["rest"]
    if scale := _OUT_OF.match(rest):
        if not _TEN.fullmatch(scale["top"]):
            return None
        rest = scale["rest"]
    score = _WHOLE.fullmatch(match["number"].rstrip(".,"))
    if score is None or match["sign"] or _GOES_ON.match(rest):
        return None
    return int(score[1])


def _choice(match: re.Match[str]) -> str | None:
    """Return the response named in one place; None if both are, or if it is an article."""
    rest = match["rest"]
    return None if _BOTH.match(rest) or not _NAMED.match(rest) else match["one"].upper()


def _only(values: Iterable[T | None]) -> T | None:
    """Return the one value of the list, maybe repeated; None if there are others."""
    different = set(values)
    return different.pop() if len(different) == 1 else None
