"""Text: as one line, as words, and what counts as the same text."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

# Scripts without spaces between words: Thai, kana, Chinese characters.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff"
# Vowel signs and other marks inside words, which `\w` leaves out: those of Arabic, and the scripts
# of India with all their signs but the danda, which ends a sentence.
MARKS = (
    "\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed"
    "\u0900-\u0963\u0966-\u0dff"
)

# A point ends no sentence behind one digit or two, which number a list; behind more, a year does.
_end = re.compile(
    r"(?:(?<!\d)\.|(?<=\d{3})\.|[!?])(?:[\"'”’“»)\]]|[ \u00a0\u202f]»)*(?=\s|$)"
    r"|[؟۔।॥][\"'”’»)\]]*|[。！？][”’」』）]*",
)
_unspaced = re.compile(f"[{UNSPACED}]")
_words = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}_])[\w'’{MARKS}])+")


def quoted(word: object) -> str:
    """Return a path or a name as one word of a command for a shell."""
    return shlex.quote(str(word))


def distinct(words: Sequence[str], n: int = 3) -> float:
    """Return the share of distinct n-grams in a text; 0 if it has none.

    Source: distinct-n, Li et al. (2016), arXiv 1510.03055.
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def words_of(text: str) -> list[str]:
    """Split into lower-case words, and into characters in scripts without spaces."""
    return _words.findall(text.lower())


def is_unspaced(character: str) -> bool:
    """Return whether a character belongs to a script without spaces between words."""
    return _unspaced.match(character) is not None


def encodable(text: str) -> str:
    """Return a text as UTF-8 can hold it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def whole_sentences(text: str, most: int | None = None) -> str:
    """Return a text up to the end of its last whole sentence; "" where it has none.

    Quotes and brackets after the end belong to it. The number of a list item, such as "2.", is not
    an end.

    Args:
        text: any text.
        most: maximum number of sentences; None for all.
    """
    ends = [match.end() for match in _end.finditer(text)][:most]
    return text[: ends[-1]] if ends else ""


def one_line(text: str) -> str:
    """Return a text as one printable line, whatever the names and values in it contain."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def same_text(text: str) -> str:
    """Return a text in a form that is equal for copies of it.

    Editors and file systems change line ends, trailing spaces and the Unicode form (NFC, NFD).
    """
    if text.isascii() and "\r" not in text and " \n" not in text and "\t\n" not in text:
        return text.rstrip()  # the fast path for most texts: a suite may have a million
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in lines.split("\n")).rstrip()


def visible(text: str) -> str:
    """Return text with hiding or reordering characters written as codes, such as ⟨U+202E⟩.

    Args:
        text: anything from a model or a file.

    Source: Unicode categories Cc, Cf and Cs; Boucher and Anderson (2021), arXiv 2111.00169.
    """
    return "".join(
        f"⟨U+{ord(c):04X}⟩"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        else c
        for c in text
    )
