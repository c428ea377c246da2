"""The words of a recipe: its language, its own words, and its policy.

Files that a recipe names here are replaced by their content when it is read, so that the recipe in
a run folder has every word, and a changed word is a changed recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import json
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.prompts import languages, prompts
from setbacks.prompts.packs import PLACE, check_part, complete, merged, reference
from setbacks.prompts.policy import under
from setbacks.recipe.parts import Section, file_name, unique

AUTO = "auto"


def _sentence(text: str) -> str:
    """Return a text of a clause in one line."""
    if place := re.search(PLACE, text):
        raise ValueError(f"has a place, {place[0]}; write it without braces")
    if not text.strip():
        raise ValueError("must not be empty")
    return " ".join(text.split())


Sentence = Annotated[str, AfterValidator(_sentence)]


class Clause(Section):
    """One rule of a policy."""

    id: Annotated[str, file_name()] = Field(
        description="Name in prompts, verdicts and reports; a row whose `category` it is belongs "
        "to it."
    )
    text: Sentence = Field(description="The rule, in a sentence.")
    good: tuple[Sentence, ...] = Field((), description="Examples of answers that keep it.")
    bad: tuple[Sentence, ...] = Field((), description="Examples of answers that break it.")
