"""The words of a recipe: its language, its own words, and its policy.

Files that a recipe names here are replaced by their content when it is read, so that the recipe in
a run folder has every word, and a changed word is a changed recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.prompts import languages
from setbacks.prompts.own import FALLBACK, pack_under
from setbacks.prompts.packs import PLACE, check_part, complete, merged, reference
from setbacks.recipe.parts import Section, file_name

AUTO = "auto"  # the language of each row


def _sentence(text: str) -> str:
    """Return a text of a clause in one line."""
    if place := re.search(PLACE, text):
        raise ValueError(f"{place[0]} would be a place to fill in; write it without braces")
    if not text.strip():
        raise ValueError("must not be empty")
    return " ".join(text.split())


def _sentences(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_sentence, texts))


class Clause(Section):
    """One rule of a policy."""

    id: Annotated[str, file_name()] = Field(
        description="Name of the rule in prompts, verdicts and reports. Rows whose `category` is "
        "this name belong to it."
    )
    text: Annotated[str, AfterValidator(_sentence)] = Field(description="The rule, in a sentence.")
    good: Annotated[tuple[str, ...], AfterValidator(_sentences)] = Field(
        (), description="Examples of answers that keep it."
    )
    bad: Annotated[tuple[str, ...], AfterValidator(_sentences)] = Field(
        (), description="Examples of answers that break it."
    )


def resolved(data: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return a recipe's data with the packs, words and policies in it that it names as files.

    Args:
        data: of a recipe; its values may be of wrong types.
        base: the folder that relative paths start from.

    Raises:
        InputError: a file cannot be read, words do not fit the pack, or there is no such language.
    """
    policy = data.get("policy")
    if isinstance(policy, str):
        policy = _read(base, policy, "policy")
        policy = policy.get("clauses", policy) if isinstance(policy, dict) else policy
    data = {**data, "policy": [] if policy is None else policy}
    language = data.get("language", FALLBACK)
    if not isinstance(language, str):
        return data
    pack: dict[str, Any] | None = None
    if language.endswith((".yaml", ".yml")):
        pack = complete(_read(base, language, "language"), f"language: {language}")
        language = data["language"] = Path(language).stem
    words, where = data.get("words"), "words"
    if isinstance(words, str):
        where = f"words: {words}"
        words = _read(base, words, "words")
    words = {} if words is None else words
    if not isinstance(words, dict):
        raise InputError(f"{where}: must be `key: value` lines, as `setbacks words` prints them")
    by_language = _by_language(words, language, where)
    if pack is not None:
        by_language[language] = merged(pack, by_language.get(language, {}), where)
    for name, part in by_language.items():
        _check(name, part, f"{where}: {name}" if where == "words" else where)
    if language not in (AUTO, *languages(), *by_language):
        raise InputError(
            f'language: unknown language "{language}".{nearest(language, languages())} Available: '
            f"{', '.join((AUTO, *languages()))}, or the path of a pack, such as {language}.yaml"
        )
    return data | {"words": by_language}


def _by_language(words: dict[str, Any], language: str, where: str) -> dict[str, Any]:
    """Return own words by language, if they are not already."""
    known = reference().keys()
    if not words.keys() & known:
        if unknown := [key for key in words if not _names_a_language(key, words[key])]:
            hint = nearest(str(unknown[0]), (*known, *languages()))
            raise InputError(f'{where}: unknown key "{unknown[0]}".{hint}')
        return dict(words)
    if language == AUTO:
        raise InputError(
            f"{where}: with `language: {AUTO}`, put the words of each language under its name, "
            f"such as `{FALLBACK}:`"
        )
    return {language: words}


def _names_a_language(key: Any, part: Any) -> bool:
    """Whether a key of own words is a language: it has a pack, or one comes with it."""
    return key in languages() or (isinstance(part, dict) and "name" in part)


def _check(name: str, part: Any, where: str) -> None:
    """Check own words for one language: a part of its pack, or a pack of their own."""
    check_part(part, where)
    merged(pack_under(name), part, where)


def _read(base: Path, path: str, key: str) -> Any:
    file = base / expanded(path)
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{key}: {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {file}: cannot be read as text: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{key}: {file}: not YAML: {' '.join(str(error).split())}") from None
