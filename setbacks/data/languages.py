"""The language of a row: what its data says, else the recipe's, else what its text looks like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from setbacks.data.source import Row
from setbacks.messages import Prompt, last_user_text
from setbacks.prompts import languages, prompts

# Languages that are recognized even without a pack, so that they do not pass for another.
_COMMON = frozenset(
    "ar bg bn cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv nl no pl pt ro ru sk sl "
    "sv ta th tr uk ur vi zh".split()
)
_SHORT = 25  # letters; a shorter text is taken for one in a language with a pack


def language_of(named: str | None, prompt: Prompt, chosen: str) -> str:
    """Return the language of a row.

    Args:
        named: what the data says, if anything.
        prompt: the instruction; its last user turn counts.
        chosen: the recipe's language; "auto" recognizes it by the text.
    """
    if named:
        return _code(named)
    return chosen if chosen != "auto" else recognized(last_user_text(prompt))


@cache
def _code(named: str) -> str:
    """Return the code of a language that data name: "zh" for "zh-CN", "ZH" and "Chinese"."""
    short = re.split(r"[-_ ]", named.strip().casefold())[0]
    by_name = {str(prompts(code)["name"]).casefold(): code for code in languages()}
    return by_name.get(short, short if re.fullmatch("[a-z]{2,3}", short) else named)


def recognized(text: str) -> str:
    """Return the language of a text, by its ISO 639-1 code; "en" for one without words."""
    letters = sum(map(str.isalpha, text))
    if not letters or (letters < 4 and text.isascii()):
        return "en"
    allowed = frozenset(languages()) if letters < _SHORT else _COMMON.union(languages())
    from py3langid import rank

    return next((language for language, _ in rank(text) if language in allowed), "en")


def languages_measured(rows: Iterable[Row], task: str) -> list[str]:
    """Return the languages of rows with labels of both kinds, where a judge's errors can be seen.

    Args:
        rows: human labels.
        task: "harmful" or "refused".
    """
    kinds: dict[str, set[bool]] = {}
    for row in rows:
        language = language_of(row.language, row.text, "en")
        kinds.setdefault(language, set()).add(bool(getattr(row, task)))
    return sorted(language for language, values in kinds.items() if len(values) == 2)
