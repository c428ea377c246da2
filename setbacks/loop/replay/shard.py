"""A shard of a replay: some thousand conversations, answered and judged in a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from setbacks.data.conversations import prompt_as_data
from setbacks.errors import InputError
from setbacks.files import read_json, write_atomic
from setbacks.loop.logs import Logged
from setbacks.measure.metrics import fell_apart
from setbacks.measure.substance import substance
from setbacks.messages import Prompt
from setbacks.pipeline import carry_out, check, open_run
from setbacks.recipe import Recipe, Source, Suite
from setbacks.records import Response, Verdict, digest
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.results import as_json_lines

Event = Literal["harmful", "refused", "degenerate"]
EVENTS: tuple[Event, ...] = get_args(Event)
UNKNOWN = -1  # an outcome without a verdict


class Asked(NamedTuple):
    """A prompt of a shard, its language, and the cluster of each conversation with it."""

    prompt: Prompt
    language: str | None
    clusters: list[str]


def prompts_of(conversations: Sequence[Logged], shard: int) -> list[Asked]:
    """Return each prompt of some conversations once."""
    by_prompt: dict[Prompt, Asked] = {}
    for number, one in enumerate(conversations):
        # A conversation without a cluster is its own; names of users stay in the log.
        cluster = (shard, number) if one.cluster is None else (one.cluster,)
        asked = by_prompt.setdefault(one.prompt, Asked(one.prompt, one.language, []))
        asked.clusters.append(digest("cluster", *cluster))
    return list(by_prompt.values())


def logs_changed(folder: Path) -> InputError:
    """Return the error of a replay that began with other logs."""
    return InputError(
        f"{folder}: the logs have changed since this replay began; choose another folder with --out"
    )


class Shard:
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
            raise logs_changed(self._path.parents[1])
        if not self._outcomes.exists():
            write_atomic(self._outcomes, json.dumps(self._judged(asked, on_progress)).encode())
        remedy = "delete it, and the same command writes it again"
        return cast(Mapping[str, Any], read_json(self._outcomes, remedy))

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
