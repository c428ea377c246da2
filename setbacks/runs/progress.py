"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str, int, int], None]


@contextmanager
def show(quiet: bool = False) -> Iterator[Show | None]:
    """Yield a function that shows progress, called with (what, done, total).

    Args:
        quiet: yield None instead.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield _lines()


def _bars() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, rate="")
            task = progress.tasks[tasks[what]]
            rate = f"{done / task.elapsed:.1f}/s" if task.elapsed and done else ""
            progress.update(tasks[what], completed=done, rate=rate)

        yield on_progress


def _lines(every: float = 10.0) -> Show:
    """Print a line when work begins and ends, and after every `every` seconds in between."""
    started: dict[str, tuple[float, int]] = {}
    last = 0.0

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start, before = started.setdefault(what, (now, done))
        if now - last < every and done < total:
            return
        last = now
        rate = (done - before) / (now - start) if now > start else 0.0
        left = (
            f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate and done < total else ""
        )
        print(f"{what}: {done}/{total}{left}", file=sys.stderr, flush=True)

    return on_progress
