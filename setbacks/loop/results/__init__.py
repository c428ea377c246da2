"""Results of evaluations, ours and those of other tools: each prompt with its answer and scores.

`read` recognizes the format by content. There is one file for each format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.loop.results.item import Item
from setbacks.messages import transcript
from setbacks.text import one_line

# What pairs two results: a prompt, and how many times it came before, as samples or epochs do.
Key = tuple[str, int]


class Results(NamedTuple):
    """The answers of one model.

    Args:
        name: of the results, for people.
        items: the answers, by prompt.
    """

    name: str
    items: Mapping[Key, Item]

    def metrics(self) -> list[str]:
        """Return the names of all scores, in order of appearance."""
        return list(dict.fromkeys(name for item in self.items.values() for name in item.scores))


def read(source: str) -> Results:
    """Read results.

    Args:
        source: a run folder, an Inspect log, samples of lm-eval, a report or hit log of garak, a
            JSON file of promptfoo, or an export of PyRIT; with `:NAME` behind it for one arm or
            provider of several.

    Raises:
        InputError: the file is missing or broken, has no results, or has several arms and the
            source names none.
    """
    path, name = parts(source)
    reader = reader_of(path)
    if reader is None:
        raise InputError(
            one_line(
                f"{path}: not a run folder, an Inspect log (.eval, .json), a report or hit log of "
                "garak (.jsonl), samples of lm-eval (samples_*.jsonl), results of promptfoo "
                "(.json), or an export of PyRIT (.json, .csv)"
            )
        )
    items = list(reader(path))
    if not items:
        raise InputError(one_line(f"{path}: has no results"))
    names = list(dict.fromkeys(item.of for item in items))
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        what = f'has no "{name}".{nearest(name, names)}' if name else "has several results;"
        raise InputError(one_line(f"{path}: {what} name one as {path}:NAME: {', '.join(names)}"))
    return Results(source, _numbered(item for item in items if item.of == name))


def parts(source: str) -> tuple[Path, str]:
    """Split a source into its path and the name behind it, if any.

    Raises:
        InputError: there is no such path, or no name behind a colon.
    """
    ends = [len(source), *(place for place, sign in enumerate(source) if sign == ":")]
    for end in ends:  # a name may hold colons itself, such as openai:gpt
        path = expanded(source[:end])
        if source[:end] and path.exists():
            if source[end:] == ":":
                raise InputError(one_line(f"{source}: no name after the colon"))
            return path, source[end + 1 :]
    raise InputError(one_line(f"{source}: no such file or folder"))


def reader_of(path: Path) -> Callable[[Path], Iterable[Item]] | None:
    """Return what reads the items of a path; None if its format is unknown."""
    from setbacks.loop.results import garak, inspect_log, lm_eval, promptfoo, pyrit, run_folder

    for kind in (run_folder, inspect_log, garak, lm_eval, promptfoo, pyrit):
        if kind.recognizes(path):
            read: Callable[[Path], Iterable[Item]] = kind.items
            return read
    return None


def _numbered(items: Iterable[Item]) -> dict[Key, Item]:
    seen: Counter[str] = Counter()
    by_key: dict[Key, Item] = {}
    for item in items:
        # NaN and infinity are no scores: Inspect writes NaN for an answer without one.
        scores = {name: score for name, score in item.scores.items() if math.isfinite(score)}
        prompt = transcript(item.prompt)
        by_key[prompt, seen[prompt]] = item._replace(scores=scores)
        seen[prompt] += 1
    return by_key


def shared(a: Results, b: Results, metric: str) -> Sequence[Key]:
    """Return the prompts that have a score in both, in the order of the first."""
    return [
        key
        for key, item in a.items.items()
        if metric in item.scores and key in b.items and metric in b.items[key].scores
    ]
