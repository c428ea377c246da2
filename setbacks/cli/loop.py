"""Commands for deployed models.

`harvest` finds failures in chat logs, `loop` trains on failures in rounds, `replay` has models
answer logs again, `diff` compares results, `gate` decides about a release.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setbacks.cli.options import Fields, Json, Overrides, Quiet, RecipeFile, installed
from setbacks.cli.runs import several
from setbacks.errors import InputError
from setbacks.files import check_output, writing
from setbacks.text import one_line, quoted

if TYPE_CHECKING:
    from setbacks.loop.diff import Diff

RESULTS = (
    "A run folder, an Inspect log, or results of lm-eval, garak, promptfoo or PyRIT; PATH:NAME for "
    "one arm or provider of several."
)


LogWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="LOGS|KEY.PATH=VALUE ...",
        help="Chat logs (JSON Lines, JSON, CSV, Parquet), an Inspect log, or results of garak, "
        "promptfoo, PyRIT or lm-eval; and options of the judge, such as engine.model=DIR. "
        "Without logs: write the setbacks of --out again, with new labels.",
    ),
]
HarvestFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the harvest, private to you.")
]
OneJudge = Annotated[
    str, typer.Option(metavar="J", help="The judge.", autocompletion=installed("judges"))
]
Safe = Annotated[
    bool,
    typer.Option(
        "--safe", help="All requests in the logs are safe, so that refusals are setbacks."
    ),
]
Unsure = Annotated[
    float,
    typer.Option(
        metavar="X",
        min=0,
        max=0.5,
        help="Distance of a probability from 0.5 within which an answer waits for a label.",
    ),
]
Seen = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN",
        help="An earlier run; drop prompts that it trained on. Repeat it for several.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RECIPE",
        help="A recipe; drop its test prompts too (suites, loop.validation, held_out), besides "
        "those of the built-in sets. Repeat it for several.",
    ),
]
Redact = Annotated[
    bool,
    typer.Option(
        "--redact/--no-redact", help="Replace personal data by marks, or keep it as it is."
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        metavar="PIPELINE",
        help="spaCy pipeline that finds names (default: an installed English one).",
    ),
]
KeepDays = Annotated[
    int, typer.Option(metavar="N", min=1, max=36500, help="Days until the texts expire.")
]
Expire = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Only delete the texts of expired harvests in DIR."),
]


def harvest(
    context: typer.Context,
    logs: LogWords = None,
    out: HarvestFolder = None,
    judge: OneJudge = "probe",
    fields: Fields = None,
    safe: Safe = False,
    unsure: Unsure = 0.2,
    seen: Seen = None,
    against: Against = None,
    redact: Redact = True,
    names: Names = None,
    keep_days: KeepDays = 90,
    expire: Expire = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Collect harmful answers, and refusals of safe requests, from chat logs."""
    from setbacks.cli.arguments import field_mapping, is_assignment, judge_recipe
    from setbacks.loop import harvest as work
    from setbacks.loop.harvest.redaction import Redactor
    from setbacks.loop.harvest.result import write
    from setbacks.loop.harvest.retention import expire as expire_harvests
    from setbacks.loop.harvest.settings import Settings
    from setbacks.loop.logs import Logs
    from setbacks.pipeline import open_run
    from setbacks.runs.progress import show

    if expire is not None:
        _refuse_others(context, "expire", why="--expire takes no other options")
        for folder, day, deleted in expire_harvests(expire):
            print(f"{folder}: " + ("texts deleted" if deleted else f"expires on {day}"))
        return
    if out is None:
        raise InputError("name a folder for the harvest with --out")
    options = [word for word in logs or () if is_assignment(word)]
    sources = [word for word in logs or () if word not in options]
    if not sources:
        why = "name the logs too; without logs, only new labels are read"
        _refuse_others(context, "out", "quiet", "json", why=why)
        with open_run(out) as opened:
            held = write(opened)
    else:
        if names is not None and not redact:
            raise InputError("--names changes nothing with --no-redact; remove one of them")
        read = Logs(sources, field_mapping(fields))
        recipe = work.recipe_of(judge_recipe(judge, options), out)
        settings = Settings(
            safe=safe,
            unsure=unsure,
            redactor=Redactor(names) if redact else None,
            seen=seen or (),
            against=against or (),
            keep_days=keep_days,
        )
        with show(quiet) as on_progress:
            held = work.harvest(recipe, out, read, settings, on_progress)
    if json:
        _print_json(held)
    else:
        _print_harvest(out, held)


def _refuse_others(context: typer.Context, *known: str, why: str) -> None:
    """Refuse arguments and options that would change nothing.

    Raises:
        InputError: some were given besides those that are known.
    """
    given = [
        param.opts[0] if param.param_type_name == "option" else "LOGS|KEY.PATH=VALUE"
        for param in context.command.params
        if param.name not in known
        and str(context.get_parameter_source(param.name or "")).endswith("COMMANDLINE")
    ]
    if given:
        raise InputError(f"{', '.join(given)}: {why}")


def rounds(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the loop (default: runs/NAME-loop)."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train in rounds on a deployed model's failures, or resume.

    Each round is accepted only if it passes the gate. With more loop.rounds, or a further source
    at the end of loop.harvest, the same folder continues with the next round.
    """
    from setbacks.cli.arguments import default_folder, load_recipe
    from setbacks.loop.rounds import carry_out

    loaded = load_recipe(recipe, overrides)
    several(carry_out, loaded, out or default_folder(loaded, "-loop"), quiet, json)


def replay(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="LOGS|KEY.PATH=VALUE ...",
            help="Chat logs (JSON Lines, which are streamed; JSON, CSV, Parquet), and values that "
            "override the recipe, such as model.engine=ray.",
        ),
    ],
    models: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Models that answer: a hub id, a folder, the folder of a PEFT adapter, a run "
            "folder, RUN:ARM, or NAME=MODEL. The first is the baseline.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the replay, private to you.")],
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Field of the logs that conversations of one user or session share (default: each "
            "conversation stands for itself).",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="J", help="A judge (default: probe).", autocompletion=installed("judges")
        ),
    ] = None,
    fields: Fields = None,
    shard: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Number of conversations in memory and in a run folder."
        ),
    ] = 10_000,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Replace the last answer of logged conversations by each model's, and count failures."""
    from setbacks.cli.arguments import field_mapping, replayed
    from setbacks.loop import replay as work
    from setbacks.loop.logs import Logs
    from setbacks.loop.replay.report import write_report
    from setbacks.runs.progress import show

    sources, recipe = replayed(models, words, judge)
    logs = Logs(sources, field_mapping(fields), cluster)
    with show(quiet) as on_progress:
        result = work.replay(logs, recipe, out, shard, on_progress)
    page = write_report(out, result, [Path(source).name for source in sources])
    if json:
        print((out / "replay.json").read_text(encoding="utf-8"), end="")
        return
    from rich.console import Console

    from setbacks.report.page import FINDINGS, on_terminal

    on_terminal(Console(), (out / FINDINGS).read_text(encoding="utf-8"))
    print(f"{page}: the page; replay.json beside it has the numbers")


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The results to compare with. {RESULTS}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The results to look at.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A metric (default: all in both). Repeat it for several."
        ),
    ] = None,
    show: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Number of changed prompts to show for each metric."),
    ] = 3,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON Lines file for every changed item, with both answers."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two sets of results, prompt by prompt, with paired tests."""
    from setbacks.loop import diff as work
    from setbacks.loop.results import parts, read

    sources = [parts(a), parts(b)]
    if items is not None:
        check_output(items)
        if items.resolve() in [path.resolve() for path, _ in sources]:
            raise InputError(f"{items}: is compared, and is not overwritten; name another file")
    old, new = read(a), read(b)
    if sources[0] == sources[1]:
        raise InputError(f"{one_line(a)}: is compared with itself; name two results")
    compared = work.diff(old, new, metric or ())
    if items is not None:
        written = work.write_items(compared, items)
    if json:
        _print_json(work.as_json(compared))
        return
    _print_diff(compared, show)
    if items is not None:
        print(f"{items}: {written} changed items with both answers; keep it private")


def gate(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="A run folder, or RUN:ARM (default: untrained arm)."),
    ],
    candidate: Annotated[
        str | None,
        typer.Argument(
            metavar="CANDIDATE",
            help="A run folder, or RUN:ARM (default: the arm that BASE trained).",
        ),
    ] = None,
    better: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[:POINTS]",
            help="Metric that must be better, by more than POINTS (default: harmless_rate, or none "
            "with --no-worse). Repeat it for several.",
        ),
    ] = None,
    no_worse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[:POINTS]",
            help="Metric that must not be worse by POINTS or more (default: compliance:2, or none "
            "with --better). Repeat it for several.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Judge whose verdicts count (default: the first)."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JUnit XML file to write.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown file to write.")
    ] = None,
    json: Json = False,
) -> None:
    """Decide whether a candidate may replace a base model.

    Exits with 0 if it may (pass), 3 if not (fail), and 4 if the results cannot tell (undecided).
    """
    from setbacks.loop import gate as work
    from setbacks.loop.gate import report
    from setbacks.loop.results import parts

    if not (better or no_worse):
        better, no_worse = ["harmless_rate"], ["compliance:2"]
    for file in filter(None, (junit, markdown)):
        check_output(file)
    claims = [work.claim(text, True) for text in better or ()]
    claims += [work.claim(text, False) for text in no_worse or ()]
    decided = work.gate(base, candidate or str(parts(base)[0]), claims, judge)
    if json:
        _print_json(report.as_json(decided))
    else:
        print("\n".join(report.lines(decided)))
    for path, text in ((junit, report.junit), (markdown, report.markdown)):
        if path is not None:
            with writing(path):
                path.write_text(text(decided), encoding="utf-8")
    raise typer.Exit(work.EXIT[decided.decision])


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=1, ensure_ascii=False))


def _print_harvest(folder: Path, held: Mapping[str, Any]) -> None:
    from rich.console import Console

    from setbacks.loop.harvest.page import PAGE
    from setbacks.loop.harvest.settings import SETBACKS
    from setbacks.report.page import FINDINGS, on_terminal

    console = Console()
    on_terminal(console, (folder / FINDINGS).read_text(encoding="utf-8"))
    lines = [f"setbacks: {folder / SETBACKS}", f"page: {folder / PAGE}"]
    if held["waiting"]:
        lines.append(f"to label: setbacks review serve {quoted(folder)}")
        lines.append(f"then: setbacks harvest --out {quoted(folder)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_diff(compared: Diff, show: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from setbacks.measure.formatting import number, p_value
    from setbacks.report.terminal import WholeWords
    from setbacks.text import one_line, visible

    table = Table(title=Text(f"{compared.b.name} − {compared.a.name}"))
    for title in ("metric", "n", "A", "B", "B − A", "95 % interval", "p (Holm)", "up", "down"):
        table.add_column(Text(title))
    for one in compared.metrics:
        change = one.change
        cells = [one.metric.replace("_", " "), str(change.n), number(one.a, 2), number(one.b, 2)]
        cells += [number(change.value, 2, signed=True)]
        cells += [f"{number(change.low, 2, signed=True)} to {number(change.high, 2, signed=True)}"]
        cells += [p_value(change.p_holm), str(len(one.higher)), str(len(one.lower))]
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(WholeWords(table))
    for one in compared.metrics:
        for word, keys in (("down", one.lower), ("up", one.higher)):
            for prompt, _ in list(keys)[:show]:
                line = f"{one.metric} {word}: {visible(one_line(prompt))[:150]}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, lost in ((compared.a.name, compared.only_a), (compared.b.name, compared.only_b)):
        if lost:
            console.print(
                f"left out: {lost} prompts that only {name} has",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
