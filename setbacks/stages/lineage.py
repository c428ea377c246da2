"""The earlier runs that a run builds on: whose adapter it continues, whose examples it replays.

The model card names them, and what they were trained on, without paths of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from setbacks.data.overlap import run_of
from setbacks.data.presets import PRESETS
from setbacks.errors import InputError
from setbacks.methods import open_method
from setbacks.recipe import Recipe, Source, Sources
from setbacks.records import Example
from setbacks.runs.folder import Run


class Origin(NamedTuple):
    """An earlier run.

    Args:
        name: of the run; of the adapter's folder if the run is not known.
        recipe: None if it is not known.
        sources: of its own examples of each kind; empty if they are not known.
    """

    name: str
    recipe: Recipe | None = None
    sources: Mapping[str, Sources] = {}

    def described(self) -> str:
        """Say what was learned before training continued with its adapter."""
        start = f"The training continued the adapter of `{self.name}`, "
        if self.recipe is None:
            return f"{start}and what that was trained on is not known."
        sources = {source.source: source for each in self.sources.values() for source in each}
        made_from = named([*sources.values()])
        return f"{start}trained by `{self.recipe.train.method}`; made from: {made_from}."


def origin(adapter: Path) -> Origin:
    """Return the run that trained an adapter."""
    folder = run_of(adapter)
    return (folder and _origin(folder)) or Origin(adapter.name)


def before_training(recipe: Recipe) -> str:
    """Name the model before training."""
    adapter = recipe.current
    return "the base" if adapter is None else f"the base with the adapter `{origin(adapter).name}`"


def named(sources: Sequence[Source]) -> str:
    """Name sources without their paths, with the licenses of public ones."""
    return ", ".join(map(_source, sources)) or "not stated"


def _source(source: Source) -> str:
    name = source.source
    if name.startswith("preset:") and (known := PRESETS.get(name.removeprefix("preset:"))):
        return f"{name} ({known.license})"
    return name if name.startswith(("builtin:", "hub:", "preset:")) else Path(name).name


def continued(recipe: Recipe) -> Iterator[Origin]:
    """Yield the runs whose training a run continues, the latest first."""
    seen: set[Path] = set()
    current: Recipe | None = recipe
    while current and (start := current.start) and start.resolve() not in seen:
        seen.add(start.resolve())
        earlier = origin(start)
        yield earlier
        current = earlier.recipe


def replayed_runs(recipe: Recipe) -> dict[str, Origin]:
    """Return, by name, the runs whose examples a run replays, and those that they replay."""
    waiting, by_folder = [*recipe.train.replay.runs], dict[str, Origin]()
    while waiting:
        folder = waiting.pop(0)
        if folder not in by_folder and (earlier := _origin(Path(folder))):
            by_folder[folder] = earlier
            assert earlier.recipe is not None
            waiting += earlier.recipe.train.replay.runs
    return {earlier.name: earlier for earlier in by_folder.values()}


def _origin(folder: Path) -> Origin | None:
    """Return what a run folder says of itself; None if it is gone or cannot be read."""
    try:
        run = Run(folder)
        recipe = run.recipe
        sources = open_method(recipe).sources(recipe)
        own = {x.kind for x in run.records("training.jsonl", Example) if not x.replayed_from}
    except InputError:
        return None
    return Origin(recipe.name, recipe, {kind: sources.get(kind, []) for kind in sorted(own)})
