"""The run, as seen by a process that trains along with the first one."""

from __future__ import annotations

from setbacks.runs.folder import Run


class Follower(Run):
    """A run that is only read: the first process writes, logs and shows progress."""

    def log(self, line: str) -> None:
        """Leave it to the first process."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Leave it to the first process."""
