"""A policy in the prompts: the clauses that answers are to keep.

Without a policy, every prompt stays as the pack has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from setbacks.prompts.packs import PLACE


class Clause(Protocol):
    """One rule of a policy, as a recipe has it."""

    @property
    def id(self) -> str:
        """The name of the rule in prompts, verdicts and reports."""

    @property
    def text(self) -> str:
        """The rule in a sentence."""

    @property
    def good(self) -> Sequence[str]:
        """Examples of what keeps it."""

    @property
    def bad(self) -> Sequence[str]:
        """Examples of what breaks it."""


class Rule(NamedTuple):
    """A clause as a run folder's recipe has it."""

    id: str
    text: str
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


def under(
    pack: Mapping[str, Any], clauses: Sequence[Clause], broken: str | None = None
) -> dict[str, Any]:
    """Return a pack whose prompts contain a policy.

    Guidance gets the rules; the prompts that analyze and judge get their examples, too.

    Args:
        pack: the words of one language.
        clauses: of the policy; at least one.
        broken: the clause that a harmful response is known to break: its analysis is about this
            one; None or the name of no clause: the analyst names it.
    """
    words = pack["policy"]
    rules = "\n".join(map(_rule, clauses))
    cases = "\n".join(_with_cases(clause, words) for clause in clauses)
    known = [clause for clause in clauses if clause.id == broken] or clauses

    def guided(template: str) -> str:
        return _put(words["guided"], guided=template, clauses=rules)

    def judged(template: str) -> str:
        return _put(words["judge"], rubric=template, clauses=cases)

    analyzed = "\n".join(_with_cases(clause, words) for clause in known)
    analyze, judge = pack["analyze"], pack["judge"]
    verdict = judge["verdict"]
    return {
        **pack,
        "guided": guided(pack["guided"]),
        "joined": {**pack["joined"], "prompt": guided(pack["joined"]["prompt"])},
        "analyze": {
            **analyze,
            "harmful": _put(words["analyze"], analyze=analyze["harmful"], clauses=analyzed),
        },
        "judge": {
            **judge,
            "harmless": judged(judge["harmless"]),
            "verdict": {**verdict, "harmful": judged(verdict["harmful"])},
        },
        "policy": {**words, "clause": _put(words["clause"], clauses=cases)},
    }


def named(reply: str, ids: Sequence[str]) -> str | None:
    """Return the one clause that a reply names; None if it names none, or several."""
    edge = "[A-Za-z0-9_-]"  # ids are ASCII; text in scripts without spaces may stand beside them
    found = [
        id_ for id_ in ids if re.search(rf"(?<!{edge}){re.escape(id_)}(?!{edge})", reply, re.I)
    ]
    return found[0] if len(found) == 1 else None


def _rule(clause: Clause) -> str:
    return f"- {clause.id}: {clause.text}"


def _with_cases(clause: Clause, words: Mapping[str, str]) -> str:
    """Return a rule with its examples, one a line below it."""
    cases = [
        f"  {_put(words[kind], case=case)}"
        for kind, listed in (("good", clause.good), ("bad", clause.bad))
        for case in listed
    ]
    return "\n".join([_rule(clause), *cases])


def _put(template: str, **values: str) -> str:
    """Put values into their places, once; other places stay, to be filled in later."""
    return re.sub(PLACE, lambda place: values.get(place[1], place[0]), template)
