"""Files: paths as a user writes them, and writes that survive a crash and stay private."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.errors import InputError, SetbacksError


class NoHome(InputError):
    """The user has no home folder, such as a numeric user in a container."""


def expanded(path: Path | str) -> Path:
    """Return a path with a leading `~` or `~user` replaced by the home folder.

    Raises:
        NoHome: the user does not exist, or has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise NoHome(f'{path}: "{user}" has no home folder; use the full path') from None


def user_folder(variable: str, xdg: str, default: str) -> Path:
    """Return a folder of the user, which may not exist yet.

    Args:
        variable: the environment variable of this package that names it.
        xdg: the variable of the XDG base directories for files of this kind.
        default: its place in the home folder, if neither is set.

    Raises:
        NoHome: there is no home folder, and no variable is set.
    """
    if own := os.environ.get(variable):
        return expanded(own).absolute()
    if shared := os.environ.get(xdg):
        return expanded(shared).absolute() / "setbacks"
    try:
        return Path.home() / default / "setbacks"
    except RuntimeError:
        raise NoHome(
            f"this user has no home folder; set HOME, or set {variable} to a writable folder"
        ) from None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is safe from a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a private file in one step: to a temporary file that is synced, then renamed.

    Raises:
        SetbacksError: the disk is full or fails; the old file is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", opener=private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise failed_write(path, error) from error


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file that we wrote.

    Args:
        path: the file.
        remedy: ends the message: what to do if it is damaged.

    Raises:
        InputError: it is not JSON, such as a file that was cut.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"damaged at line {line}" if line else "cannot be read"
        raise InputError(f"{path}: {where}; {remedy}") from None


HARVEST = "harvest.json"  # in every folder of a harvest
NOT_OURS = {".md", ".xml"}  # extensions that no file of a run has
# What a folder with a recipe holds, by what is beside it.
_KINDS = {"loop.json": "loop", "environment.json": "run", "arms": "study"}


def kind_of(folder: Path) -> str | None:
    """Return what a folder of ours holds: a `harvest`, `loop`, `run` or `study`.

    None for other folders, and for those in which no work has been done.
    """
    if (folder / HARVEST).is_file():
        return "harvest"
    if not (folder / "recipe.yaml").is_file():
        return None
    return next((kind for name, kind in _KINDS.items() if (folder / name).exists()), None)


def check_output(path: Path) -> None:
    """Check, before any work, that a file may be written where a user wants it.

    Raises:
        InputError: its folder does not exist, or it is a file of a run, a study, a loop or a
            harvest.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{path}: cannot be written; there is no folder {parent}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and path.suffix not in NOT_OURS and any(map(kind_of, path.resolve().parents)):
        raise InputError(
            f"{path}: is in the folder of a run, a study, a loop or a harvest, and is not "
            "overwritten; name another file"
        )


def own_folder(folder: Path, mark: str, what: str) -> bool:
    """Make a folder, private to its owner, or recognize one of ours.

    Args:
        folder: to make; an empty one may exist.
        mark: name of the file that is in every folder of ours, the first that is written.
        what: the folder holds, for messages.

    Returns:
        Whether the folder is ours already.

    Raises:
        InputError: it cannot be made, or holds something else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror})") from None
    if (folder / mark).exists():
        return True
    if any(entry.name != f"{mark}.tmp" for entry in folder.iterdir()):  # left by a crash
        raise InputError(f"{folder}: not empty, and not {what}; choose another with --out")
    with writing(folder):
        folder.chmod(0o700)
    return False


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, never through a link: an `opener` for `open`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk during work on a path into one line.

    Raises:
        SetbacksError: the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        raise failed_write(path, error) from error


def failed_write(path: Path, error: OSError) -> SetbacksError:
    """Return an error of one line: why a write failed, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetbacksError(
            f"{path}: the disk is full; nothing is lost: free some space, then run the same "
            "command again"
        )
    return SetbacksError(
        f"{path}: cannot be written ({error.strerror}); nothing is lost: fix the cause, then run "
        "the same command again"
    )


@contextlib.contextmanager
def appearing(to: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; at the end it is synced and renamed to `to`, or removed on error.

    Args:
        to: the final path.
        private: whether only its owner can read its files.

    Raises:
        SetbacksError: the disk is full or fails.
    """
    place: Path | None = None
    try:
        to.absolute().parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.absolute().parent))
        yield place
        place.chmod(0o700 if private else 0o755)
        for path in place.rglob("*"):
            if path.is_file():
                path.chmod(0o600 if private else 0o644)
                sync(path)
        place.rename(to)
        sync(to.absolute().parent)
    except OSError as error:
        raise failed_write(to, error) from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
