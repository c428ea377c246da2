"""Words as a recipe has them: the pack of a language, with own words in it, under a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from setbacks.prompts import Words, languages, prompts
from setbacks.prompts.packs import merged
from setbacks.prompts.policy import Clause, under

FALLBACK = "en"  # for a row in a language without a pack


def pack_under(language: str) -> Words:
    """Return the pack that own words in a language replace parts of: English if it has none."""
    return prompts(language if language in languages() else FALLBACK)


def words_of(
    language: str,
    own: Mapping[str, Mapping[str, Any]],
    policy: Sequence[Clause] = (),
    broken: str | None = None,
) -> Words:
    """Return the words of a language: its pack, with own words in it, under a policy.

    Args:
        language: English takes the place of one without a pack.
        own: own words, by language.
        policy: the clauses to keep.
        broken: the clause that a harmful response is known to break, if any.
    """
    name = language if language in own or language in languages() else FALLBACK
    if not policy and name not in own:
        return prompts(name)
    part = json.dumps(own.get(name, {}), sort_keys=True)
    known = next((clause.id for clause in policy if clause.id == broken), None)
    return _composed(name, part, tuple(policy), known)


@lru_cache(maxsize=256)
def _composed(name: str, part: str, policy: tuple[Clause, ...], broken: str | None) -> Words:
    pack = merged(pack_under(name), json.loads(part), f"words: {name}")
    return under(pack, policy, broken) if policy else pack
