"""Where records rest: one JSON object a line, appended a batch at a time, fsynced, resumable.

A stage plans its batches from its whole work list; a batch is the unit of commit. A process that is
killed leaves whole batches and, at most, a part of one, which nobody has been shown: it is cut off
and made again, so a resumed file ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import ValidationError

from setbacks.errors import InputError, SetbacksError
from setbacks.records import Record


class Identified(Protocol):
    """A piece of work: `id` is the id that its record will have."""

    @property
    def id(self) -> str:
        """The id of the record to be."""
        ...


R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=Identified)


class Journal(Generic[R]):
    """An append-only file of records of one type.

    Opening it looks at ids alone, so that going on in a folder of a million records costs little;
    the records are parsed when somebody reads them.

    Args:
        path: the file; made when the first batch is committed.
        kind: the type of its records.
        log: told of a repair, in one line.
    """

    def __init__(self, path: Path, kind: type[R], log: Callable[[str], None]) -> None:
        self.path = path
        self.kind = kind
        self.log = log
        self._lines = _read(path, log)
        self._records: list[R] = []  # parsed so far: never more than there are lines
        self._at = 0  # how many records the batches so far have accounted for

    @property
    def records(self) -> list[R]:
        """All the records on disk.

        Raises:
            SetbacksError: a line does not hold such a record.
        """
        # A hundred thousand new objects set off the garbage collector again and again, for nothing.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for number in range(len(self._records), len(self._lines)):
                self._records.append(self._parse(number))
        finally:
            if collecting:
                gc.enable()
        return self._records

    def batch(self, work: Sequence[W], do: Callable[[Sequence[W]], Sequence[R]]) -> list[R] | None:
        """Do one planned batch, unless it is on disk already; on return it is on disk.

        Args:
            work: the batch; `work[i].id` is the id of the record that `do` makes of it.
            do: makes the records, one for each piece of work, in order.

        Returns:
            The records made now, or None if they were there.

        Raises:
            InputError: what is on disk came from other work (the data behind the run has changed).
            SetbacksError: the disk is full or fails; what was committed before is kept.
        """
        start, end = self._at, self._at + len(work)
        for number in range(start, min(end, len(self._lines))):
            planned, found = work[number - start].id, self._id(number)
            if planned != found:
                raise InputError(
                    f"{self.path}: line {number + 1} holds record {found} where {planned} was "
                    "planned: the data behind this run has changed; use a new folder, or redo "
                    "with --from"
                )
        self._at = end
        if len(self._lines) >= end:
            return None
        if len(self._lines) > start:
            self.log(
                f"{self.path.name}: {len(self._lines) - start} records of an unfinished batch cut "
                "off, to be made again"
            )
            with writing(self.path):
                os.truncate(self.path, sum(map(len, self._lines[:start])))
            del self._lines[start:], self._records[start:]
        made = list(do(work))
        self._append(made)
        return made

    def __len__(self) -> int:
        """How many records the planned batches so far account for."""
        return self._at

    def finish(self) -> list[R]:
        """Return all the records, once every planned batch is done.

        Raises:
            InputError: there are more records than were planned.
        """
        if len(self._lines) > self._at:
            raise InputError(
                f"{self.path}: holds {len(self._lines)} records where {self._at} were planned: the "
                "data behind this run has changed; use a new folder, or redo with --from"
            )
        return self.records

    def _append(self, records: Sequence[R]) -> None:
        lines = [record.model_dump_json().encode() + b"\n" for record in records]
        committed = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab", opener=private) as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            if not committed:  # a new file: its name must last through a power cut, too
                sync_folder(self.path.parent)
        except OSError as error:
            # Best effort: a half-written batch would be cut off on the next opening all the same.
            with contextlib.suppress(OSError):
                os.truncate(self.path, committed)
            raise failed_write(self.path, error) from error
        self._lines.extend(lines)

    def _id(self, number: int) -> str:
        """The id of a line's record, without parsing the rest: it is the first field."""
        line = self._lines[number]
        end = line.find(b'"', 7)
        if line.startswith(b'{"id":"') and end > 0:
            return line[7:end].decode(errors="replace")
        return self._parse(number).id

    def _parse(self, number: int) -> R:
        try:
            return self.kind.model_validate_json(self._lines[number])
        except ValidationError as error:
            problem = error.errors()[0]
            if problem["loc"] == ("v",) and problem["type"] == "less_than_equal":
                raise SetbacksError(
                    f"{self.path}: line {number + 1} was written by a later version of setbacks "
                    f"(records of schema {problem['input']}); update setbacks to open it"
                ) from None
            raise SetbacksError(
                f"{self.path}: line {number + 1} is no {self.kind.__name__} record "
                f"({problem['msg']}); restore the file from a copy, or cut it off before that line "
                "to have the rest done again"
            ) from None


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, never through a link: an `opener` for `open`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def sync_folder(path: Path) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says while something is done to a path into one line.

    Raises:
        SetbacksError: the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        raise failed_write(path, error) from error


def failed_write(path: Path, error: OSError) -> SetbacksError:
    """Say in one line why a write failed and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetbacksError(
            f"{path}: the disk is full; what was done is kept: free some space, then run the same "
            "command again"
        )
    return SetbacksError(
        f"{path}: cannot be written ({error.strerror}); what was done is kept: mend it, then run "
        "the same command again"
    )


def _read(path: Path, log: Callable[[str], None]) -> list[bytes]:
    """Read a file's lines; cut off a last one that a crash has torn."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetbacksError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [line + b"\n" for line in data.split(b"\n")]
    torn = lines.pop()[:-1]  # what follows the last newline
    if not torn and lines and not _is_json(lines[-1]):
        torn = lines.pop()  # a power cut can leave a hole, too, before the newline
    if torn:
        log(f"{path.name}: line {len(lines) + 1} was torn by a crash; cut off, to be made again")
        with writing(path):
            os.truncate(path, sum(map(len, lines)))
    return lines


def _is_json(line: bytes) -> bool:
    """Whether a line is whole. What is whole and no record is not ours to cut off."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
