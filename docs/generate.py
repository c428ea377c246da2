"""Write the pages that come from the code, or check that they are current.

    python docs/generate.py            # write them
    python docs/generate.py --check    # write nothing; exit with 1 and name the pages that differ

So a page's help is what the program prints. Whole pages are docs/commands.md, docs/recipe.md and
recipes/quickstart.yaml. Parts of pages are the records in docs/run-folder.md, from the fields of
`setbacks/records.py`, and the architectures in docs/own-model.md, from the results of
`benchmarks/architectures.py`. A block of code under `<!-- FILE -->` in a page of `QUOTING` is that
file, so the examples that people read are those that the tests run.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from setbacks import records
from setbacks.cli import app, starter
from setbacks.engines.states import StatesProbe
from setbacks.runs.decontamination import LeftOut
from setbacks.studies.likelihood import Likelihood

ROOT = Path(__file__).resolve().parents[1]
# Pages that quote files.
QUOTING = ("CONTRIBUTING.md", "docs/own-method.md", "docs/own-judge.md")
QUOTED = re.compile(r"(<!-- (\S+) -->\n\n```\w*\n).*?(```\n)", re.DOTALL)
# The records of each journal that a run may hold.
JOURNALS: dict[str, type[records.Record]] = {
    "mistakes.jsonl": records.Mistake,
    "analyses.jsonl": records.Analysis,
    "preflight.jsonl": records.Reading,
    "introspection.jsonl": records.Reading,
    "flips.jsonl": records.Flip,
    "revisions.jsonl": records.Revision,
    "corrections.jsonl": records.Correction,
    "answered.jsonl": records.Correction,
    "benign.jsonl": records.OwnAnswer,
    "choices.jsonl": records.Choice,
    "probe.jsonl": StatesProbe,
    "probes/ARM.jsonl": StatesProbe,
    "left_out.jsonl": LeftOut,
    "training.jsonl": records.Example,
    "responses/ARM.jsonl": records.Response,
    "verdicts/ARM.JUDGE.jsonl": records.Verdict,
    "thoughts/ARM.JUDGE.jsonl": records.Verdict,
    "likelihoods.jsonl": Likelihood,
}
RECORDS = re.compile(r"(<!-- setbacks/records.py -->\n).*?(<!-- end -->\n)", re.DOTALL)
ARCHITECTURES = "benchmarks/results/architectures.json"
TABLE = re.compile(rf"(<!-- {ARCHITECTURES} -->\n).*?(<!-- end -->\n)", re.DOTALL)


def main(words: list[str]) -> int:
    """Write or check every page; return the exit code."""
    if words not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    pages = {
        "docs/commands.md": commands(),
        "docs/recipe.md": starter.reference(),
        "recipes/quickstart.yaml": starter.starter(),
        "docs/own-model.md": architectures((ROOT / "docs/own-model.md").read_text("utf-8")),
        "docs/run-folder.md": journals((ROOT / "docs/run-folder.md").read_text("utf-8")),
        **{name: quoted((ROOT / name).read_text(encoding="utf-8")) for name in QUOTING},
    }
    stale = [name for name, text in pages.items() if _read(ROOT / name) != text]
    for name in stale:
        if words:
            print(f"{name} is not current: python docs/generate.py")
        else:
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(pages[name], encoding="utf-8")
            print(f"{name} written")
    return 1 if words and stale else 0


def quoted(page: str) -> str:
    """Return a page with every quoted file as the file now is."""

    def current(match: re.Match[str]) -> str:
        return match[1] + (ROOT / match[2]).read_text(encoding="utf-8") + match[3]

    return QUOTED.sub(current, page)


def journals(page: str) -> str:
    """Return a page with the fields of every journal's records."""
    lines = [""]
    for kind in dict.fromkeys(JOURNALS.values()):
        names = ", ".join(name for name, held in JOURNALS.items() if held is kind)
        lines += [f"### {names}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        lines += ["| field | type | what it is |", "| --- | --- | --- |"]
        schema = kind.model_json_schema()
        for name, field in schema["properties"].items():
            if name not in records.Record.model_fields:
                about = _cell(kind.model_fields[name].description)
                lines.append(f"| `{name}` | {_type(field, schema)} | {about} |")
        lines.append("")
    block = "\n".join(lines) + "\n"
    return RECORDS.sub(lambda match: match[1] + block + match[2], page)


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The JSON type of a field, in words."""
    if "anyOf" in field:
        return " or ".join(_type(one, schema) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        names = schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"]
        return f"object with {', '.join(f'`{name}`' for name in names)}"
    if field["type"] == "array":
        return f"list ({_type(field['items'], schema)})"
    if field["type"] == "object":
        return f"object ({_type(field['additionalProperties'], schema)} values)"
    return {"boolean": "true or false"}.get(field["type"], field["type"])


def architectures(page: str) -> str:
    """Return a page with the table of architectures as it was last measured."""
    data = json.loads((ROOT / ARCHITECTURES).read_text(encoding="utf-8"))
    columns = ("text", "choose", "replayed steps", "run", "merge", "export")
    rows = [row for row in data["rows"] if "refused" not in row]
    refused = [row for row in data["rows"] if "refused" in row]
    killed = [f"`{row['architecture']}`" for row in rows if row.get("resume") == "pass"]
    libraries = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    lines = [
        "",
        f"{len(rows)} architectures, with {libraries}:",
        "",
        "| architecture | what is special | " + " | ".join(columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for row in rows:
        cells = [f"`{row['architecture']}`", row["kind"], *(row[column] for column in columns)]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += [
        "",
        f"Killed twice and resumed, ending with the same bytes: {', '.join(killed)}.",
        "",
        f"{len(refused)} kinds of checkpoints are rejected in one line, before any work:",
        "",
        "| checkpoint | what it is | the line |",
        "| --- | --- | --- |",
    ]
    for row in refused:
        cells = [f"`{row['architecture']}`", row["kind"], row["refused"]]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    block = "\n".join(lines) + "\n\n"
    return TABLE.sub(lambda match: match[1] + block + match[2], page)


def commands() -> str:
    """Return the reference of the command line: each command, as it describes itself."""
    group: Any = typer.main.get_command(app)
    with group.make_context("setbacks", [], resilient_parsing=True) as context:
        lines = [
            "# Commands",
            "",
            "Generated from the code by `python docs/generate.py`. Exit codes: 0 success, 1 a "
            "failure at work, 2 bad input, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.",
            "",
            *_command(group, context),
        ]
        lines += _commands(group, context)
    return "\n".join(lines).rstrip("\n") + "\n"


def _commands(group: Any, parent: Any) -> Iterator[str]:
    """The commands of a group, and theirs, each under its name."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
            title = context.command_path.partition(" ")[2]
            yield from (f"## {title}", "", *_command(command, context))
            if hasattr(command, "list_commands"):
                yield from _commands(command, context)


def _command(command: Any, context: Any) -> Iterator[str]:
    parameters = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option"]
    words = [context.command_path, "[OPTIONS]", *map(_argument, arguments)]
    if hasattr(command, "list_commands"):
        words.append("COMMAND [ARGS]...")
    yield from (inspect.cleandoc(command.help or ""), "", "```", " ".join(words), "```", "")
    if arguments:
        yield from ("| argument | what it is |", "| --- | --- |")
        for argument in arguments:
            default = argument.get_default(context)
            more = "" if default in (None, (), []) else f" Without one: `{default}`."
            yield f"| `{_argument(argument)}` | {_cell(argument.help)}{more} |"
        yield ""
    if options:
        yield from ("| option | what it does |", "| --- | --- |")
        for option in options:
            # click keeps the names of --help in a set, whose order is another in each process
            longest_first = sorted(option.opts, key=len, reverse=True)
            names = ", ".join(f"`{name}`" for name in [*longest_first, *option.secondary_opts])
            takes = "" if option.is_flag else f" `{option.metavar or option.name.upper()}`"
            yield f"| {names}{takes} | {_cell(option.help)} |"
        yield ""


def _argument(argument: Any) -> str:
    """An argument as it stands in a usage line: in brackets where it may be left out."""
    name = (argument.metavar or argument.name.upper()).removesuffix("...").strip("[]")
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
