"""Journals: one JSON record per line, appended in batches, fsynced, resumable.

A stage plans its batches from its whole work list; a batch is the unit of commit. A killed process
leaves whole batches and at most a part of one, which nothing has used yet: it is removed and
generated again, so a resumed file ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar, overload

from pydantic import ValidationError

from setbacks.errors import InputError, SetbacksError
from setbacks.files import failed_write, private, sync, writing
from setbacks.records import Record, in_bulk


class Identified(Protocol):
    """A piece of work; `id` is the id of its future record."""

    @property
    def id(self) -> str:
        """The id of the future record."""
        ...


R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=Identified)


class Records(Sequence[R]):
    """The records of a file, read from disk on access: a million take no memory.

    Args:
        path: the file.
        kind: the type of its records.
        starts: offset of each record in the file, in bytes.
    """

    def __init__(self, path: Path, kind: type[R], starts: Sequence[int]) -> None:
        self.path = path
        self.kind = kind
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[R]:
        return self._read(range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return list(self._read(range(len(self))[index]))
        (record,) = self._read([range(len(self))[index]])
        return record

    def _read(self, numbers: Sequence[int]) -> Iterator[R]:
        if not numbers:
            return
        with open(self.path, "rb") as file:
            for number in numbers:
                file.seek(self._starts[number])
                yield _parse(self.path, self.kind, number, file.readline())


class Journal(Generic[R]):
    """An append-only file of records of one type.

    The file is read once, along with the plan. Only the ids of existing records are compared, a
    batch at a time, so that resuming after a million records takes little time and no memory.

    Args:
        path: the file; created when the first batch is committed.
        kind: the type of its records.
        log: called with one line about each repair.
    """

    def __init__(self, path: Path, kind: type[R], log: Callable[[str], None]) -> None:
        self.path = path
        self.kind = kind
        self.log = log
        self._size = repair(path, log)  # of the file, in bytes
        self._end = 0  # where the batches so far end in the file
        self._starts = array("Q")  # where each of their records begins
        self.records: Records[R] = Records(path, kind, self._starts)
        """Those of the batches so far."""

    @property
    def is_new(self) -> bool:
        """Whether the file holds no record yet."""
        return self._size == 0

    def lacks(self, number: int) -> bool:
        """Whether the file holds fewer than the given number of records after those so far.

        It tells whether work is left before `pending` removes what a crash left of a batch.
        """
        if self._end == self._size:
            return number > 0
        with open(self.path, "rb") as file:
            file.seek(self._end)
            return sum(1 for _ in islice(file, number)) < number

    def pending(self, batches: Sequence[Sequence[W]]) -> Sequence[Sequence[W]]:
        """Return the planned batches that are not on disk yet; the records on disk come first.

        An incomplete batch, which a crash leaves, is removed.

        Args:
            batches: the plan, or its next part; `batch[i].id` is the id of a future record.

        Raises:
            InputError: the records are from another plan (the data behind the run changed).
            SetbacksError: the disk fails.
        """
        for at, batch in enumerate(batches):
            there = self._next(len(batch))
            for number, (planned, line) in enumerate(zip(batch, there, strict=False), len(self)):
                if (actual := self._id(number, line)) != planned.id:
                    raise InputError(
                        f"{self.path}: line {number + 1} holds record {actual} where {planned.id} "
                        "was planned: the data behind this run has changed; use a new folder, or "
                        "redo with --from"
                    )
            if len(there) < len(batch):
                if there:
                    self._cut_off(len(there))
                return batches[at:]
            self._account_for(there)
        return []

    def commit(self, batch: Sequence[W], records: Sequence[R]) -> None:
        """Append the records of a pending batch; on return they are on disk.

        Args:
            batch: the next pending one.
            records: one for each piece of work, in order.

        Raises:
            SetbacksError: the records are not those of the batch; or the disk is full or fails,
                and earlier batches are kept.
        """
        if [record.id for record in records] != [work.id for work in batch]:
            raise SetbacksError(
                f"{self.path.name}: the records of a batch do not have the planned ids"
            )
        self._append(records)

    def write(self, records: Sequence[R]) -> None:
        """Commit finished records as one batch, unless they are on disk."""
        for batch in self.pending([records]):
            self.commit(batch, batch)

    def __len__(self) -> int:
        """The number of records in the planned batches so far."""
        return len(self._starts)

    def finish(self) -> Records[R]:
        """Return all the records, once every planned batch is done.

        Raises:
            InputError: there are more records than were planned.
        """
        if more := len(self._next(None)):
            raise InputError(
                f"{self.path}: holds {len(self) + more} records where {len(self)} were planned: "
                "the data behind this run has changed; use a new folder, or redo with --from"
            )
        return self.records

    def _cut_off(self, number: int) -> None:
        """Remove the records of an unfinished batch."""
        self.log(
            f"{self.path.name}: {number} records of an unfinished batch removed; they will "
            "be generated again"
        )
        with writing(self.path):
            os.truncate(self.path, self._end)
        self._size = self._end

    def _next(self, number: int | None) -> list[bytes]:
        """Return the next lines after the batches so far: the given number, or all."""
        if self._end == self._size:
            return []
        with open(self.path, "rb") as file:
            file.seek(self._end)
            return list(islice(file, number))

    def _account_for(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._starts.append(self._end)
            self._end += len(line)

    def _append(self, records: Sequence[R]) -> None:
        lines = [record.model_dump_json().encode() + b"\n" for record in records]
        try:
            with open(self.path, "ab", opener=private) as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            if not self._size:  # a new file: its name must last through a power cut, too
                sync(self.path.parent)
        except OSError as error:
            # Best effort: a half-written batch would be removed when the file is opened next.
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise failed_write(self.path, error) from error
        self._account_for(lines)
        self._size = self._end

    def _id(self, number: int, line: bytes) -> str:
        """Return the id of a line's record, its first field, without parsing the rest."""
        end = line.find(b'"', 7)
        if line.startswith(b'{"id":"') and end > 0:
            return line[7:end].decode(errors="replace")
        return _parse(self.path, self.kind, number, line).id


@in_bulk()
def read(path: Path, kind: type[R]) -> list[R]:
    """Return the complete records of a file; none if it is missing. The file is not changed.

    An incomplete last line is left out: a crash has torn it, or a process is writing it.

    Raises:
        SetbacksError: the file cannot be read, or a line does not hold such a record.
    """
    try:
        with open(path, "rb") as file:
            size = _whole(file)
            file.seek(0)
            return [_parse(path, kind, number, line) for number, line in _until(file, size)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetbacksError(f"{path}: cannot be read ({error.strerror})") from None


def is_torn(path: Path) -> bool:
    """Return whether the last line of a file is incomplete; a missing file has none."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return _whole(file) < file.seek(0, os.SEEK_END)


def repair(path: Path, log: Callable[[str], None]) -> int:
    """Remove a file's last line if a crash has torn it; return the remaining size.

    Args:
        path: the file; it may be missing.
        log: called with one line about each repair.

    Raises:
        SetbacksError: the file cannot be read or written.
    """
    try:
        with open(path, "rb") as file:
            size = _whole(file)
            if size == file.seek(0, os.SEEK_END):
                return size
            file.seek(0)
            number = sum(1 for _ in file)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise SetbacksError(f"{path}: cannot be read ({error.strerror})") from None
    log(
        f"{path.name}: line {number} was torn by a crash; it is removed and will be generated again"
    )
    with writing(path):
        os.truncate(path, size)
    return size


def _parse(path: Path, kind: type[R], number: int, line: bytes) -> R:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"] == ("v",) and problem["type"] == "less_than_equal":
            raise SetbacksError(
                f"{path}: line {number + 1} was written by a later version of setbacks "
                f"(records of schema {problem['input']}); update setbacks to open it"
            ) from None
        field = ".".join(map(str, problem["loc"]))  # empty if the line is not JSON
        reason = f"{field}: {problem['msg']}" if field else problem["msg"]
        raise SetbacksError(
            f"{path}: line {number + 1} is not a valid {kind.__name__} "
            f"({reason}); restore the file from a copy, or delete that line and all after "
            "it to redo them"
        ) from None


def _whole(file: BinaryIO) -> int:
    """Return the size of a file without its last line, if that is torn."""
    size = file.seek(0, os.SEEK_END)
    start = _line_before(file, size)
    file.seek(start)
    last = file.read(size - start)
    # A power cut can leave a hole, too, before the newline.
    return size if last.endswith(b"\n") and _is_json(last) or not last else start


def _until(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each line and the line, up to a place in the file."""
    at = 0
    for number, line in enumerate(file):
        if at >= end:
            return
        at += len(line)
        yield number, line


def _line_before(file: BinaryIO, end: int) -> int:
    """Return the start of the line that ends at `end`, with or without a newline."""
    start = end
    while start:
        size = min(start, 1 << 16)
        start -= size
        file.seek(start)
        at = file.read(min(size, end - 1 - start)).rfind(b"\n")
        if at >= 0:
            return start + at + 1
    return 0


def _is_json(line: bytes) -> bool:
    """Whether a line is complete JSON. A complete line that is not a record must stay."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
