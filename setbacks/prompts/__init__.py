"""All prompts, by language, and the function that fills them in."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

import yaml

from setbacks.messages import Prompt, reworded, transcript

LANGUAGES = ("en", "zh")  # those with prompts


@cache
def prompts(language: str) -> dict[str, Any]:
    """Return the prompts of a language ("en" or "zh") as they stand in its YAML file."""
    text = resources.files(__package__).joinpath(f"{language}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def fill(template: str, **values: Prompt) -> str:
    """Put values into ``{name}`` places, once: braces inside a value stay as they are.

    Args:
        template: text with places such as ``{instruction}``.
        values: what stands in each place; a conversation as its transcript.
    """
    return re.sub(r"\{(\w+)\}", lambda place: transcript(values[place[1]]), template)


def ask(template: str, prompt: Prompt, **values: str) -> Prompt:
    """Put a prompt's last user turn into a template; the turns before it stay as they are.

    Args:
        template: text with a place ``{instruction}`` for that turn.
        prompt: to reword.
        values: what stands in the template's other places.
    """
    return reworded(prompt, lambda text: fill(template, instruction=text, **values))
