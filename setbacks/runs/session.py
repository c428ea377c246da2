"""A run at work: engines opened once, and planned work with progress and cost.

with RunFolder(path, recipe) as folder, Session(folder, on_progress) as run:
    journal = run.journal("analyses.jsonl", Analysis)
    work = run.work(journal, "analyze", planned(engine, subjects, request))
    for batch, completions in work.generated(engine, request, sampling):
        work.commit(batch, records(batch, completions), completions)
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from setbacks.engines import Engine, Requests, in_turn, open_engine
from setbacks.recipe import Sampling
from setbacks.records import Completion, Record, Request, digest
from setbacks.runs.folder import RunFolder
from setbacks.runs.journal import Identified, Journal
from setbacks.runs.progress import Show
from setbacks.runs.redo import StageName

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=Identified)
P = TypeVar("P")


class Session:
    """What the stages work in: an open run folder, its engines, and who is shown progress.

    Use it as a context manager: on leaving, what servers cost is noted and models are let go.

    Args:
        folder: the open run folder.
        on_progress: called with (what, done, total); None shows nothing.
    """

    def __init__(self, folder: RunFolder, on_progress: Show | None = None) -> None:
        self.folder = folder
        self.path, self.recipe = folder.path, folder.recipe
        self.journal, self.records, self.verdicts = folder.journal, folder.records, folder.verdicts
        self.log, self.write_text = folder.log, folder.write_text
        self._on_progress = on_progress
        self._engines: dict[str, Engine] = {}
        self._booked = 0.0  # money that costs.jsonl has
        self._stage: StageName = "induce"  # the one at work

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._unbooked() > 0:
                self.spend(self._stage, 0.0, 0)  # for a batch that failed: paid all the same
            for engine in self._remote():
                if summary := engine.spent():
                    log.info(summary)
                    self.log(summary)
        finally:
            self._engines.clear()

    def work(
        self, journal: Journal[R], stage: StageName, batches: Sequence[Sequence[W]], label: str = ""
    ) -> Work[R, W]:
        """Return what is left of a plan.

        Args:
            journal: where the records go.
            stage: whose time and tokens these are.
            batches: the whole plan, in order.
            label: what the progress line says beside the stage's name.
        """
        self._stage = stage
        return Work(self, journal, stage, batches, label)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show how far a piece of work is; called only for what is on disk."""
        if self._on_progress:
            self._on_progress(name, done, total)

    def engine(self, spec: Any) -> Any:
        """Open the engine of a spec once, and give the same one to every stage that asks."""
        key = spec.model_dump_json()
        if key not in self._engines:
            self._engines[key] = opened = open_engine(spec, self.recipe.language)
            if opened.elsewhere:
                opened.keep(self.path / f"unfinished-{digest(key)}.jsonl")
            opened.note = self.log
        return self._engines[key]

    def release_engines(self) -> None:
        """Let go of every open model, so that training has the memory.

        Engines of servers hold no model here, and continue to count what they cost.
        """
        remote = self._remote()
        self._engines = {key: opened for key, opened in self._engines.items() if opened in remote}
        gc.collect()  # models hold themselves in circles; these few objects are gigabytes

    def spend(
        self,
        stage: StageName,
        seconds: float,
        records: int,
        prompt_tokens: int = 0,
        tokens: int = 0,
    ) -> None:
        """Note what a batch cost, with the money spent at servers since the last note."""
        money = self._unbooked()
        self._booked += money
        self.folder.spend(stage, seconds, records, prompt_tokens, tokens, money)

    def committed(self) -> None:
        """Let servers' engines forget the answers whose records are on disk."""
        for engine in self._remote():
            engine.committed()

    def _remote(self) -> list[Engine]:
        """The open engines whose models are elsewhere."""
        return [engine for engine in self._engines.values() if engine.elsewhere]

    def _unbooked(self) -> float:
        """Money spent at servers that costs.jsonl does not have yet."""
        return sum(engine.money for engine in self._remote()) - self._booked


def planned(engine: Any, pieces: Sequence[P], request: Callable[[P], Request]) -> list[list[P]]:
    """Cut a whole work list into batches, as an engine or a judge plans it.

    Args:
        engine: what has `plan`.
        pieces: in any order.
        request: what `plan` is given for a piece; its size counts, so it may be a stand-in.
    """
    plan = engine.plan(Requests(request, pieces))
    return [[pieces[index] for index in batch] for batch in plan]


class Work(Generic[R, W]):
    """What is left of a plan; iterate over it, and commit each batch.

    Args:
        run: the session.
        journal: where the records go.
        stage: whose time and tokens these are.
        batches: the whole plan, in order.
        label: what the progress line says beside the stage's name.
    """

    def __init__(
        self,
        run: Session,
        journal: Journal[R],
        stage: StageName,
        batches: Sequence[Sequence[W]],
        label: str = "",
    ) -> None:
        self.run, self.journal, self.stage = run, journal, stage
        self.name = f"{stage} {label}".strip()
        self.left = journal.pending(batches)
        self.total = sum(map(len, batches))
        self.done = self.total - sum(map(len, self.left))
        self._began = time.monotonic()
        if self.total:
            run.progress(self.name, self.done, self.total)

    def __iter__(self) -> Iterator[Sequence[W]]:
        """Yield the batches that are left."""
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
        """Yield the batches that are left with what an engine generates for them.

        Args:
            engine: what generates.
            request: what it is asked for a piece of work.
            sampling: how tokens are drawn.
            adapter: a PEFT folder to answer with; None for the base model.
        """
        requests = ([request(piece) for piece in batch] for batch in self.left)
        turns = in_turn(engine, requests, sampling, adapter)
        for batch in self:
            yield batch, next(turns)

    def commit(
        self, batch: Sequence[W], records: Sequence[R], completions: Iterable[Completion] = ()
    ) -> None:
        """Put a batch's records on disk, then show progress and note what it cost.

        Args:
            batch: the one that was yielded last.
            records: one for each piece of work, in order.
            completions: all that was generated for it.
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
