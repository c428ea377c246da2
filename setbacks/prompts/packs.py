"""The form of a pack: the keys of `en.yaml`, and the same places in each prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from setbacks.errors import InputError, nearest

PLACE = r"\{(\w+)\}"
PATTERNS = (
    "analyze.contradicts_harmful",
    "analyze.contradicts_harmless",
    "analyze.contradicts_refusal",
    "analyze.states_refusal",
    "correct.about_prompt",
    "offer",
)
# Prompts that ask for words which the code looks for in the reply: the prompt, and those words.
ASKED_FOR = {
    "judge.harmless": "reply.rating",
    "judge.helpful": "reply.rating",
    "judge.pairwise": "reply.better",
    "joined.prompt": "joined.answer",
}


@cache
def reference() -> dict[str, Any]:
    """Return the English pack, whose form all packs have."""
    text = resources.files(__package__).joinpath("en.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def complete(pack: Any, where: str) -> dict[str, Any]:
    """Return a pack, if it has every key and every place.

    Args:
        pack: plain data.
        where: begins the message.

    Raises:
        InputError: something is missing, unknown or of the wrong form; the message names the key.
    """
    _raise_first(where, _problems(pack, reference(), whole=True))
    _raise_first(where, _unasked(pack))
    return dict(pack)


def check_part(part: Any, where: str) -> None:
    """Check a part of a pack, such as somebody's own words: what is in it has the right form.

    Raises:
        InputError: as `complete`, but nothing is missing.
    """
    _raise_first(where, _problems(part, reference(), whole=False))


def merged(pack: Mapping[str, Any], part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a pack with other words in some places.

    Raises:
        InputError: a prompt does not ask for the words that the code looks for in the reply.
    """

    def put(old: Any, new: Any) -> Any:
        if not isinstance(new, Mapping):
            return new
        return {key: put(value, new.get(key, value)) for key, value in old.items()}

    whole: dict[str, Any] = put(pack, part)
    _raise_first(where, _unasked(whole))
    return whole


def at(pack: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key."""
    value: Any = pack
    for name in key.split("."):
        value = value[name]
    return value


def normal(text: str) -> str:
    """Return a text in the form in which phrases of refusal are compared."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\uff0c", "，")
    return " ".join(text.casefold().split())


def _raise_first(where: str, problems: Iterator[str]) -> None:
    if problem := next(problems, None):
        raise InputError(f"{where}: {problem}")


def _problems(value: Any, model: Any, whole: bool, key: str = "") -> Iterator[str]:
    """Yield what is wrong with a value, in one line each.

    Args:
        value: of a pack.
        model: the value of the reference at the same key.
        whole: whether every key must be there.
        key: the dotted key; empty for the pack.
    """
    if isinstance(model, dict):
        yield from _section_problems(value, model, whole, key)
    elif isinstance(model, list):
        yield from _list_problems(value, model, key)
    elif isinstance(value, bool | int | float):
        yield f"{key}: must be text, not {value}; put quotes around it"
    elif not isinstance(value, str) or not value.strip():
        yield f"{key}: must be text"
    elif key in PATTERNS:
        yield from _pattern_problems(value, key)
    else:
        yield from _place_problems(value, model, key)


def _section_problems(value: Any, model: dict[str, Any], whole: bool, key: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        start = f"{key}: " if key else ""
        yield f"{start}must be `key: value` lines with {', '.join(model)}"
        return
    prefix = f"{key}." if key else ""
    for name, inner in value.items():
        if name not in model:
            yield f'unknown key "{prefix}{name}".{nearest(str(name), model, prefix=prefix)}'
        else:
            yield from _problems(inner, model[name], whole, f"{prefix}{name}")
    if whole and (missing := [name for name in model if name not in value]):
        yield f"{prefix}{missing[0]} is missing; take it from `setbacks words en`"


def _list_problems(value: Any, model: list[str], key: str) -> Iterator[str]:
    if not isinstance(value, list) or not value:
        yield f"{key}: must be a list of texts"
        return
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            yield f"{key}: must be a list of texts, not {entry!r}; put quotes around it"
        elif key.startswith(("refusal.", "reply.")) and entry != normal(entry):
            yield f'{key}: "{entry}" is never found; write "{normal(entry)}"'
        elif key.startswith("refusal."):
            yield from _pattern_problems(entry, key)
    if key == "judge.verdict.options" and len(value) != 2:
        yield f"{key}: must be two words, yes first"


def _pattern_problems(value: str, key: str) -> Iterator[str]:
    try:
        re.compile(value)
    except re.error as error:
        yield f"{key}: not a regular expression: {error}"


def _place_problems(value: str, model: str, key: str) -> Iterator[str]:
    places, known = (set(re.findall(PLACE, text)) for text in (value, model))
    if unknown := sorted(places - known):
        allowed = ", ".join(f"{{{name}}}" for name in sorted(known)) or "none"
        yield f"{key}: unknown place {{{unknown[0]}}}; it can have: {allowed}"
    if missing := sorted(known - places):
        yield f"{key}: the place {{{missing[0]}}} is missing"


def _unasked(pack: Mapping[str, Any]) -> Iterator[str]:
    """Yield the prompts that do not ask for the words which the code looks for."""
    for prompt, words in ASKED_FOR.items():
        wanted = at(pack, words)
        wanted = [wanted] if isinstance(wanted, str) else wanted
        if not any(word.casefold() in at(pack, prompt).casefold() for word in wanted):
            shown = " or ".join(f'"{word}"' for word in wanted)
            yield f"{prompt}: must ask for {shown} ({words}), which is looked for in the reply"
