"""`setbacks doctor`: what this machine can run, and what works with a model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from typing import NamedTuple


class Check(NamedTuple):
    """The result of one check; `needed` if nothing works without it."""

    name: str
    ok: bool
    found: str
    needed: bool = True


def show(checks: Iterable[Check], as_json: bool = False) -> bool:
    """Print checks as they finish, or all as JSON; return whether everything needed is ok.

    Args:
        checks: the results.
        as_json: print a JSON list instead of lines.
    """
    shown = []
    for check in checks:
        shown.append(check)
        if as_json:
            continue
        mark = "ok" if check.ok else ("MISSING" if check.needed else "-")
        print(
            textwrap.fill(
                check.found,
                100,
                initial_indent=f"{mark:<8}{check.name:<21} ",
                subsequent_indent=" " * 30,
                break_on_hyphens=False,
                break_long_words=False,
            ),
            flush=True,
        )
    if as_json:
        print(json.dumps([check._asdict() for check in shown], indent=1))
    return all(check.ok for check in shown if check.needed)
