"""Overlap: the prompts of a suite that a model was trained on. There a rate shows memory.

Two prompts count as the same if they differ in case, spaces, Unicode form or final punctuation
alone. What a model was trained on is read from `training.jsonl` of the run that made its adapter,
so it works in a later evaluation too; of an adapter from elsewhere it is not known. The files are
read line by line, and only the prompts of the suites are held in memory.
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
from setbacks.prompts import prompts
from setbacks.records import Example, Response

_LANGUAGES = ("en", "zh")


class _Frame(NamedTuple):
    """The fixed text around an instruction in a training prompt.

    `after` follows the instruction, and `end` ends the prompt: they differ where a response stands
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
        A row for each arm whose training data are known and each suite: arm, suite, kind, n (the
        suite's prompts) and seen (those it was trained on).
    """
    suites: dict[str, dict[str, str]] = {}  # by suite: the instruction's id -> its key
    kinds: dict[str, str] = {}
    for rows in responses.values():
        for response in rows:
            keys = suites.setdefault(response.suite, {})
            if response.instruction_id not in keys:
                keys[response.instruction_id] = key(response.instruction)
                kinds[response.suite] = response.kind
    asked = {of_one for keys in suites.values() for of_one in keys.values()}
    found: list[Overlap] = []
    for arm, adapter in adapters.items():
        run = _run_of(adapter)
        if run is None:
            continue
        learned = {one for text in _learned_from(run) if (one := key(text)) in asked}
        found += [
            {
                "arm": arm,
                "suite": suite,
                "kind": kinds[suite],
                "n": len(keys),
                "seen": sum(one in learned for one in keys.values()),
            }
            for suite, keys in suites.items()
        ]
    return found


def key(text: str) -> str:
    """Return what two prompts have in common that count as the same."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(".?!…。 ") or plain


def _learned_from(run: Path, before: frozenset[Path] = frozenset()) -> Iterator[str]:
    """The instructions behind a run's training examples, and behind those it started from."""
    for example in _examples(run / "training.jsonl"):
        for message in example.prompt:
            if message.role == "user":
                yield _instruction(message.content)
    start = _start(run)
    earlier = start and _run_of(start)
    before |= {run.resolve()}
    if earlier and earlier.resolve() not in before:
        yield from _learned_from(earlier, before)


def _instruction(prompt: str) -> str:
    """The instruction in a training prompt, without what a method writes around it."""
    for before, after, end in _frames():
        if prompt.startswith(before) and prompt.endswith(end):
            instruction, found, _ = prompt[len(before) :].partition(after)
            if found:
                return instruction
    return prompt


@cache
def _frames() -> tuple[_Frame, ...]:
    """What the methods write around an instruction, in every language."""
    found = []
    for language in _LANGUAGES:
        words = prompts(language)
        asked = [words["unguided"], words["analyze"]["harmful"], words["analyze"]["harmless"]]
        for template in (*asked, words["guided"], words["hindsight"], words["joined"]["prompt"]):
            before, _, rest = template.partition("{instruction}")
            after, _, end = rest.partition("{response}")
            found.append(_Frame(before, after, end or after))
    return tuple(found)


def _run_of(adapter: Path) -> Path | None:
    """The run folder that an adapter, or a snapshot of one, lies in."""
    needed = ("recipe.yaml", "training.jsonl")
    for folder in expanded(adapter).absolute().parents[:2]:
        if all(os.access(folder / name, os.R_OK) for name in needed):
            return folder
    return None


def _start(run: Path) -> Path | None:
    """The adapter that a run's training started from."""
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        return Path(recipe["train"]["start"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _examples(path: Path) -> Iterator[Example]:
    """The examples of a file that another run may be writing: a torn line is passed over."""
    with open(path, "rb") as file:
        for line in file:
            try:
                yield Example.model_validate_json(line)
            except ValidationError:
                continue
