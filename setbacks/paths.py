"""Paths as a user writes them."""

from __future__ import annotations

from pathlib import Path

from setbacks.errors import InputError


def expanded(path: Path | str) -> Path:
    """Return a path with `~` or `~user` at its beginning replaced by the home folder.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user's home folder") from None
