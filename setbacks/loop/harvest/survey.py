"""The first look at logs: how many different answers there are, with only numbers in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import compress, islice
from typing import NamedTuple

from setbacks.loop.logs import Logged, Logs
from setbacks.records import digest

CHUNK = 1000  # logged answers that are planned together


class Survey(NamedTuple):
    """The answers of logs, of which only numbers are held in memory."""

    logs: Logs
    times: Mapping[int, int]  # by id
    is_first: bytearray  # for each answer, 0 if it repeats an earlier one
    digest: str  # of all answers, and of what the logs say about them

    @classmethod
    def of(cls, logs: Logs) -> Survey:
        """Read logs once, and count."""
        times: Counter[int] = Counter()
        is_first = bytearray()
        whole = hashlib.blake2b(digest_size=8)
        for logged in logs:
            id_ = _id(logged)
            is_first.append(id_ not in times)
            times[id_] += 1
            whole.update(digest(id_, logged.language, logged.safe).encode())
        return cls(logs, times, is_first, whole.hexdigest())

    def chunks(self) -> Iterator[list[tuple[int, Logged]]]:
        """Yield each different answer once, with its id, in chunks."""
        each = ((_id(logged), logged) for logged in compress(self.logs, self.is_first))
        while chunk := list(islice(each, CHUNK)):
            yield chunk


def _id(logged: Logged) -> int:
    return int(digest("logged", logged.prompt, logged.answer), 16)
