"""Redoing stages: which ones a changed recipe affects, and setting their outputs aside.

A `Stage` has a name, outputs, and the keys that it depends on. `setbacks.stages` has the list of
stages and passes it to a run folder through `setbacks.pipeline`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from setbacks.errors import InputError, nearest
from setbacks.files import sync, writing
from setbacks.recipe import Recipe

StageName = Literal[
    "induce", "analyze", "preflight", "train", "introspect", "respond", "judge", "report"
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)  # in the order of the method

TRAINING = ("train", "introspect")  # stages that make the trained model, or read it alone

MOST_CHANGES = 4  # in a message
LONGEST_VALUE = 120  # characters of a value in a message
BEFORE = 40  # of them that come before the place where two long values begin to differ
ABSENT = object()  # stands for the value of a key that a recipe does not have


def _nothing(_: object) -> tuple[str, ...]:
    return ()


def _no_check(_: Recipe) -> None:
    pass


def _same(_: Recipe, __: Recipe) -> bool:
    return False


class Redo(NamedTuple):
    """What is redone in a run folder.

    Attributes:
        folder: the run folder.
        recipe: the recipe that its outputs come from.
        first: the first stage to redo.
        keys: dotted keys of the recipe that changed.
    """

    folder: Path
    recipe: Recipe
    first: str
    keys: Sequence[str] = ()

    def changes(self, stage: Stage) -> bool:
        """Whether a stage depends on a key that changed."""
        return any(stage.depends_on(key, self.recipe) for key in self.keys)


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: its outputs, what it depends on, and its check.

    Attributes:
        name: names the stage on the command line and in costs.
        outputs: files and folders that it writes in a run folder. `--from` sets them aside.
        keys: keys of the recipe that no earlier stage depends on. A part `*` of a dotted key stands
            for any name.
        check: looks up everything that the stage needs, before any work; raises InputError.
        evaluates: whether an evaluation, which trains nothing, has this stage too.
        more_outputs: further outputs under a given recipe.
        more_keys: further keys that it depends on under a given recipe.
        shown: outputs that only the report reads, and the key of the recipe, one of the report's,
            that redoes each of them and no later stage.
        other_data: whether it has other data under a new recipe, though none of its keys changed.
        stays: patterns of files in its folders that stay, since a redo would not change them.
    """

    name: StageName
    outputs: tuple[str, ...]
    keys: tuple[str, ...] = ()
    check: Callable[[Recipe], None] = _no_check
    evaluates: bool = False
    more_outputs: Callable[[Recipe], tuple[str, ...]] = _nothing
    more_keys: Callable[[Recipe], tuple[str, ...]] = _nothing
    other_data: Callable[[Recipe, Recipe], bool] = _same
    shown: Mapping[str, str] = field(default_factory=dict)
    stays: Callable[[Redo], Sequence[str]] = _nothing

    def depends_on(self, key: str, recipe: Recipe) -> bool:
        """Whether a dotted key of the recipe is one of the stage's, or is inside one of them."""
        return any(is_inside(key, own) for own in (*self.keys, *self.more_keys(recipe)))


def is_inside(key: str, own: str) -> bool:
    """Whether a dotted key is a stage's own, or inside it; a part `*` of it stands for any name."""
    parts, own_parts = key.split("."), own.split(".")
    return len(parts) >= len(own_parts) and all(
        part in ("*", given) for part, given in zip(own_parts, parts, strict=False)
    )


def check_name(name: str) -> None:
    """Check that a stage exists.

    Raises:
        InputError: it does not.
    """
    if name not in STAGE_NAMES:
        have = ", ".join(STAGE_NAMES)
        raise InputError(f'unknown stage "{name}".{nearest(name, STAGE_NAMES)} Available: {have}')


def is_before(stage: str, other: str) -> bool:
    """Whether redoing from `stage` also redoes `other`."""
    order: tuple[str, ...] = STAGE_NAMES
    return order.index(stage) <= order.index(other)


def stages_of(stages: Sequence[Stage], recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe has; an evaluation trains nothing."""
    return [stage for stage in stages if stage.evaluates or not recipe.evaluate]


def first_affected(
    stages: Sequence[Stage], keys: Sequence[str], recipe: Recipe, new: Recipe
) -> str:
    """Return the first stage that a changed recipe affects.

    Args:
        stages: all stages, in order.
        keys: dotted keys that changed.
        recipe: the old one.
        new: the new one.
    """
    if recipe.evaluate:
        stages = stages_of(stages, new)
    for stage in stages:
        if any(stage.depends_on(key, recipe) for key in keys) or stage.other_data(recipe, new):
            return stage.name
    return stages[0].name  # a key that no stage names: start from the beginning


def set_aside(redo: Redo, stages: Sequence[Stage]) -> Path | None:
    """Move the outputs of a stage and all later ones to `superseded/`; nothing is deleted.

    Args:
        redo: what is redone.
        stages: all stages, in order.

    Returns:
        Where the outputs are now; None if there were none.

    Raises:
        InputError: a source is missing or broken.
    """
    folder = redo.folder
    moved = [path for stage in stages for path in _to_move(redo, stage)]
    if not moved:
        return None
    shelf = folder / "superseded"
    with writing(shelf):
        shelf.mkdir(mode=0o700, exist_ok=True)
        taken = [int(path.name) for path in shelf.iterdir() if path.name.isdigit()]
        place = shelf / f"{max(taken, default=0) + 1:03}"
        place.mkdir(mode=0o700)
        shutil.copy2(folder / "recipe.yaml", place / "recipe.yaml")
        # The last stage first: a crash in between leaves a folder that can be resumed.
        targets = {path: place / path.relative_to(folder) for path in reversed(moved)}
        for path, target in targets.items():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            path.rename(target)
        for changed in {
            *(one.parent for pair in targets.items() for one in pair),
            place,
            shelf,
            folder,
        }:
            sync(changed)
    return place


def _to_move(redo: Redo, stage: Stage) -> list[Path]:
    """Return the outputs of a stage that a redo sets aside; of a folder, the files that change."""
    if not is_before(redo.first, stage.name):
        shown = stage.shown.items()
        names = [name for name, own in shown if any(is_inside(key, own) for key in redo.keys)]
        return [path for name in names if (path := redo.folder / name).exists()]
    names = [*stage.more_outputs(redo.recipe), *stage.outputs]
    stays, moved = stage.stays(redo), []
    for output in (redo.folder / name for name in names):
        kept = {path for pattern in stays for path in output.glob(pattern)}
        if kept:
            moved += sorted({*output.iterdir()} - kept)
        elif output.exists():
            moved.append(output)
    return moved


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, old value, new value) for each place where two recipes differ."""
    if old is ABSENT and isinstance(new, dict) and new:
        old = {}
    elif new is ABSENT and isinstance(old, dict) and old:
        new = {}
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            values = old.get(key, ABSENT), new.get(key, ABSENT)
            yield from differences(*values, f"{path}.{key}".strip("."))
    elif _same_sections(old, new):
        for place, values in enumerate(zip(old, new, strict=True)):
            yield from differences(*values, f"{path}.{place}")
    elif old != new:
        yield path, *_shown(old, new)


def described(old: Any, new: Any) -> str:
    """Return the first `differences` of two recipes in words, and the number of the others.

    Empty if there are none.
    """
    changes = list(differences(old, new))
    shown = "; ".join(f"{key}: {old} -> {new}" for key, old, new in changes[:MOST_CHANGES])
    more = len(changes) - MOST_CHANGES
    return f"{shown} and {more} more" if more > 0 else shown


def _same_sections(old: Any, new: Any) -> bool:
    """Whether both are lists of equally many sections, to be compared one by one."""
    if not isinstance(old, list) or not isinstance(new, list) or len(old) != len(new):
        return False
    return all(isinstance(item, dict) for item in (*old, *new))


def _shown(old: Any, new: Any) -> tuple[str, str]:
    """Return two values in words; of long ones that begin alike, what comes after."""
    texts = _text(old), _text(new)
    same = len(commonprefix(texts))
    long = max(map(len, texts)) > LONGEST_VALUE and same > LONGEST_VALUE // 2
    start = same - BEFORE if long else 0
    first, second = (_cut(f"...{text[start:]}" if start else text) for text in texts)
    return first, second


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _text(value: Any) -> str:
    if value is ABSENT:
        return "(not set)"
    text: str = yaml.safe_dump(
        _brief(value),
        default_flow_style=True,
        width=10**6,
        sort_keys=False,
        allow_unicode=True,
    )
    return text.removesuffix("...\n").strip()


def _brief(value: Any) -> Any:
    """Leave empty values out of the sections of a list, so that a source is one short item."""
    if isinstance(value, list):
        return [_brief(item) for item in value]
    if isinstance(value, dict):
        return {key: _brief(item) for key, item in value.items() if item not in (None, {}, [], "")}
    return value
