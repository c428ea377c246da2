"""`setbacks list`: the parts that a recipe or a command can name, with a line on each."""

from __future__ import annotations

import json
from collections.abc import Iterable

from setbacks.data.presets import PRESETS, SETS
from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.plugins import load_all
from setbacks.prompts import languages, prompts
from setbacks.recipe import Recipe

PARTS = ("methods", "judges", "engines", "studies")
KINDS = (*PARTS, "sets", "presets", "languages")
_WRITTEN = {"sets": "builtin:NAME", "presets": "preset:NAME"}


def listing(kinds: Iterable[str] = KINDS) -> dict[str, dict[str, str]]:
    """Return the names of each kind, with a description in a line.

    Args:
        kinds: some of `KINDS`.

    Raises:
        InputError: there is no such kind.
    """
    names = {}
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f'unknown kind "{kind}".{nearest(kind, KINDS)} Available: {", ".join(KINDS)}'
            )
        if kind in PARTS:
            names[kind] = _summaries(kind)
        elif kind == "languages":
            names[kind] = _languages()
        elif kind == "sets":
            names[kind] = dict(sorted((_summaries("suites") | SETS).items()))
        else:
            names[kind] = {name: preset.note for name, preset in sorted(PRESETS.items())}
    return names


def show(names_of: dict[str, dict[str, str]], as_json: bool = False) -> None:
    """Print what `listing` returned as tables, or as JSON."""
    if as_json:
        print(json.dumps(names_of, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    for kind, names in names_of.items():
        title = f"{kind} ({_WRITTEN[kind]} in a recipe)" if kind in _WRITTEN else kind
        table = Table(
            title=title, title_justify="left", box=None, show_header=False, pad_edge=False
        )
        for name, summary in names.items():
            table.add_row(name, summary)
        Console().print(table)


def _languages() -> dict[str, str]:
    """Return each language's name and how its pack was made, or why the pack cannot be used."""
    lines = {}
    for name in languages():
        try:
            lines[name] = "{name}. {about}".format_map(prompts(name))
        except SetbacksError as error:
            lines[name] = str(error)
    return lines


def _summaries(kind: str) -> dict[str, str]:
    """Return the first line of each part's documentation, or why the part cannot be used."""
    usable, broken = load_all(kind)
    lines = {name: (part.__doc__ or "").strip().partition("\n")[0] for name, part in usable.items()}
    if (default := _default(kind)) in lines:
        lines[default] += " (default)"
    return dict(sorted((lines | broken).items()))


def _default(kind: str) -> str | None:
    """Return the part that a recipe names by default; None where there is no default."""
    recipe = Recipe()
    defaults = {
        "methods": recipe.train.method,
        "judges": recipe.judges[0].judge,
        "engines": recipe.model.engine,
    }
    return defaults.get(kind)
