"""A run at work: engines opened once, and planned work with progress and cost.

with RunFolder(path, recipe) as folder, Session(folder, on_progress) as run:
    journal = run.journal("analyses.jsonl", Analysis)
    work = run.work(journal, "analyze", planned(engine, subjects, request))
    for batch, completions in work.generated(engine, request, sampling):
        work.commit(batch, records(batch, completions), completions)
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from setbacks.engines import Engine, Requests, in_turn, open_engine
from setbacks.recipe import Sampling
from setbacks.records import Completion, Record, Request, digest
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import RunFolder
from setbacks.runs.journal import Identified, Journal
from setbacks.runs.progress import Show
from setbacks.runs.redo import StageName

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=Identified)
P = TypeVar("P")


def return_memory() -> None:
    """Return the memory of what is no longer used to the system.

    Models hold reference cycles: a few objects of gigabytes. And glibc keeps what lies between
    blocks that are in use: gigabytes after a run on a CPU.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class Session:
    """What the stages work in: an open run folder, its engines, and the display of progress.

    Use it as a context manager: on exit, the costs of servers are recorded and models are released.

    Args:
        folder: the open run folder.
        on_progress: called with (what, done, total); None shows nothing.
    """

    def __init__(self, folder: RunFolder, on_progress: Show | None = None) -> None:
        self.folder = folder
        self.path = folder.path
        self.decontamination = Decontamination(folder.recipe)
        self.recipe = self.decontamination.recipe
        self.journal, self.records, self.verdicts = folder.journal, folder.records, folder.verdicts
        self.log, self.write_text = folder.log, folder.write_text
        self._on_progress = on_progress
        self._engines: dict[str, Engine] = {}
        self._booked = 0.0  # money already in costs.jsonl
        self._stage: StageName = "induce"  # the engine in use

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._unbooked() > 0:
                self.spend(self._stage, 0.0, 0)  # a failed batch costs money, too
            for engine in self._remote():
                if summary := engine.spent():
                    log.info(summary)
                    self.log(summary)
        finally:
            self._engines.clear()
            return_memory()

    def work(
        self,
        journal: Journal[R],
        stage: StageName,
        batches: Sequence[Sequence[W]],
        label: str = "",
        total: int | None = None,
    ) -> Work[R, W]:
        """Return the remaining work of a plan.

        Args:
            journal: where the records go.
            stage: the stage that time and tokens are counted for.
            batches: the whole plan, in order, or its next part.
            label: text of the progress line after the stage's name.
            total: number of records in all parts; None if the plan is whole.
        """
        self._stage = stage
        return Work(self, journal, stage, batches, label, total)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show progress; called only for records that are on disk."""
        if self._on_progress:
            self._on_progress(name, done, total)

    def engine(self, spec: Any) -> Any:
        """Return the engine of a spec; it is opened once for all stages."""
        key = spec.model_dump_json()
        if key not in self._engines:
            self._engines[key] = opened = open_engine(spec, self.recipe.words_for())
            if opened.elsewhere:
                opened.keep(self.path / f"unfinished-{digest(key)}.jsonl")
            opened.note = self.log
        return self._engines[key]

    def release_engines(self) -> None:
        """Release every open model, so that training has the memory.

        Engines of servers hold no model here; they stay open and count their costs.
        """
        remote = self._remote()
        self._engines = {key: opened for key, opened in self._engines.items() if opened in remote}
        return_memory()

    def spend(
        self,
        stage: StageName,
        seconds: float,
        records: int,
        prompt_tokens: int = 0,
        tokens: int = 0,
    ) -> None:
        """Record what a batch cost, and the money spent at servers since the last record."""
        money = self._unbooked()
        self._booked += money
        self.folder.spend(stage, seconds, records, prompt_tokens, tokens, money)

    def committed(self) -> None:
        """Let engines of servers forget the answers that are on disk as records."""
        for engine in self._remote():
            engine.committed()

    def _remote(self) -> list[Engine]:
        """The open engines of servers."""
        return [engine for engine in self._engines.values() if engine.elsewhere]

    def _unbooked(self) -> float:
        """Money spent at servers that is not in costs.jsonl yet."""
        return sum(engine.money for engine in self._remote()) - self._booked


def planned(engine: Any, pieces: Sequence[P], request: Callable[[P], Request]) -> list[list[P]]:
    """Divide a whole work list into batches, as an engine or a judge plans it.

    Args:
        engine: anything with a method `plan`.
        pieces: in any order.
        request: returns the item of a piece for `plan`, which looks only at its size.
    """
    plan = engine.plan(Requests(request, pieces))
    return [[pieces[index] for index in batch] for batch in plan]


class Work(Generic[R, W]):
    """The remaining work of a plan; iterate over it, and commit each batch.

    Args:
        run: the session.
        journal: where the records go.
        stage: the stage that time and tokens are counted for.
        batches: the whole plan, in order, or its next part.
        label: text of the progress line after the stage's name.
        total: number of records in all parts; None if the plan is whole.
    """

    def __init__(
        self,
        run: Session,
        journal: Journal[R],
        stage: StageName,
        batches: Sequence[Sequence[W]],
        label: str = "",
        total: int | None = None,
    ) -> None:
        self.run, self.journal, self.stage = run, journal, stage
        self.name = f"{stage} {label}".strip()
        self.left = journal.pending(batches)
        if total is None:
            self.total = sum(map(len, batches))
            self.done = self.total - sum(map(len, self.left))
        else:
            self.total, self.done = total, len(journal)
        self._began = time.monotonic()
        if self.total:
            run.progress(self.name, self.done, self.total)

    def __iter__(self) -> Iterator[Sequence[W]]:
        """Yield the remaining batches."""
        for batch in self.left:
            self._began = time.monotonic()
            yield batch

    def generated(
        self,
        engine: Engine,
        request: Callable[[W], Request],
        sampling: Sampling,
        adapter: Path | None = None,
    ) -> Iterator[tuple[Sequence[W], list[Completion]]]:
        """Yield the remaining batches, with what an engine generates for them.

        Args:
            engine: the engine.
            request: returns the request for a piece of work.
            sampling: how tokens are sampled.
            adapter: a PEFT folder to answer with; None for the base model.
        """
        requests = ([request(piece) for piece in batch] for batch in self.left)
        turns = in_turn(engine, requests, sampling, adapter)
        for batch in self:
            yield batch, next(turns)

    def commit(
        self, batch: Sequence[W], records: Sequence[R], completions: Iterable[Completion] = ()
    ) -> None:
        """Write a batch's records to disk, then show progress and record the cost.

        Args:
            batch: the batch that was yielded last.
            records: one for each piece of work, in order.
            completions: everything that was generated for it.
        """
        self.journal.commit(batch, records)
        generated = list(completions)
        self.run.spend(
            self.stage,
            time.monotonic() - self._began,
            len(records),
            sum(one.prompt_tokens for one in generated),
            sum(one.tokens for one in generated),
        )
        self.run.committed()
        self.done += len(batch)
        self.run.progress(self.name, self.done, self.total)
