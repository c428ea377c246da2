"""Plugins: parts that are found by name through entry points, built-in or from other packages.

This is the one place that checks a part's class, so that a mistake in it is one line for its author
and does not hide the other parts.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import getmro, isclass
from traceback import walk_tb
from typing import Any

from setbacks.errors import InputError, SetbacksError, nearest

# The base class of a group's plugins; suites and languages are packages with files.
BASES = {
    "methods": "setbacks.methods.Method",
    "judges": "setbacks.judges.Judge",
    "engines": "setbacks.engines.Engine",
    "studies": "setbacks.studies.Study",
}
# Attributes without a default that a class must set, besides its abstract methods.
REQUIRED = {"methods": ("name",), "studies": ("title", "question")}


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the installed methods, judges, engines, studies, suites or languages, by name."""
    return {point.name: point for point in entry_points(group=f"setbacks.{group}")}


def plugin(group: str, name: str) -> Any:
    """Load the plugin `name` of a group.

    Args:
        group: as in `installed`.
        name: of the entry point.

    Raises:
        InputError: the name is unknown.
        SetbacksError: it cannot be imported, or its class is not a complete part of the group.
    """
    points, kind = installed(group), {"studies": "study"}.get(group, group.removesuffix("s"))
    if name not in points:
        raise InputError(
            f'unknown {kind} "{name}".{nearest(name, points)} '
            f"Available: {', '.join(sorted(points))}"
        )
    point = points[name]
    try:
        part = point.load()
    except Exception as error:  # a plugin can raise anything when it is imported
        reason = describe(error, point.module)
        raise SetbacksError(f'{kind} "{name}" cannot be loaded: {point.value}: {reason}') from error
    if problem := _problem(group, point, part):
        raise SetbacksError(
            f'{kind} "{name}" cannot be used: {problem}; CONTRIBUTING.md shows how to write one'
        )
    return part


def load_all(group: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Load every plugin of a group, so that a broken one does not hide the others.

    Returns:
        The parts that can be used, by name; and why each of the others cannot be.
    """
    usable, broken = {}, {}
    for name in sorted(installed(group)):
        try:
            usable[name] = plugin(group, name)
        except SetbacksError as error:
            broken[name] = str(error)
    return usable, broken


def describe(error: Exception, module: str) -> str:
    """Return an error in a plugin's code in one line, with the plugin's file and line.

    Args:
        error: that was raised.
        module: of the plugin; the place is the innermost one in its package, not in a library.
    """
    if isinstance(error, SyntaxError):
        text, places = error.msg, [(error.filename, error.lineno)]
    else:
        package = module.partition(".")[0]
        text = str(error)
        places = [
            (frame.f_code.co_filename, line)
            for frame, line in walk_tb(error.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == package
        ]
    place = " ({}, line {})".format(*places[-1]) if places else ""
    return f"{type(error).__name__}: {' '.join(text.split())}{place}"


def _problem(group: str, point: EntryPoint, part: Any) -> str:
    """Return why a part cannot be used as one of its group; empty if it can."""
    if group not in BASES:
        return ""
    ancestors = getmro(part) if isclass(part) else ()
    base: Any = next((c for c in ancestors if _path(c) == BASES[group]), None)
    if base is None:
        return f"{point.value} must be a subclass of {BASES[group]}"
    missing = [name for name in REQUIRED.get(group, ()) if not hasattr(part, name)]
    if missing := [*missing, *sorted(part.__abstractmethods__)]:
        return f"{point.value} must define {' and '.join(f'`{name}`' for name in missing)}"
    if not isclass(part.Options) or not issubclass(part.Options, base.Options):
        section = base.Options.__name__
        return f"{part.__qualname__}.Options must be a subclass of setbacks.recipe.{section}"
    if group == "methods" and part.name != point.name:
        return (
            f'{point.value} has the name "{part.name}"; it must equal the name of the entry point'
        )
    return ""


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
