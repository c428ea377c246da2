"""Overlap: the prompts of a suite that a model was trained on. Their rates may show memory.

Two prompts count as the same if they differ only in case, spaces, Unicode form or final
punctuation. The training prompts come from `training.jsonl` of the run that made the adapter, so
this works in a later evaluation too; for other adapters they are unknown. The files are read line
by line, and only the prompts of the suites are held in memory.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from setbacks.files import expanded
from setbacks.measure.results import Overlap
from setbacks.messages import reworded, transcript
from setbacks.prompts import built_in, prompts
from setbacks.records import Example, Response


class _Frame(NamedTuple):
    """The fixed text around an instruction in a training prompt.

    `after` follows the instruction, and `end` ends the prompt: they differ if a response comes
    between them.
    """

    before: str
    after: str
    end: str


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
        run = _run_of(adapter)
        if run is None:
            continue
        learned = {one for text in _learned_from(run) if (one := key(text)) in wanted}
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


def key(text: str) -> str:
    """Return a text that is equal for prompts that count as the same."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(".?!…。 ") or plain


def _learned_from(run: Path, before: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield the instructions of a run's training examples, and of the run that it started from."""
    for example in _examples(run / "training.jsonl"):
        yield transcript(reworded(example.instruction, _instruction))
    start = _start(run)
    earlier = start and _run_of(start)
    before |= {run.resolve()}
    if earlier and earlier.resolve() not in before:
        yield from _learned_from(earlier, before)


def _instruction(prompt: str) -> str:
    """Return the instruction in a training prompt, without the text of a method around it."""
    for before, after, end in _frames():
        if prompt.startswith(before) and prompt.endswith(end):
            instruction, separator, _ = prompt[len(before) :].partition(after)
            if separator:
                return instruction
    return prompt


@cache
def _frames() -> tuple[_Frame, ...]:
    """Return the texts of the methods around an instruction, in every language."""
    frames = []
    for language in built_in():
        words = prompts(language)
        questions = [words["unguided"], *(words["analyze"][k] for k in ("harmful", "harmless"))]
        for template in (
            *questions,
            words["guided"],
            words["hindsight"],
            words["joined"]["prompt"],
        ):
            before, _, rest = template.partition("{instruction}")
            after, _, end = rest.partition("{response}")
            frames.append(_Frame(before, after, end or after))
    return tuple(frames)


def _run_of(adapter: Path) -> Path | None:
    """Return the run folder of an adapter, or of a snapshot of one."""
    needed = ("recipe.yaml", "training.jsonl")
    for folder in expanded(adapter).absolute().parents[:2]:
        if all(os.access(folder / name, os.R_OK) for name in needed):
            return folder
    return None


def _start(run: Path) -> Path | None:
    """Return the adapter that a run's training started from."""
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        return Path(recipe["train"]["start"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a file that another run may be writing, without an incomplete line."""
    with open(path, "rb") as file:
        for line in file:
            try:
                yield Example.model_validate_json(line)
            except ValidationError:
                continue
