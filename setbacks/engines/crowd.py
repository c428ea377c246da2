"""How many requests may be in flight at a server: the number adapts to what the server can take."""

from __future__ import annotations

import time

FIRST = 4  # concurrent requests, to begin with


class Crowd:
    """The number of requests in flight: additive increase, multiplicative decrease.

    Until the server first reports overload, each answer makes room for one more request, so the
    number doubles in the time of an answer. From then on it grows by one in that time (RFC 5681,
    section 3.1).

    Args:
        most: the upper limit.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.width = float(min(FIRST, most))
        self._doubling = True
        self._shrunk = 0.0

    def open(self) -> None:
        """Start in a new event loop, with as much room as there was in the last one."""
        import anyio

        self.room = anyio.CapacityLimiter(int(self.width))

    def grow(self) -> None:
        """Make more room: an answer came."""
        self._set(min(self.most, self.width + (1 if self._doubling else 1 / self.width)))

    def shrink(self, sent: float) -> None:
        """Halve the room.

        Args:
            sent: when the request was sent (monotonic seconds). Of requests that were in flight
                together, only one counts.
        """
        if sent >= self._shrunk:
            self._shrunk = time.monotonic()
            self._doubling = False
            self._set(max(1.0, self.width / 2))

    def _set(self, width: float) -> None:
        self.width = width
        self.room.total_tokens = int(width)
