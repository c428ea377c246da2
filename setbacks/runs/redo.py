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
from typing import Any, Literal, get_args

import yaml

from setbacks.errors import InputError, nearest
from setbacks.files import sync, writing
from setbacks.recipe import Recipe

StageName = Literal[
    "induce", "analyze", "preflight", "train", "introspect", "respond", "judge", "report"
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)  # in the order of the method

TRAINING = ("train", "introspect")  # stages that change the trained model, or read it alone

MOST_CHANGES = 4  # in a message
LONGEST_VALUE = 120  # characters of a value in a message
BEFORE = 40  # of them that come before the place where two long values begin to differ
ABSENT = object()  # stands for the value of a key that a recipe does not have


def _nothing(_: Recipe) -> tuple[str, ...]:
    return ()


def _no_check(_: Recipe) -> None:
    pass


def _same(_: Recipe, __: Recipe) -> bool:
    return False


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: its outputs, what it depends on, and its check.

    Attributes:
        name: names the stage on the command line and in costs.
        outputs: files and folders that it writes in a run folder. `--from` sets them aside.
        stays: pattern of files in these folders that stay, unless an earlier stage is redone.
        untrained: patterns of files in these folders that depend on the model before training, and
            stay where its training is redone.
        keys: keys of the recipe that no earlier stage depends on. A part `*` of a dotted key stands
            for any name.
        check: looks up everything that the stage needs, before any work; raises InputError.
        evaluates: whether an evaluation, which trains nothing, has this stage too.
        more_outputs: further outputs under a given recipe.
        more_keys: further keys that it depends on under a given recipe.
        shown: outputs that only the report reads, and the key of the recipe, one of the report's,
            that redoes each of them and no later stage.
        other_data: whether it has other data under a new recipe, though none of its keys changed.
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
    stays: str = ""
    untrained: Callable[[Recipe], tuple[str, ...]] = _nothing

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


def set_aside(
    folder: Path, stages: Sequence[Stage], first: str, recipe: Recipe, keys: Sequence[str] = ()
) -> Path | None:
    """Move the outputs of a stage and all later ones to `superseded/`; nothing is deleted.

    Args:
        folder: the run folder.
        stages: all stages, in order.
        first: the first stage to redo.
        recipe: the recipe that the outputs come from.
        keys: dotted keys of it that changed.

    Returns:
        Where the outputs are now; None if there were none.
    """
    outputs = [
        folder / output
        for stage in stages
        for output in (
            (*stage.more_outputs(recipe), *stage.outputs)
            if is_before(first, stage.name)
            else [name for name, own in stage.shown.items() if any(is_inside(k, own) for k in keys)]
        )
        if (folder / output).exists()
    ]
    stay = _staying(stages, first, recipe, keys)
    moved = [path for output in outputs for path in _but(output, stay.get(output.name, ()))]
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
        for changed in {*(one.parent for pair in targets.items() for one in pair), place, shelf}:
            sync(changed)
    return place


def _staying(
    stages: Sequence[Stage], first: str, recipe: Recipe, keys: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the patterns of the files that stay when a stage is redone, by their folder."""
    stay: dict[str, tuple[str, ...]] = {}
    changed = first not in TRAINING
    for stage in stages:
        if stage.untrained is not _nothing:  # verdicts on answers that change are made again, too
            changed = changed or any(stage.depends_on(key, recipe) for key in keys)
        patterns = () if changed else stage.untrained(recipe)
        if stage.name == first and stage.stays:
            patterns = (*patterns, stage.stays)
        stay |= dict.fromkeys(stage.outputs, patterns)
    return stay


def _but(output: Path, stays: Sequence[str]) -> list[Path]:
    """Return an output, or where it is a folder with files that stay, the other files."""
    kept = {file for pattern in stays if output.is_dir() for file in output.glob(pattern)}
    return sorted(set(output.iterdir()) - kept) if kept else [output]


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
