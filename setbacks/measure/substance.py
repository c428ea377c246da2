"""What an answer is: text that can be judged, a refusal by the provider, or nothing at all.

Only this module decides it. An empty answer is neither compliant nor harmless: it is unscored, and
reports count it. The reasoning that a model writes before its answer is not part of the answer:
judges see only what follows it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from setbacks.records import Finish

# text: can be judged. refusal: by the provider, so no judge sees it. thought: reasoning without an
# answer after it. nothing: no visible character. failed: never came from the server.
Substance = Literal["text", "refusal", "thought", "nothing", "failed"]
SUBSTANCES: tuple[Substance, ...] = get_args(Substance)

# The marks around a thought: what most models write, then those of Magistral, Kimi, OpenThoughts,
# Command A, Gemma 4 and gpt-oss. Decoders that drop special tokens leave the last ones as
# "analysisThe user wants ... assistantfinalHere is ...".
_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
_OPENING = (
    rf"(?:(?i:<{_NAME}>)|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel>thought\b|<\|channel\|>(?:analysis|commentary)\b|(?<!\w)analysis(?=[A-Z]))"
)
_CLOSING = (
    rf"(?:(?i:</{_NAME}>)|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<channel\|>|<\|channel\|>final(?:<\|message\|>)?|assistantfinal)"
)
_IN_CLOSINGS = (
    "</",
    "[/THINK]",
    "◁/",
    "|>",
    "assistantfinal",
)  # a quick test
# Remains of a chat template that a decoder may leave: the model did not write them.
_SPECIAL = (
    r"(?><\|(?:im_start|start|start_header_id)\|>assistant|<[|｜][^<>\n]{1,40}>"
    r"|<[^<>\n]{1,40}[|｜]>|\[/?INST\]"
    r"|(?i:</?(?:s|pad|bos|eos|unk|sep|cls|mask|answer|response|(?:start|end)_of_turn)>))"
)
_begins_thought = re.compile(rf"(?:\s|[\ufeff\u200b]|{_SPECIAL})*?{_OPENING}").match
_opening = re.compile(_OPENING).search
# A mark in quotes is a mention, and closes nothing.
_closing = re.compile(rf"(?<![`'\"]){_CLOSING}(?![`'\"])").search
_special = re.compile(_SPECIAL).match

# Categories of invisible characters: controls, formats, blanks, marks without a letter.
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs", "Mn", "Me"}
# Blank characters of other categories: Hangul fillers, the Braille blank, object replacement.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800\ufffc"


def substance(text: str, finish: Finish | None = None) -> Substance:
    """Return what an answer is.

    Args:
        text: all that the model wrote.
        finish: why it ended; None where that is not known.
    """
    if finish == "failed" or finish == "refusal":
        return finish
    start = _start(text)
    if start is not None and _visible(text, start):
        return "text"
    if finish == "filter":
        return "refusal"
    return "nothing" if start == 0 else "thought"


def answer(text: str) -> str:
    """Return the text after the thought that it begins with; the whole text without a thought."""
    start = _start(text)
    if start is None:
        return ""
    return text[start:].strip() if start else text


def _start(text: str) -> int | None:
    """Where the answer begins, after all thoughts; None where a thought never ended.

    A thought may lack its opening mark: chat templates can end with it.
    """
    start = 0
    marked = any(part in text for part in _IN_CLOSINGS)
    while True:
        opening = _begins_thought(text, start)
        closing = _closing(text, opening.end() if opening else start) if marked else None
        if closing is None:
            return None if opening else start
        if opening is None and _opening(text, start, closing.start()):
            return start  # both marks are within the answer, and part of it
        start = closing.end()


def _visible(text: str, start: int) -> bool:
    """Whether there is a visible character from a position on."""
    while start < len(text):
        if special := _special(text, start):
            start = special.end()
        elif text[start] in _BLANK or unicodedata.category(text[start]) in _INVISIBLE:
            start += 1
        else:
            return True
    return False
