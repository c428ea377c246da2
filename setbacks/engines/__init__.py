"""Engines: what generates. One file an engine.

An engine is anything with the shape of `Engine`; `open_engine` finds it by the name in the recipe,
in this package or, through the entry point group ``setbacks.engines``, in another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

from setbacks.errors import InputError
from setbacks.plugins import plugin
from setbacks.records import Finish

if TYPE_CHECKING:
    import numpy as np

W = TypeVar("W")


@dataclass(frozen=True)
class Request:
    """One thing to generate.

    Args:
        prompt: what the user says.
        seed: where this request's random draws start; made of its content, so that a draw does
            not depend on what else is in the batch.
        prefill: how the answer begins, when it is begun for the model; part of the text returned.
        reply: an assistant's turn that follows the prompt, where the model is to read a
            conversation and not to answer it, as guard models do.
        template: what the model's chat template is told besides, by name.
    """

    prompt: str
    seed: int
    prefill: str = ""
    reply: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """Its length in characters."""
        return len(self.prompt) + len(self.prefill) + len(self.reply or "")


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


class Completion(NamedTuple):
    """What was generated: the text (prefill included), why it ended, and what it cost.

    `finish` is "filter" where a provider's filter ended it or blocked the prompt, "refusal" where
    the provider says that the model refused, and "failed" where there was no answer after all
    tries; the text may then be empty.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int


class Engine(Protocol):
    """Generates responses, a planned batch at a time."""

    name: str

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches of indices; the same list gives the same plan."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Any, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch; one completion a request, in order.

        Args:
            requests: a batch of the plan.
            sampling: a `setbacks.recipe.Sampling`.
            adapter: a PEFT folder to answer with; None for the base model.
        """
        ...


@runtime_checkable
class Remote(Protocol):
    """What an engine has besides, if its model is elsewhere: paid for, and not to be trained."""

    money: float  # spent since it was opened

    def keep(self, path: Path) -> None:
        """Let answers rest in a file, and take up those that a stopped run left there."""
        ...

    def committed(self) -> None:
        """Forget the answers that rest there: their records are on disk."""
        ...

    def spent(self) -> str:
        """Say in one line what was asked and what it cost; nothing where nothing was asked."""
        ...

    @staticmethod
    def check(spec: Any) -> None:
        """Look whether the server is there and takes the key, at no cost.

        Raises:
            InputError: it is not, or does not.
        """
        ...


@runtime_checkable
class Noting(Protocol):
    """What an engine has besides, if it has something to say for a run's log."""

    note: Callable[[str], None]  # takes a line


class Choose(Protocol):
    """An engine's method `choose`, which engines that see token probabilities have besides."""

    def __call__(
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
        """
        ...


class Start(Protocol):
    """An engine's method `start`, which engines that work elsewhere may have besides."""

    def __call__(
        self, requests: Sequence[Request], sampling: Any, adapter: Path | None = None
    ) -> Callable[[], list[Completion]]:
        """Begin on one planned batch, as `generate` would; what is returned waits for it."""
        ...


AHEAD = 1  # batches that are begun before they are asked for


def in_turn(
    engine: Engine,
    batches: Iterable[Sequence[Request]],
    sampling: Any,
    adapter: Path | None = None,
) -> Iterator[list[Completion]]:
    """Generate for one batch of a plan after the other.

    An engine that can (`Start`) has begun on the next ones while one is looked at, so that workers
    need not wait for this process.

    Args:
        engine: what generates.
        batches: each is made when it is its turn.
        sampling: a `setbacks.recipe.Sampling`.
        adapter: a PEFT folder to answer with; None for the base model.
    """
    start: Start | None = getattr(engine, "start", None)
    if start is None:
        for batch in batches:
            yield engine.generate(batch, sampling, adapter)
        return
    begun: deque[Callable[[], list[Completion]]] = deque()
    for batch in batches:
        begun.append(start(batch, sampling, adapter))
        if len(begun) > AHEAD:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def chooser(engine: Engine) -> Choose:
    """Return an engine's `choose`.

    Raises:
        InputError: it has none.
    """
    choose: Choose | None = getattr(engine, "choose", None)
    if choose is None:
        raise InputError(
            f'the engine of "{engine.name}" gives no token probabilities; name another engine, '
            "such as `local`, or leave out what needs them"
        )
    return choose


def open_engine(spec: Any, language: str = "en") -> Engine:
    """Open the engine that a `setbacks.recipe.Engine` names; nothing heavy is loaded yet.

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
