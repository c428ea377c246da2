"""What is found by name: ours and other packages', through entry points alike."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro, isclass
from typing import Any

from setbacks.errors import InputError, SetbacksError, nearest

# What a plugin of a group is a subclass of; suites are packages with files.
BASES = {
    "methods": "setbacks.methods.Method",
    "judges": "setbacks.judges.Judge",
    "engines": "setbacks.engines.Engine",
    "studies": "setbacks.studies.Study",
}


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return what is installed, by name: methods, judges, engines, studies or suites."""
    return {point.name: point for point in entry_points(group=f"setbacks.{group}")}


def plugin(group: str, name: str) -> Any:
    """Load the plugin `name` of a group.

    Args:
        group: as of `installed`.
        name: the entry point's name.

    Raises:
        InputError: there is none of that name.
        SetbacksError: it cannot be imported, or is not a subclass of the group's base class.
    """
    points = installed(group)
    if name not in points:
        raise InputError(
            f'no "{name}" among the {group}: {", ".join(sorted(points))}.{nearest(name, points)}'
        )
    try:
        found = points[name].load()
    except (ImportError, AttributeError) as error:
        raise SetbacksError(f'{group} "{name}" cannot be loaded: {error}') from error
    base = BASES.get(group)
    if base is not None and base not in map(_path, getmro(found) if isclass(found) else ()):
        raise SetbacksError(
            f'{group} "{name}" cannot be used: {points[name].value} must be a subclass of {base}; '
            "CONTRIBUTING.md shows how to write one"
        )
    return found


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
