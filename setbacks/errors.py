"""Errors, each one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What an interrupted command says last.
RESUME = "progress is saved: run the same command to resume"


class SetbacksError(Exception):
    """A failure during the work; the command line prints it as one line and exits with 1."""

    exit_code = 1


class InputError(SetbacksError):
    """Bad input, such as a recipe, a file or an argument; nothing was changed. Exit code 2."""

    exit_code = 2


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a suffix for a message, such as ``' Did you mean "seed"?'``, or nothing.

    Args:
        word: what the user wrote.
        known: the valid names.
        prefix: what to put before the name, such as "train.".
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{prefix}{match[0]}"?' if match else ""
