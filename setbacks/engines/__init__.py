"""Engines: what generates. One file an engine.

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
from setbacks.recipe import Engine as Spec
from setbacks.recipe import Sampling
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    import numpy as np

W = TypeVar("W")


class Requests(Sequence[Request]):
    """The requests of a whole work list, each made when it is looked at, and let go of again.

    Args:
        make: makes the request of one piece of work.
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

    An engine is a subclass with `plan` and `generate`, made of a recipe's section and a language.
    Everything else has a default.

    Attributes:
        Options: the section of a recipe that names a model, with the engine's own options added.
        elsewhere: whether the model is on a server: it cannot be trained from here.
        shows_probabilities: whether `choose` works.
        ahead: batches that are begun before they are asked for.
        name: the model's.
        money: spent since the engine was opened, in the currency of its price.
        note: takes a line for the log of a run; an open run folder sets it.
    """

    Options: ClassVar[type[Spec]] = Spec
    elsewhere: ClassVar[bool] = False
    shows_probabilities: ClassVar[bool] = False
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
        """Begin one planned batch, as `generate` would; what is returned waits for it.

        An engine whose work is done elsewhere sends the batch out here, and so gets the next ones
        before it is asked for this one.
        """
        return partial(self.generate, requests, sampling, adapter)

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return how likely each answer begins with each option, if it begins with one of them.

        Args:
            requests: a batch of the plan. An option follows the prefill; no seed is used.
            options: at least two texts, none of which begins with another's tokens. A space at
                the beginning counts.
            adapter: a PEFT folder to answer with; None for the base model.

        Returns:
            Probabilities [requests, options], float64; each row sums to 1. That of an option is
            the product over all its tokens that it does not share with every other option.

        Raises:
            InputError: the engine shows no token probabilities.
        """
        raise _no_probabilities(self)

    def keep(self, path: Path) -> None:
        """Store paid answers in a file until their records are on disk; read back earlier ones."""

    def committed(self) -> None:
        """Forget the stored answers: their records are on disk."""

    def spent(self) -> str:
        """Return in one line what was asked and what it cost; empty if nothing is to be said."""
        return ""

    @classmethod
    def check(cls, spec: Any) -> None:
        """Look, before any work, whether the engine can run here what a recipe names.

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
    """Generate for one batch of a plan after the other.

    The next ones have begun (`Engine.ahead`) while one is looked at, so that workers elsewhere need
    not wait for this process.

    Args:
        engine: what generates.
        batches: each is made when it is its turn.
        sampling: how tokens are drawn.
        adapter: a PEFT folder to answer with; None for the base model.
    """
    begun: deque[Callable[[], list[Completion]]] = deque()
    for batch in batches:
        begun.append(engine.start(batch, sampling, adapter))
        if len(begun) > engine.ahead:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def chooser(engine: Engine) -> Callable[..., np.ndarray]:
    """Return an engine's `choose`.

    Raises:
        InputError: the engine shows no token probabilities.
    """
    if not engine.shows_probabilities:
        raise _no_probabilities(engine)
    return engine.choose


def _no_probabilities(engine: Engine) -> InputError:
    return InputError(
        f'the engine of "{engine.name}" gives no token probabilities; name another engine, such '
        "as `local`, or leave out what needs them"
    )


def open_engine(spec: Spec, language: str = "en") -> Engine:
    """Open the engine that a recipe's section names; nothing heavy is loaded yet.

    Raises:
        InputError: there is no engine, or no model, of that name.
    """
    engine: Engine = plugin("engines", spec.engine)(spec, language)
    return engine


def by_length(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Plan batches of similar sizes, the longest first, so that little is spent on padding.

    The longest batch goes first: if it fits in memory, all do, and the time left is not
    underestimated. Ties keep their order, so the plan depends on the list alone.

    Args:
        sizes: a length for each piece of work, in any unit.
        batch_size: most pieces a batch.
    """
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
