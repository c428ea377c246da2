"""Notices: what a reader should know although nothing failed, such as rows that were left out.

`notice` is the one way to say so. It warns once on the terminal, and keeps the line in `run.log` of
the run folder that is open, so that a report can list it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from setbacks.text import one_line

log = logging.getLogger(__name__)

_keepers: list[Callable[[str], None]] = []


def notice(text: str) -> None:
    """Say something once on the terminal, and keep it in the log of the run that is open.

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
    """Give all further notices to `keep` too, until `drop_notices`."""
    _keepers.append(keep)


def drop_notices(keep: Callable[[str], None]) -> None:
    """Give no more notices to `keep`."""
    _keepers.remove(keep)
