"""Commands for a finished run: `chat` with its models, and `export` what it made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from setbacks.cli.options import Folder, Json, Overrides
from setbacks.errors import InputError, SetbacksError


def chat(
    folder: Folder,
    overrides: Overrides = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Ask only this (default: each line of the input)."),
    ] = None,
    guidance: Annotated[
        bool, typer.Option("--guidance", help="Begin with guidance on (later: /guidance on).")
    ] = False,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="System prompt, after the recipe's model.system (later: /system TEXT).",
        ),
    ] = None,
    history: Annotated[
        bool | None,
        typer.Option(
            "--history/--no-history",
            show_default=False,
            help="Continue one conversation, or ask each prompt by itself (default: continue at "
            "a terminal, each by itself from a pipe).",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each prompt.")
    ] = False,
) -> None:
    """Talk to the model before and after training, side by side."""
    from setbacks.cli.chat import HELP, SideBySide, as_columns, as_json, as_lines, typed

    typing = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    remembers = typing if history is None else history
    sides = SideBySide(folder, overrides or [], system=system, remembers=remembers)
    if typing:
        print(f"{' | '.join(arm.label for arm in sides.arms)}; {HELP}; Ctrl-D ends")
    elif prompt is None:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    lines = typed() if typing else sys.stdin if prompt is None else ()
    turns = (
        sides.converse(lines, guidance, forgives=typing)
        if prompt is None
        else [sides.ask(prompt, guidance)]
    )
    for turn in turns:
        if turn.note:
            print(turn.note, file=sys.stderr)
        elif json:
            print(as_json(turn), flush=True)
        elif sys.stdout.isatty():
            from rich.console import Console

            Console().print(as_columns(turn))
        else:
            print(as_lines(turn), flush=True)


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for it.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="adapter (PEFT; the default), merged (weights), trl (training examples as "
            "messages, for other trainers), or inspect (logs of all answers and verdicts for "
            "Inspect AI). The last two hold harmful text, and only you can read them.",
        ),
    ] = "adapter",
    merge: Annotated[bool, typer.Option("--merge", help="Short for --format merged.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Upload the folder to a new private repository on the hub; needs HF_TOKEN.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: make the repository public.")
    ] = False,
    harvested: Annotated[
        bool,
        typer.Option(
            "--harvested", help="With --push: also push what learned from harvested chat logs."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write the adapter, merged weights, training examples or logs into a new folder."""
    from setbacks import export as exports
    from setbacks.export import push as uploads
    from setbacks.hub import connect
    from setbacks.loop.harvest.retention import learned_from_logs

    if merge and form not in ("adapter", "merged"):
        raise InputError(f"--merge is short for --format merged; omit it or --format {form}")
    for option, given in (("--public", public), ("--harvested", harvested)):
        if given and push is None:
            raise InputError(f"{option} changes nothing without --push OWNER/NAME; remove it")
    if push is not None and form in exports.PRIVATE:
        raise InputError(f"--format {form} holds harmful text and stays here; omit --push")
    if push is not None and not harvested and learned_from_logs(folder):
        raise InputError(
            f"{folder}: learned from harvested chat logs, and weights can repeat what people "
            "wrote; check it, then add --harvested to push it, or omit --push"
        )
    if push is not None:
        uploads.token()  # before the work, not after it
        if reason := connect():
            raise SetbacksError(f"--push: the hub cannot be reached ({reason}); omit --push")
    path = exports.export(folder, to, "merged" if merge else form)
    url = None if push is None else uploads.push(path, push, public=public)
    if json:
        from json import dumps

        print(dumps({"folder": str(path), "url": url}))
    else:
        print(f"exported to {path}" + ("" if url is None else f", and pushed to {url}"))
