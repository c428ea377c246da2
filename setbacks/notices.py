"""Notices: what a reader should know although nothing failed, such as rows that were left out.

`notice` warns once on the terminal, and adds the line to `run.log` of the open run folder, so that
a report can list it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from setbacks.text import one_line

log = logging.getLogger(__name__)

_keepers: list[Callable[[str], None]] = []


def notice(text: str) -> None:
    """Show a line once on the terminal, and add it to the log of the open run.

    Args:
        text: one line; steps that read the same data again may repeat it.
    """
    line = one_line(text)
    _warn(line)
    if _keepers:
        _keepers[-1](line)


@cache
def _warn(line: str) -> None:
    log.warning("%s", line)


def keep_notices(keep: Callable[[str], None]) -> None:
    """Pass all further notices to `keep` too, until `drop_notices`."""
    _keepers.append(keep)


def drop_notices(keep: Callable[[str], None]) -> None:
    """Stop passing notices to `keep`."""
    _keepers.remove(keep)
