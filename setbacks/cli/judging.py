"""Commands for judges and people: `calibrate`, and `review` with its commands."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Container, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from setbacks.cli.options import Database, Fields, Folder, Json, Quiet, installed
from setbacks.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from setbacks.calibration import Calibrated

log = logging.getLogger(__name__)


def calibrate(
    judge: Annotated[
        str | None,
        typer.Argument(
            metavar="JUDGE",
            help="A judge, such as probe; none with --verdicts.",
            autocompletion=installed("judges"),
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY.PATH=VALUE", help="Options of the judge, such as engine.model=DIR."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Human labels: a label file, or a YAML file that lists sources.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Fit the probe's heads on these labels instead."),
    ] = None,
    verdicts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Measure another tool's verdicts in this file instead of a judge."
        ),
    ] = None,
    fields: Fields = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --fit: folder for the heads (default: user data). With --verdicts: folder "
            "for the diagram and the figures (default: not written).",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a judge, or another tool's verdicts, against human labels; or fit the probe."""
    from setbacks import calibration
    from setbacks.cli.arguments import field_mapping, judge_recipe
    from setbacks.judges import check_judge
    from setbacks.runs.progress import show

    if (labels is None) == (fit is None):
        raise InputError("pass either --labels FILE, to measure, or --fit FILE, to fit")
    if verdicts is not None:
        if judge is not None or labels is None:
            raise InputError("--verdicts FILE needs --labels FILE, and no JUDGE")
        label_set = calibration.labels(labels, field_mapping(fields))
        _print_calibration(calibration.compare(label_set, verdicts, out), json)
        return
    if judge is None:
        raise InputError("name a JUDGE, such as probe, or pass --verdicts FILE")
    if fit is not None and (judge != "probe" or overrides):
        raise InputError("--fit is only for the probe, and takes no KEY.PATH=VALUE")
    if fit is None and out is not None:
        raise InputError("--out needs --fit; figures are saved where reports look for them")
    recipe = judge_recipe(judge, overrides or [])
    for spec in recipe.judges:  # a misspelled judge shows before labels are downloaded
        check_judge(spec)
    label_set = calibration.labels(str(labels or fit), field_mapping(fields))
    with show(quiet) as on_progress:
        if fit is not None:
            calibrated = calibration.fit(label_set, out, on_progress)
        else:
            calibrated = calibration.calibrate(recipe, label_set, on_progress)
    _print_calibration(calibrated, json)


def _print_calibration(calibrated: Calibrated, as_json: bool) -> None:
    files = {name: str(path) for name, path in calibrated.files.items()}
    if as_json:
        import json

        print(json.dumps(calibrated.result | {"files": files}, indent=1))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(calibrated.result))
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)


def _table(result: Mapping[str, Any]) -> Table:
    """Return a table of the figures for a terminal: overall, by source, by category."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from setbacks.calibration.figures import MEASURES
    from setbacks.measure.formatting import number

    def cell(measure: Sequence[float] | None) -> str:
        value, low, high = measure or (None, None, None)
        return number(value) + ("" if low is None else f"\n{number(low)}-{number(high)}")

    grid = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=f"{result['judge']} against people, {result['labels']}",
        caption="; ".join(
            part
            for part in (
                result.get("measured_on"),
                "95 % intervals, bootstrap over questions; sens., spec.: sensitivity, specificity; "
                "+n none: answers that the judge left unscored",
            )
            if part
        ),
        title_justify="left",
        caption_justify="left",
    )
    grid.add_column("", overflow="fold")
    for column in ("n (yes)", *MEASURES.values()):
        grid.add_column(column, justify="right", min_width=9)
    for kind in ("overall", "sources", "categories"):
        for row in result.get(kind, ()):
            cells = [cell(row[key]) for key in MEASURES]
            count = f"{row['n']} ({row['n_positive']})"
            if row["unscored"]:
                count += f"\n+{row['unscored']} none"
            grid.add_row(Text(f"{row['source']}\n{row['task']}"), count, *cells)
        grid.add_section()
    return grid


# Review -----------------------------------------------------------------------------------------

OLD_OPTIONS = {"--plan": "plan", "--export": "export", "--import": "import"}


class Review(TyperGroup):
    """The commands of `setbacks review`; for one more release, also the spelling of 0.1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Translate the old spelling, and say the new one in a line."""
        if not ctx.resilient_parsing and is_old_review(args, self.commands):
            args = new_review(args)
            log.warning(
                "this spelling of setbacks review will be removed; use "
                f"`setbacks review {shlex.join(args)}`"
            )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name the commands if the first word is none of them."""
        if not ctx.resilient_parsing and args[0] not in self.commands:
            raise InputError(
                f'unknown command "{args[0]}" of setbacks review.'
                f"{nearest(args[0], self.commands)} Available: {', '.join(self.commands)}"
            )
        return super().resolve_command(ctx, args)


def is_old_review(words: Sequence[str], commands: Container[str]) -> bool:
    """Return whether words are `RUN [--plan | --export FILE | --import FILE]`.

    Args:
        words: what follows `setbacks review`.
        commands: names of its commands; a run folder may have the same name.
    """
    if not words or words[0] in ("-h", "--help"):
        return False
    if any(word.partition("=")[0] in OLD_OPTIONS for word in words):
        return True
    first = words[0]
    if first in commands:  # the command, unless it stands alone and names a run
        return len(words) == 1 and (Path(first) / "recipe.yaml").is_file()
    return first.startswith("-") or os.sep in first or Path(first).exists()


def new_review(words: Sequence[str]) -> list[str]:
    """Return the words of an old spelling in the new one.

    Raises:
        InputError: they ask for two things at once.
    """
    commands, files, rest = [], [], []
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option not in OLD_OPTIONS:
            rest.append(word)
            continue
        commands.append(OLD_OPTIONS[option])
        if option != "--plan":
            files += [value] if equals else list(islice(remaining, 1))
    if len(commands) > 1:
        raise InputError("use one of --plan, --export and --import at a time")
    return [*(commands or ["serve"]), *rest, *files]


review = typer.Typer(
    cls=Review, help="Label answers with people, blinded, on a page.", no_args_is_help=True
)


@review.command()
def serve(
    folder: Folder,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to bind; use 0.0.0.0 to accept other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port (default: 8340); 0 picks a free one.")
    ] = 8340,
    shared: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Fraction of answers that every reviewer labels (default: 0.2).",
        ),
    ] = None,
    database: Database = None,
) -> None:
    """Serve the labeling page until Ctrl-C."""
    _page().serve(folder, host=host, port=port, database=database, share=shared)


@review.command()
def plan(
    folder: Folder,
    arms: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="The two arms to compare (default: picked by the plan)."),
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="The rate to compare (default: harmless_rate).")
    ] = "harmless_rate",
    difference: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Smallest difference to detect, in points (default: the one the judge measured).",
        ),
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(metavar="N", help="Plan exactly N labels instead of as many as needed."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Judge whose uncertainty guides the selection (default: the first).",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Select the answers that people should label to settle a difference between two arms."""
    from setbacks.review.plan import plan_run
    from setbacks.runs.folder import RunFolder

    pair = arms.split(",") if arms else []
    if len(pair) not in (0, 2):
        raise InputError(f"--arms {arms}: name two, as A,B")
    with RunFolder(folder) as run:
        planned = plan_run(
            run,
            arms=tuple(pair) or None,
            metric=metric,
            difference=None if difference is None else difference / 100,
            labels=labels,
            judge=judge,
        )
    path = folder / "review" / "plan.json"
    if json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        print(planned.words)
        print(f"plan: {path}")


@review.command("export")
def export_labels(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="jsonl, csv, labels, argilla or label-studio (default: by the file's ending).",
        ),
    ] = None,
    database: Database = None,
) -> None:
    """Write the labels, or the answers to label, to a file."""
    for path in _page().give_out(folder, file, format, database):
        print(f"{path} written; it holds the answers: keep it private")


@review.command("import")
def import_labels(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An export, a label file, or people's verdicts.")
    ],
    as_: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="Reviewer name for labels that do not carry one."
        ),
    ] = None,
    database: Database = None,
) -> None:
    """Add the labels of a file: all of them, or none if one is wrong."""
    print(f"{_page().take_in(folder, file, as_, database)} new labels")


def _page() -> Any:
    """Load the review page, whose libraries are optional."""
    try:
        from setbacks.review import serve as page
    except ImportError as error:
        raise InputError(
            f"the review page needs more libraries ({error.name}): pip install 'setbacks[review]'"
        ) from None
    return page
