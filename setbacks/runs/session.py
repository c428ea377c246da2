"""A planned piece of work of a run: its batches, with progress and cost, as far as they are left.

work = run.work(journal, "analyze", planned(engine, subjects, request))
for batch, completions in work.generated(engine, request, sampling):
    work.commit(batch, records(batch, completions), completions)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from setbacks.engines import Engine, Requests, in_turn
from setbacks.records import Completion, Record, Request
from setbacks.runs.journal import Identified, Journal

if TYPE_CHECKING:
    from setbacks.recipe import Sampling
    from setbacks.runs.folder import RunFolder

R = TypeVar("R", bound=Record)
W = TypeVar("W", bound=Identified)
P = TypeVar("P")


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
        run: the open run folder.
        journal: where the records go.
        stage: whose time and tokens these are.
        batches: the whole plan, in order.
        label: what the progress line says beside the stage's name.
    """

    def __init__(
        self,
        run: RunFolder,
        journal: Journal[R],
        stage: str,
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
        spent = list(completions)
        self.run.spend(
            self.stage,
            time.monotonic() - self._began,
            len(records),
            sum(one.prompt_tokens for one in spent),
            sum(one.tokens for one in spent),
        )
        self.run.committed()
        self.done += len(batch)
        self.run.progress(self.name, self.done, self.total)
