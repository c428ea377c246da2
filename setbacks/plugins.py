"""Plugins: parts that are found by name through entry points, built-in or from other packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro, isclass
from typing import Any

from setbacks.errors import InputError, SetbacksError, nearest

# The base class of a group's plugins; suites are packages with files.
BASES = {
    "methods": "setbacks.methods.Method",
    "judges": "setbacks.judges.Judge",
    "engines": "setbacks.engines.Engine",
    "studies": "setbacks.studies.Study",
}


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the installed methods, judges, engines, studies or suites, by name."""
    return {point.name: point for point in entry_points(group=f"setbacks.{group}")}


def plugin(group: str, name: str) -> Any:
    """Load the plugin `name` of a group.

    Args:
        group: as in `installed`.
        name: of the entry point.

    Raises:
        InputError: the name is unknown.
        SetbacksError: it cannot be imported, or is not a subclass of the group's base class.
    """
    points = installed(group)
    if name not in points:
        kind = {"studies": "study"}.get(group, group.removesuffix("s"))
        raise InputError(
            f'unknown {kind} "{name}".{nearest(name, points)} '
            f"Available: {', '.join(sorted(points))}"
        )
    try:
        part = points[name].load()
    except (ImportError, AttributeError) as error:
        raise SetbacksError(f'{group} "{name}" cannot be loaded: {error}') from error
    base = BASES.get(group)
    if base is not None and base not in map(_path, getmro(part) if isclass(part) else ()):
        raise SetbacksError(
            f'{group} "{name}" cannot be used: {points[name].value} must be a subclass of {base}; '
            "CONTRIBUTING.md shows how to write one"
        )
    return part


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
