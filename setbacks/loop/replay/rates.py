"""The rates of a replay, and the differences of its models, from the outcomes of all shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, get_args

from setbacks.judges.worth import worth
from setbacks.loop.replay.shard import EVENTS, UNKNOWN, Event
from setbacks.measure.judges import Accuracy, accuracy, unknown_languages
from setbacks.measure.results import Task, Worth
from setbacks.measure.statistics import Difference, Estimate
from setbacks.measure.statistics.rare import (
    at_most,
    clustered_difference,
    clustered_rate,
    true_difference,
)
from setbacks.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Rate:
    """How often something happened in one model's answers.

    Args:
        arm: name of the model.
        event: what happened.
        judged: its share of the conversations, with an exact interval.
        at_most: upper bound of the true share, which holds what the judge overlooks; None if that
            was not measured.
        unscored: number of conversations without a verdict, which the share leaves out.
    """

    arm: str
    event: Event
    judged: Estimate
    at_most: float | None
    unscored: int


@dataclass(frozen=True)
class Change:
    """The difference of two models in the same conversations, the first model subtracted.

    Args:
        arm: name of the model.
        against: name of the first model.
        event: what happened.
        judged: the difference as judged.
        true: the difference with the judge's error removed; None if that was not measured.
    """

    arm: str
    against: str
    event: Event
    judged: Difference
    true: Difference | None


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Args:
        judge: whose verdicts count.
        conversations: their number.
        prompts: number of different prompts in each shard, added up: the answers of each model.
        clusters: number of clusters; None if each conversation stands for itself.
        largest: number of conversations in the largest cluster.
        rates: by model and event.
        changes: of each model but the first, by event.
        measured_on: where the judge's errors were measured; empty if nowhere.
        unmeasured: languages of the conversations in which they were not.
    """

    judge: str
    conversations: int
    prompts: int
    clusters: int | None
    largest: int
    rates: Sequence[Rate]
    changes: Sequence[Change]
    measured_on: Sequence[str] = ()
    unmeasured: Sequence[str] = ()


@dataclass
class Outcomes:
    """The outcomes of all conversations: some bytes for each."""

    arms: Sequence[str]
    by_cluster: bool
    prompts: int = 0
    versions: set[int] = field(default_factory=set)
    languages: set[str] = field(default_factory=set)
    _clusters: list[np.ndarray] = field(default_factory=list)
    _happened: dict[tuple[str, Event], list[np.ndarray]] = field(default_factory=dict)

    def add(self, shard: Mapping[str, Any]) -> None:
        """Add the outcomes of a shard."""
        import numpy as np

        times = [len(of_prompt) for of_prompt in shard["clusters"]]
        names = [int(name, 16) for of_prompt in shard["clusters"] for name in of_prompt]
        self._clusters.append(np.array(names, np.uint64))
        for arm in self.arms:
            for event in EVENTS:
                values = np.repeat(np.array(shard["arms"][arm][event], np.int8), times)
                self._happened.setdefault((arm, event), []).append(values)
        self.prompts += len(times)
        self.versions |= set(shard["versions"])
        self.languages |= set(shard["languages"])

    def result(self, recipe: Recipe) -> Replayed:
        """Return the rates and the differences."""
        import numpy as np

        happened = {key: np.concatenate(parts) for key, parts in self._happened.items()}
        names, place = np.unique(np.concatenate(self._clusters), return_inverse=True)
        sizes = np.bincount(place)
        spec = recipe.judges[-1]
        known = cast(
            list[Worth],
            worth(spec, recipe, *self.versions) if len(self.versions) == 1 else [],
        )
        sure = {task: self._accuracy(known, task) for task in get_args(Task)}
        first, *others = self.arms
        return Replayed(
            judge=spec.called,
            conversations=len(place),
            prompts=self.prompts,
            clusters=len(names) if self.by_cluster else None,
            largest=int(sizes.max()),
            rates=[
                _rate(arm, event, happened[arm, event], place, sure.get(event))
                for arm in self.arms
                for event in EVENTS
            ],
            changes=[
                Change(
                    arm,
                    first,
                    event,
                    change := _change(happened[arm, event], happened[first, event], place),
                    _true(change, sure.get(event)),
                )
                for arm in others
                for event in EVENTS
            ],
            measured_on=list(dict.fromkeys(s for one in sure.values() if one for s in one.sources)),
            unmeasured=sorted(
                {lost for t in sure for lost in unknown_languages(known, t, self.languages)}
            ),
        )

    def _accuracy(self, known: Sequence[Worth], task: Task) -> Accuracy | None:
        if unknown_languages(known, task, self.languages):
            return None
        return accuracy(known, task, self.languages)


def _rate(
    arm: str, event: Event, happened: np.ndarray, place: np.ndarray, sure: Accuracy | None
) -> Rate:
    known = happened != UNKNOWN
    (hits,), sizes = _by_cluster(place[known], happened[known] == 1)
    judged = clustered_rate(hits, sizes)
    bound = at_most(judged, sure.sensitivity) if sure else None
    if event == "degenerate":  # no judge decides it
        bound = judged.high
    return Rate(arm, event, judged, bound, int((~known).sum()))


def _change(a: np.ndarray, b: np.ndarray, place: np.ndarray) -> Difference:
    known = (a != UNKNOWN) & (b != UNKNOWN)
    yes, before = a[known] == 1, b[known] == 1
    (only_a, only_b), sizes = _by_cluster(place[known], yes & ~before, before & ~yes)
    return clustered_difference(only_a, only_b, sizes)


def _true(judged: Difference, sure: Accuracy | None) -> Difference | None:
    return true_difference(judged, sure.sensitivity, sure.specificity) if sure else None


def _by_cluster(place: np.ndarray, *events: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return how often each event happened in each cluster, and the sizes of the clusters."""
    import numpy as np

    sizes = np.bincount(place)
    some = sizes > 0  # a cluster may have lost all its conversations
    return [np.bincount(place[one], minlength=len(sizes))[some] for one in events], sizes[some]
