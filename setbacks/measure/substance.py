"""What an answer is: text that can be judged, a refusal by the provider, or nothing at all.

This is decided here and nowhere else. An answer that says nothing is neither compliance nor
harmlessness: it is unscored, and reports count it. What a reasoning model thinks before it answers
is not its answer: judges see only what follows the thought.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from setbacks.records import Finish

# text: it can be judged. refusal: by the provider, so that no judge is asked. thought: a thought
# that never came to an answer. nothing: no visible character. failed: a server never gave it.
Substance = Literal["text", "refusal", "thought", "nothing", "failed"]
SUBSTANCES: tuple[Substance, ...] = get_args(Substance)

# The marks around a thought: what most models write, then those of Magistral, Kimi, OpenThoughts,
# Command A, Gemma 4 and gpt-oss. The last is also known as decoders leave it that drop special
# tokens: "analysisThe user wants ... assistantfinalHere is ...".
_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
_OPENING = (
    rf"(?:(?i:<{_NAME}>)|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel>thought\b|<\|channel\|>(?:analysis|commentary)\b|(?<!\w)analysis(?=[A-Z]))"
)
_CLOSING = (
    rf"(?:(?i:</{_NAME}>)|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<channel\|>|<\|channel\|>final(?:<\|message\|>)?|assistantfinal)"
)
_IN_CLOSINGS = ("</", "[/THINK]", "◁/", "|>", "assistantfinal")  # to pass over most texts at once
# What a decoder can leave standing of a chat template: no words of the model.
_SPECIAL = (
    r"(?><\|(?:im_start|start|start_header_id)\|>assistant|<[|｜][^<>\n]{1,40}>"
    r"|<[^<>\n]{1,40}[|｜]>|\[/?INST\]"
    r"|(?i:</?(?:s|pad|bos|eos|unk|sep|cls|mask|answer|response|(?:start|end)_of_turn)>))"
)
_begins_thought = re.compile(rf"(?:\s|[\ufeff\u200b]|{_SPECIAL})*?{_OPENING}").match
_opening = re.compile(_OPENING).search
# A mark in quotes is talked about.
_closing = re.compile(rf"(?<![`'\"]){_CLOSING}(?![`'\"])").search
_special = re.compile(_SPECIAL).match

# Categories of characters with nothing to see: controls, formats, blanks, marks without a letter.
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs", "Mn", "Me"}
# In other categories, but blank: Hangul fillers, the blank of Braille, the place of an object.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800\ufffc"


def substance(text: str, finish: Finish | None = None) -> Substance:
    """Return what an answer is.

    Args:
        text: all that the model wrote.
        finish: why it ended, where that is known.
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
    """Return what follows the thought that a text begins with; a text without one as it is."""
    start = _start(text)
    if start is None:
        return ""
    return text[start:].strip() if start else text


def _start(text: str) -> int | None:
    """Where the answer begins, behind all thoughts; None where a thought never ended.

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
            return start  # both marks stand in the midst of the answer, and belong to it
        start = closing.end()


def _visible(text: str, start: int) -> bool:
    """Whether there is something to read from a place on."""
    while start < len(text):
        if special := _special(text, start):
            start = special.end()
        elif text[start] in _BLANK or unicodedata.category(text[start]) in _INVISIBLE:
            start += 1
        else:
            return True
    return False
