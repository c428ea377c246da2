"""Arguments and options that several commands share. It loads no library: `--help` must be fast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


def installed(kind: str) -> Callable[[str], Iterator[tuple[str, str]]]:
    """Return the shell completion for a kind of part: names, each with a line on what it is.

    Args:
        kind: as of `setbacks list`, such as judges.
    """

    def matches(incomplete: str) -> Iterator[tuple[str, str]]:
        from setbacks.cli.listing import listing

        for name, summary in listing([kind])[kind].items():
            if name.startswith(incomplete):
                yield name, summary

    return matches


def stages(incomplete: str) -> list[str]:
    """Return the stages that a shell may complete."""
    from setbacks.runs.redo import STAGE_NAMES

    return [stage for stage in STAGE_NAMES if stage.startswith(incomplete)]


def listed(kind: str) -> type[TyperCommand]:
    """Return a command class whose help ends with the parts of a kind.

    Args:
        kind: as of `setbacks list`, such as studies.
    """

    class Listed(TyperCommand):
        def format_help(self, context: Any, formatter: Any) -> None:
            from setbacks.cli.listing import listing, show

            super().format_help(context, formatter)
            show(listing([kind]))

    return Listed


def keys(incomplete: str) -> Iterator[tuple[str, str]]:
    """Complete the key of an override."""
    from setbacks.cli import starter

    return starter.keys(incomplete)


def _quieter(quiet: bool) -> bool:
    if quiet:
        logging.getLogger("setbacks").setLevel(logging.WARNING)
    return quiet


Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        help="Redo this stage and every later one; the old outputs move to superseded/.",
        autocompletion=stages,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Values that override the recipe.", autocompletion=keys
    ),
]
RecipeFile = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="A recipe (default: the quickstart).")
]
RunOrRecipe = Annotated[
    str,
    typer.Argument(
        metavar="RUN|RECIPE", help="The run folder, or a recipe to start a run with or resume."
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder (default: runs/NAME).")]
Fields = Annotated[
    str | None,
    typer.Option(
        metavar="OURS=THEIRS,...",
        help="Names of our fields in the file, such as text=prompt.",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Database of the labels: postgresql://... (default: RUN/review/labels.db).",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_quieter, help="Hide progress output; warnings are still shown."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of runs in parallel, each in its own process."),
]
