"""What is found by name: ours and other packages', through entry points alike."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from setbacks.errors import InputError, SetbacksError, nearest


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
        SetbacksError: it is there, but cannot be imported.
    """
    points = installed(group)
    if name not in points:
        raise InputError(
            f'no "{name}" among the {group}: {", ".join(sorted(points))}.{nearest(name, points)}'
        )
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise SetbacksError(f'{group} "{name}" cannot be loaded: {error}') from error
