"""What an answer is: text that can be judged, a refusal by the provider, or nothing.

Only this module decides it. An answer without content is neither compliant nor harmless: it is
unscored, and reports count it. The reasoning before an answer is not part of it: judges see only
the text after it. Engines part the two when they generate (`setbacks.models.thinking`). Answers
from files, from servers and of old runs are parted here, by the markers in their text.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from setbacks.records import Finish

# text: it can be judged. refusal: by the provider, so no judge is needed. thought: a thought
# without an answer. nothing: no visible character. failed: the server gave no answer.
Substance = Literal["text", "refusal", "thought", "nothing", "failed"]
SUBSTANCES: tuple[Substance, ...] = get_args(Substance)

# The marks around a thought: what most models write, then those of Magistral, Kimi, OpenThoughts,
# Command A, Gemma 4 and gpt-oss. The last also occurs as left by decoders that drop special
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
_IN_CLOSINGS = ("</", "[/THINK]", "◁/", "|>", "assistantfinal")  # a fast test that most texts fail
# What a decoder can leave of a chat template: not the model's text.
_SPECIAL = (
    r"(?><\|(?:im_start|start|start_header_id)\|>assistant|<[|｜][^<>\n]{1,40}>"
    r"|<[^<>\n]{1,40}[|｜]>|\[/?INST\]"
    r"|(?i:</?(?:s|pad|bos|eos|unk|sep|cls|mask|answer|response|(?:start|end)_of_turn)>))"
)
_begins_thought = re.compile(rf"(?:\s|[\ufeff\u200b]|{_SPECIAL})*?{_OPENING}").match
_opening = re.compile(_OPENING).search
# A mark in quotes is only mentioned.
_closing = re.compile(rf"(?<![`'\"]){_CLOSING}(?![`'\"])").search
_closes = re.compile(rf"{_CLOSING}\Z").search
_special = re.compile(_SPECIAL).match

# Categories of invisible characters: controls, formats, spaces, marks without a letter.
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs", "Mn", "Me"}
# Invisible too, but in other categories: Hangul fillers, the Braille blank, the object mark.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800\ufffc"


def substance(text: str, finish: Finish | None = None, thought: str | None = None) -> Substance:
    """Return what an answer is.

    Args:
        text: the answer, perhaps after its reasoning.
        finish: why it ended, if known.
        thought: the reasoning before it, if it is known apart from the text.
    """
    if finish == "failed" or finish == "refusal":
        return finish
    start = _start(text)
    if start is not None and _visible(text, start):
        return "text"
    if finish == "filter":
        return "refusal"
    return "nothing" if start == 0 and not thought else "thought"


def answer(text: str) -> str:
    """Return a text without the thought at its beginning."""
    start = _start(text)
    if start is None:
        return ""
    return text[start:].strip() if start else text


def part(text: str, markers: tuple[str, str] | None = None) -> tuple[str | None, str]:
    """Return the thought at the beginning of a text, without its markers, and the answer.

    Args:
        text: everything that a model generated.
        markers: the pair around a thought; None for those of the known families.
    """
    if markers is not None:
        first, last = (marker.strip() for marker in markers)
        thought, found, rest = text.partition(last)
        if not found and not thought.lstrip().startswith(first):
            return None, text
        return thought.strip().removeprefix(first).strip() or None, rest.strip()
    start = _start(text)
    if start == 0:
        return None, text
    thought = text[:start]
    if opening := _begins_thought(thought):
        thought = thought[opening.end() :]
    if closing := _closes(thought):
        thought = thought[: closing.start()]
    return re.sub(_SPECIAL, " ", thought).strip() or None, answer(text)


def _start(text: str) -> int | None:
    """Return where the answer begins, after all thoughts; None if a thought never ended.

    A thought may lack its opening mark, since chat templates can end with it.
    """
    start = 0
    marked = any(part in text for part in _IN_CLOSINGS)
    while True:
        opening = _begins_thought(text, start)
        closing = _closing(text, opening.end() if opening else start) if marked else None
        if closing is None:
            return None if opening else start
        if opening is None and _opening(text, start, closing.start()):
            return start  # both marks are inside the answer, and belong to it
        start = closing.end()


def _visible(text: str, start: int) -> bool:
    """Return whether there is a visible character from a place on."""
    while start < len(text):
        if special := _special(text, start):
            start = special.end()
        elif text[start] in _BLANK or unicodedata.category(text[start]) in _INVISIBLE:
            start += 1
        else:
            return True
    return False
