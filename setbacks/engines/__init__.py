"""Engines generate responses; each has one file.

`open_engine` finds the engine that a recipe names, in this package or, through the entry point
group ``setbacks.engines``, in another.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from setbacks.errors import InputError
from setbacks.plugins import plugin
from setbacks.prompts import Words
from setbacks.recipe import Engine as Spec
from setbacks.recipe import Sampling
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    import numpy as np

W = TypeVar("W")


class Requests(Sequence[Request]):
    """The requests of a whole work list, each created when it is used and not kept.

    Args:
        make: returns the request of one piece of work.
        work: the work list.
    """

    def __init__(self, make: Callable[[W], Request], work: Sequence[W]) -> None:
        self._make: Callable[[Any], Request] = make
        self._work: Sequence[Any] = work

    def __len__(self) -> int:
        return len(self._work)

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        if isinstance(index, slice):
            return [self._make(piece) for piece in self._work[index]]
        return self._make(self._work[index])


class Engine(ABC):
    """Generates responses, a planned batch at a time.

    An engine is a subclass with `plan` and `generate`, created from a recipe's section and the
    recipe's words. Everything else has a default.

    Attributes:
        Options: the section of a recipe that names a model, with the engine's options added.
        elsewhere: whether the model is on a server, so that it cannot be trained.
        unused: options of `setbacks.recipe.Engine` that change nothing in what it generates; a run
            says so if its recipe sets one of them.
        shows_probabilities: whether `choose` works.
        shows_states: whether `states` works.
        ahead: how many batches are started in advance.
        name: of the model.
        money: spent since the engine was opened, in the currency of its price.
        note: writes a line to the log of a run; an open run folder sets it.
    """

    Options: ClassVar[type[Spec]] = Spec
    elsewhere: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ()
    shows_probabilities: ClassVar[bool] = False
    shows_states: ClassVar[bool] = False
    ahead: ClassVar[int] = 0
    name: str
    money: float = 0.0
    note: Callable[[str], None] = staticmethod(logging.getLogger(__name__).debug)

    @abstractmethod
    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches of indices; the same list gives the same plan."""

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch; one completion a request, in order.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn.
            adapter: a PEFT folder to answer with; None for the base model.
        """

    def start(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> Callable[[], list[Completion]]:
        """Start one planned batch; return a function that waits for its completions.

        An engine whose work happens elsewhere sends the batch here, and so gets the next batches
        before this one is collected.
        """
        return partial(self.generate, requests, sampling, adapter)

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return how probable each option is as the beginning of each answer, among the options.

        Args:
            requests: a batch of the plan. An option follows the prefill; no seed is used.
            options: at least two texts, none of which begins with another's tokens. A leading space
                counts.
            adapter: a PEFT folder to answer with; None for the base model.

        Returns:
            Probabilities [requests, options], float64; each row sums to 1. That of an option is
            the product over the tokens that it does not share with every other option.

        Raises:
            InputError: the engine does not give token probabilities.
        """
        raise _no_probabilities(self)

    def states(
        self, requests: Sequence[Request], depths: Sequence[float], adapter: Path | None = None
    ) -> np.ndarray:
        """Return the mean hidden state over the tokens of each answer, at some layers.

        Args:
            requests: a batch of the plan. The answer is `reply`; no seed or prefill is used.
            depths: the layers, as shares of all layers: 1 is the last one.
            adapter: a PEFT folder to read with; None for the base model.

        Returns:
            States [requests, depths, hidden size], float32. The end of the turn counts as a token
            of the answer, so that an empty answer has a state too.

        Raises:
            InputError: the engine does not give hidden states.
        """
        raise InputError(
            f'the engine of "{self.name}" gives no hidden states; use another engine, such as '
            "`local`, or remove what needs them"
        )

    def keep(self, path: Path) -> None:
        """Store paid answers in a file until their records are on disk; read back earlier ones."""

    def committed(self) -> None:
        """Forget the stored answers: their records are on disk."""

    def spent(self) -> str:
        """Return requests and costs in one line; empty if there is nothing to report."""
        return ""

    @classmethod
    def check(cls, spec: Any) -> None:
        """Check, before any work, that the engine can run a recipe's model here.

        Args:
            spec: an object of `Options`.

        Raises:
            InputError: it cannot.
        """


def in_turn(
    engine: Engine,
    batches: Iterable[Sequence[Request]],
    sampling: Sampling,
    adapter: Path | None = None,
) -> Iterator[list[Completion]]:
    """Generate one batch of a plan after another.

    The next batches are started (`Engine.ahead`) while one is processed, so that workers elsewhere
    need not wait for this process.

    Args:
        engine: that generates.
        batches: each is created when it is needed.
        sampling: how tokens are drawn.
        adapter: a PEFT folder to answer with; None for the base model.
    """
    started: deque[Callable[[], list[Completion]]] = deque()
    for batch in batches:
        started.append(engine.start(batch, sampling, adapter))
        if len(started) > engine.ahead:
            yield started.popleft()()
    while started:
        yield started.popleft()()


def chooser(engine: Engine) -> Callable[..., np.ndarray]:
    """Return an engine's `choose`.

    Raises:
        InputError: the engine does not give token probabilities.
    """
    if not engine.shows_probabilities:
        raise _no_probabilities(engine)
    return engine.choose


def _no_probabilities(engine: Engine) -> InputError:
    return InputError(
        f'the engine of "{engine.name}" gives no token probabilities; use another engine, such as '
        "`local`, or remove what needs them"
    )


def open_engine(spec: Spec, words: Words | None = None) -> Engine:
    """Open the engine that a recipe's section names; the model is not loaded yet.

    Args:
        spec: the section.
        words: of the recipe; None for English.

    Raises:
        InputError: the engine or the model does not exist.
    """
    engine: Engine = plugin("engines", spec.engine)(spec, words)
    return engine


def by_length(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Plan batches of similar sizes, so that there is little padding.

    The longest batch comes first: if it fits in memory, all do, and the remaining time is not
    underestimated. Ties keep their order, so the plan depends only on the list.

    Args:
        sizes: a length for each piece of work, in any unit.
        batch_size: the largest number of pieces per batch.
    """
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
