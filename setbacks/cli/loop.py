"""Commands for deployed models: `loop` trains on failures, `gate` decides, `diff` compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from setbacks.cli.options import Json, Overrides, Quiet, RecipeFile
from setbacks.cli.runs import several

if TYPE_CHECKING:
    from setbacks.loop.diff import Diff

RESULTS = "A run folder, an Inspect log, or results of lm-eval, garak or promptfoo; PATH:NAME " + (
    "for one arm or provider of several."
)


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
        int, typer.Option(metavar="N", help="Number of changed prompts to show for each metric.")
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
    from setbacks.loop.results import read

    compared = work.diff(read(a), read(b), metric or ())
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
            help="Metric that must be better, by more than POINTS (default: harmless_rate). "
            "Repeat it for several.",
        ),
    ] = None,
    no_worse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[:POINTS]",
            help="Metric that must not be worse by POINTS or more (default: compliance:2). "
            "Repeat it for several.",
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
    from setbacks.loop import gate_report
    from setbacks.loop.results import parts

    if not (better or no_worse):
        better, no_worse = ["harmless_rate"], ["compliance:2"]
    claims = [work.claim(text, True) for text in better or ()]
    claims += [work.claim(text, False) for text in no_worse or ()]
    decided = work.gate(base, candidate or str(parts(base)[0]), claims, judge)
    for path, text in ((junit, gate_report.junit), (markdown, gate_report.markdown)):
        if path is not None:
            path.write_text(text(decided), encoding="utf-8")
    if json:
        _print_json(gate_report.as_json(decided))
    else:
        print("\n".join(gate_report.lines(decided)))
    raise typer.Exit(work.EXIT[decided.decision])


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=1, ensure_ascii=False))


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
