"""What every format gives: an answer with its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from setbacks.messages import Prompt


class Item(NamedTuple):
    """One answer with its scores; a score is a yes or no, or a number.

    `of` is who answered, such as an arm or a provider, if a file holds several.
    """

    prompt: Prompt
    answer: str | None
    scores: Mapping[str, bool | float]
    of: str = ""
