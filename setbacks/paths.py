"""Paths as a user writes them, and files that are on the disk for good."""

from __future__ import annotations

import os
from pathlib import Path

from setbacks.errors import InputError


class NoHome(InputError):
    """The user has no home folder, as a numeric user in a container often has none."""


def expanded(path: Path | str) -> Path:
    """Return a path with `~` or `~user` at its beginning replaced by the home folder.

    Raises:
        NoHome: there is no such user, or no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise NoHome(f'{path}: "{user}" has no home folder here; write the full path') from None


def user_folder(variable: str, xdg: str, default: str) -> Path:
    """Return a folder of this user's, which may not be there yet.

    Args:
        variable: our own environment variable that names it.
        xdg: the variable of the XDG base directories for files of this sort.
        default: its place in the home folder, where neither is set.

    Raises:
        NoHome: there is none, and no variable names the folder.
    """
    if own := os.environ.get(variable):
        return expanded(own).absolute()
    if shared := os.environ.get(xdg):
        return expanded(shared).absolute() / "setbacks"
    try:
        return Path.home() / default / "setbacks"
    except RuntimeError:
        raise NoHome(
            f"this user has no home folder; set HOME, or set {variable} to a folder that can be "
            "written"
        ) from None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
