"""Commands that set up: `list` parts, print `words`, write a `new` recipe, ask the `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from setbacks.cli.options import Json, Overrides, installed
from setbacks.errors import InputError
from setbacks.text import quoted


def _kinds(incomplete: str) -> list[str]:
    """Return the kinds of parts that a shell may complete."""
    from setbacks.cli.listing import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def list_(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...",
            help="Kinds to list: methods, judges, engines, studies, sets, presets, languages "
            "(default: all).",
            autocompletion=_kinds,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods, judges, engines, studies, data sets and languages that are available."""
    from setbacks.cli.listing import KINDS, listing, show

    show(listing(kinds or KINDS), json)


def words(
    language: Annotated[
        str,
        typer.Argument(
            metavar="[LANGUAGE]",
            help="Language of the words, such as en or zh; `setbacks list languages` shows all.",
            autocompletion=installed("languages"),
        ),
    ] = "en",
) -> None:
    """Print the prompts and other words of a language, with comments.

    Keep what you change in a file, and name it in a recipe: words: FILE.
    """
    from setbacks.prompts import pack_file

    print(pack_file(language).read_text(encoding="utf-8"), end="")


def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write (default: recipe.yaml).")
    ] = Path("recipe.yaml"),
) -> None:
    """Write a commented starter recipe, named after the file."""
    from setbacks.cli.starter import starter

    if file.exists():
        raise InputError(f"{file}: exists already; name another file")
    try:
        file.write_text(starter(file.stem), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from None
    print(f"{file} written; edit it, then: setbacks run {quoted(file)}")


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|RECIPE",
            help="A model (smollm2-135m, a folder, a hub id), or a recipe, to check its model and "
            "training (default: check this machine).",
        ),
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Check what this machine can run, or whether a model will work; exit 2 if it will not."""
    from setbacks.cli import doctor as doctors

    if model is None:
        from setbacks.cli.doctor import machine

        if not doctors.show(machine.examine(), as_json=json):
            raise typer.Exit(1)
        return
    from setbacks.cli.arguments import adapter_base, load_recipe
    from setbacks.cli.doctor.model import examine
    from setbacks.files import expanded

    adapter = expanded(model) / "adapter_config.json"
    if adapter.is_file() and not adapter.with_name("config.json").exists():
        base = adapter_base(adapter)
        raise InputError(
            f"{model}: an adapter of {base}, not a model; check its model with `setbacks doctor "
            f"{quoted(base)}`, and try the adapter with `setbacks evaluate {quoted(model)}`"
        )
    names_recipe = Path(model).is_file() or "=" in model
    recipe = load_recipe(
        model if names_recipe else None,
        overrides,
        [] if names_recipe else [f"model.model={model}"],
    )
    if not doctors.show(examine(recipe), as_json=json):
        raise typer.Exit(2)
