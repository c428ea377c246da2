"""Paths as a user writes them, and files that are on the disk for good."""

from __future__ import annotations

import os
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


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
