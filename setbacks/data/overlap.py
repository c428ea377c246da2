"""Overlap: the prompts of a suite that a model was trained on. Their rates may show memory.

Two prompts count as the same as in `setbacks.data.near`. The training prompts come from
`training.jsonl` of the run that made the adapter, so this works in a later evaluation too; for
other adapters they are unknown. The files are read line by line, and only the prompts of the suites
are held in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from setbacks.data.near import key
from setbacks.files import expanded
from setbacks.measure.results import Overlap
from setbacks.messages import Prompt, reworded, transcript
from setbacks.prompts import Words, built_in, prompts
from setbacks.prompts.own import words_of
from setbacks.prompts.packs import PLACE
from setbacks.prompts.policy import Rule
from setbacks.records import Example, Response

PLACES = {"instruction", "response"}  # that a training prompt fills


class _Frame(NamedTuple):
    """The fixed text around an instruction in a training prompt.

    `pattern` matches a prompt that starts with `before` and ends with `end`, and finds the
    instruction. A response may come before or after it.
    """

    before: str
    end: str
    pattern: str


def overlaps(
    responses: Mapping[str, Sequence[Response]], adapters: Mapping[str, Path]
) -> list[Overlap]:
    """Count the prompts of each suite that each trained arm has learned from.

    Args:
        responses: by arm.
        adapters: the folder of each trained arm's adapter, by the arm's name.

    Returns:
        A row for each arm with known training data and each suite: arm, suite, kind, n (the suite's
        prompts) and seen (those it was trained on).
    """
    suites: dict[str, dict[str, str]] = {}  # by suite: the instruction's id -> its key
    kinds: dict[str, str] = {}
    for rows in responses.values():
        for response in rows:
            keys = suites.setdefault(response.suite, {})
            if response.instruction_id not in keys:
                keys[response.instruction_id] = key(transcript(response.instruction))
                kinds[response.suite] = response.kind
    wanted = {one for keys in suites.values() for one in keys.values()}
    counts: list[Overlap] = []
    for arm, adapter in adapters.items():
        run = run_of(adapter)
        if run is None:
            continue
        learned = {one for x in learned_from(run) if (one := key(transcript(x))) in wanted}
        counts += [
            {
                "arm": arm,
                "suite": suite,
                "kind": kinds[suite],
                "n": len(keys),
                "seen": sum(one in learned for one in keys.values()),
            }
            for suite, keys in suites.items()
        ]
    return counts


def learned_from(run: Path, before: frozenset[Path] = frozenset()) -> Iterator[Prompt]:
    """Yield the instructions of a run's training examples, and of the run that it started from.

    Args:
        run: the run's folder, with `training.jsonl`.
        before: folders of later runs, which are not read again.
    """
    bare = bare_instruction(run)
    for example in _examples(run / "training.jsonl"):
        yield bare(example)
    start = _start(_recipe(run))
    earlier = start and run_of(start)
    before |= {run.resolve()}
    if earlier and earlier.resolve() not in before:
        yield from learned_from(earlier, before)


def bare_instruction(run: Path) -> Callable[[Example], Prompt]:
    """Return a function that takes the text of a method off the instruction of an example.

    Args:
        run: the folder of the run that the examples are from.
    """
    bare = partial(_instruction, frames=_frames(_words(_recipe(run))))
    return lambda example: reworded(example.instruction, bare)


def _instruction(prompt: str, frames: Iterable[_Frame]) -> str:
    """Return the instruction in a training prompt, without the text of a method around it."""
    for before, end, pattern in frames:
        if prompt.startswith(before) and prompt.endswith(end):
            match = re.fullmatch(pattern, prompt, re.DOTALL)
            if match:
                return match[1]
    return prompt


def _frames(words: Iterable[Words]) -> list[_Frame]:
    """Return the texts of the methods around an instruction."""
    frames: dict[_Frame, None] = {}  # in order, each once
    for template in (one for pack in words for one in _templates(pack)):
        if template != "{instruction}":  # as own words may be
            frames[_frame(template)] = None
    return list(frames)


def _frame(template: str) -> _Frame:
    """Return the frame of a template; where it is unclear, the instruction is short."""
    before, *middle, end = re.split(PLACE, template)
    if before and middle[-1] == "response":
        end = ""  # the question after a response has changed between versions of setbacks
    holes = {"instruction": "(.*?)", "response": ".*"}
    inner = (re.escape(part) if i % 2 else holes[part] for i, part in enumerate(middle))
    return _Frame(before, end, re.escape(before) + "".join(inner) + re.escape(end))


def _templates(words: Any) -> Iterator[str]:
    """Yield every text around an instruction, or around it and a response.

    Those of the sections that no example is made with are left out.
    """
    if isinstance(words, Mapping):
        for key, inner in words.items():
            if key not in ("induce", "judge"):
                yield from _templates(inner)
    elif isinstance(words, str) and {"instruction"} <= set(re.findall(PLACE, words)) <= PLACES:
        yield words


def _words(recipe: Mapping[str, Any]) -> list[Words]:
    """Return the words of a run's recipe, and those of every language as they are built in."""
    own = recipe.get("words") or {}
    policy = [
        Rule(one["id"], one["text"], tuple(one["good"]), tuple(one["bad"]))
        for one in recipe.get("policy") or ()
    ]
    names = dict.fromkeys((*own, *built_in())) if own or policy else ()
    clauses = [None, *(rule.id for rule in policy)]  # an analysis may be about one of them
    return [
        *(words_of(name, own, policy, clause) for name in names for clause in clauses),
        *map(prompts, built_in()),
    ]


def run_of(adapter: Path) -> Path | None:
    """Return the run folder of an adapter, or of a snapshot of one."""
    needed = ("recipe.yaml", "training.jsonl")
    for folder in expanded(adapter).absolute().parents[:2]:
        if all(os.access(folder / name, os.R_OK) for name in needed):
            return folder
    return None


def _recipe(run: Path) -> Mapping[str, Any]:
    """Return the data of a run's recipe; none if it cannot be read."""
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _start(recipe: Mapping[str, Any]) -> Path | None:
    """Return the adapter that a run's training started from."""
    train = recipe.get("train")
    start = (isinstance(train, dict) and train.get("start")) or recipe.get("adapter")
    return Path(start) if isinstance(start, str) else None


def _examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a file that another run may be writing, without an incomplete line."""
    with open(path, "rb") as file:
        for line in file:
            try:
                yield Example.model_validate_json(line)
            except ValidationError:
                continue
