"""Replay: what would a model have answered in the conversations of a log?

The last assistant turn of each logged conversation is replaced by each model's answer, and judged.
A log is cut into shards of some thousand conversations. Each shard is an ordinary evaluation in a
run folder of its own, so memory does not grow with the log, a killed replay resumes, and any engine
works, such as `ray`. What remains of a shard for the result is one small file of outcomes.

A prompt that several conversations of a shard share is answered once and counts for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from setbacks.data.conversations import prompt_as_data
from setbacks.errors import InputError
from setbacks.files import own_folder, write_atomic
from setbacks.judges.worth import worth
from setbacks.loop.logs import Logged, Logs
from setbacks.measure.judges import Accuracy, accuracy, unknown_languages
from setbacks.measure.metrics import fell_apart
from setbacks.measure.results import Task, Worth
from setbacks.measure.statistics import Difference, Estimate
from setbacks.measure.statistics.rare import (
    at_most,
    clustered_difference,
    clustered_rate,
    true_difference,
)
from setbacks.measure.substance import substance
from setbacks.messages import Prompt
from setbacks.pipeline import carry_out, check, open_run
from setbacks.recipe import Recipe, Source, Suite
from setbacks.records import Response, Verdict, digest
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.results import as_json_lines

if TYPE_CHECKING:
    import numpy as np

SIZE = 10_000  # conversations of a shard
Event = Literal["harmful", "refused", "degenerate"]
EVENTS: tuple[Event, ...] = get_args(Event)
UNKNOWN = -1  # an outcome without a verdict


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


class Asked(NamedTuple):
    """A prompt of a shard, its language, and the cluster of each conversation with it."""

    prompt: Prompt
    language: str | None
    clusters: list[str]


def replay(
    logs: Logs,
    recipe: Recipe,
    folder: Path,
    size: int = SIZE,
    on_progress: Show | None = None,
) -> Replayed:
    """Replay logs in a folder, or resume that.

    Args:
        logs: the logged conversations.
        recipe: an evaluation; its suites are replaced by the logs, and its last judge counts.
        folder: of the replay.
        size: number of conversations in a shard.
        on_progress: called with (what, done, total).

    Raises:
        InputError: a log, a model or the folder is at fault, or the logs have changed.
        SetbacksError: something failed on the way; progress is saved.
    """
    conversations = iter(logs)
    parts = iter(lambda: list(islice(conversations, size)), [])
    first = next(parts)
    if not (folder / "settings.json").exists():
        check(recipe)  # before there is a folder, which takes no other settings
    _settle(folder, logs, recipe, size)
    table = _Table([arm.name for arm in recipe.evaluate], by_cluster=logs.cluster is not None)
    shards, number = folder / "shards", 0
    for number, part in enumerate(chain([first], parts)):
        shard = _Shard(shards / f"{number:05}", recipe)
        table.add(shard.outcomes(_asked(part, number), on_progress))
    logs.report()
    if (shards / f"{number + 1:05}.jsonl").exists():
        raise _changed(folder)
    return table.result(recipe)


def _settle(folder: Path, logs: Logs, recipe: Recipe, size: int) -> None:
    """Make the folder, private to its owner; a replay with other settings is refused."""
    settings = {
        "logs": [str(Path(source).absolute()) for source in logs.sources],
        "fields": logs.fields,
        "cluster": logs.cluster,
        "conversations_per_shard": size,
        "recipe": recipe.model_dump(mode="json"),
    }
    path = folder / "settings.json"
    if not own_folder(folder, path.name, "a replay"):
        write_atomic(path, json.dumps(settings, indent=1).encode())
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        (folder / "shards").mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot hold a replay ({error})") from None
    if other := [key for key, value in settings.items() if held.get(key) != value]:
        raise InputError(
            f"{folder}: holds a replay with other settings ({', '.join(other)}); choose another "
            "folder with --out"
        )


def _changed(folder: Path) -> InputError:
    return InputError(
        f"{folder}: the logs have changed since this replay began; choose another folder with --out"
    )


def _asked(conversations: Sequence[Logged], shard: int) -> list[Asked]:
    """Return each prompt of some conversations once."""
    by_prompt: dict[Prompt, Asked] = {}
    for number, one in enumerate(conversations):
        # A conversation without a cluster is its own; names of users stay in the log.
        cluster = (shard, number) if one.cluster is None else (one.cluster,)
        asked = by_prompt.setdefault(one.prompt, Asked(one.prompt, one.language, []))
        asked.clusters.append(digest("cluster", *cluster))
    return list(by_prompt.values())


class _Shard:
    """Some conversations: a file of prompts, their run folder, and a file of outcomes.

    Args:
        path: of the run folder.
        recipe: of the replay.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._path = path
        self._prompts = path.with_suffix(".jsonl")
        self._outcomes = path.with_suffix(".json")
        source = Source(
            source=str(self._prompts.absolute()), fields={"text": "text", "language": "language"}
        )
        suite = Suite(name="replay", kind="harmful", sources=[source])
        respond = recipe.respond.model_copy(update={"suites": [suite]})
        self._recipe = recipe.model_copy(update={"respond": respond})

    def outcomes(self, asked: Sequence[Asked], on_progress: Show | None) -> Mapping[str, Any]:
        """Return the outcomes of the conversations; only what is missing is answered and judged.

        Raises:
            InputError: the shard holds other conversations.
        """
        text = as_json_lines(map(_row, asked)).encode("utf-8", "surrogatepass")
        if not self._prompts.exists():
            write_atomic(self._prompts, text)
        elif self._prompts.read_bytes() != text:
            raise _changed(self._path.parents[1])
        if not self._outcomes.exists():
            write_atomic(self._outcomes, json.dumps(self._judged(asked, on_progress)).encode())
        return cast(Mapping[str, Any], json.loads(self._outcomes.read_text(encoding="utf-8")))

    def _judged(self, asked: Sequence[Asked], on_progress: Show | None) -> dict[str, Any]:
        def show(what: str, done: int, total: int) -> None:
            if on_progress:
                on_progress(f"shard {int(self._path.name) + 1}: {what}", done, total)

        if not (self._path / "recipe.yaml").exists():
            check(self._recipe)
        with open_run(self._path, self._recipe) as run:
            carry_out(run, "judge", show)
            ids = [digest("instruction", one.prompt) for one in asked]
            return _outcomes(run, ids) | {"clusters": [one.clusters for one in asked]}


def _row(one: Asked) -> dict[str, Any]:
    return {"text": prompt_as_data(one.prompt), "language": one.language, "clusters": one.clusters}


def _outcomes(run: RunFolder, ids: Sequence[str]) -> dict[str, Any]:
    """Return what happened in each answer, by arm and event, in the order of the prompts."""
    judge = run.recipe.judges[-1].called
    versions, spoken, arms = set(), set(), {}
    for arm in run.arms():
        responses = run.records(f"responses/{arm.name}.jsonl", Response)
        verdicts = {
            verdict.response_id: verdict
            for verdict in run.records(f"verdicts/{arm.name}.{judge}.jsonl", Verdict)
        }
        versions |= {verdict.version for verdict in verdicts.values()}
        spoken |= {response.language for response in responses}
        of = {r.instruction_id: _happened(r, verdicts.get(r.id)) for r in responses}
        arms[arm.name] = {event: [of[id_][event] for id_ in ids] for event in EVENTS}
    return {"versions": sorted(versions), "languages": sorted(spoken), "arms": arms}


def _happened(response: Response, verdict: Verdict | None) -> dict[Event, int]:
    """Return whether each event happened in an answer: 1, 0, or `UNKNOWN`."""
    what = substance(response.text, response.finish, response.thought)
    if what in ("nothing", "thought"):  # no answer does no harm, and refuses nothing
        return {"harmful": 0, "refused": 0, "degenerate": 0}
    apart = what == "text" and fell_apart(
        response.text, response.instruction, response.finish, response.guidance
    )

    def known(value: bool | None) -> int:
        return UNKNOWN if value is None else int(value)

    return {
        "harmful": known(verdict.harmful if verdict else None),
        "refused": known(verdict.refused if verdict else None),
        "degenerate": int(bool(apart)),
    }


@dataclass
class _Table:
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
