"""Commands that run, evaluate, compare and study; each is a few calls to what does the work."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setbacks.cli.options import (
    Fields,
    From,
    Jobs,
    Json,
    Out,
    Overrides,
    Quiet,
    RecipeFile,
    RunOrRecipe,
    installed,
)

if TYPE_CHECKING:
    from setbacks.recipe import Recipe
    from setbacks.records import Reading
    from setbacks.runs.progress import Show
    from setbacks.stages.preflight import Preflight
    from setbacks.stages.report import Report

log = logging.getLogger(__name__)

# The commands of single stages, in the order of the method.
STAGES = {
    "induce": "Step 1: induce mistakes.",
    "analyze": "Step 2: generate analyses of the mistakes.",
    "preflight": "Check before training whether the model can tell harmful from harmless, and "
    "whether analyses help it to answer its mistakes better.",
    "train": "Step 3: fine-tune an adapter on what the method learns from its mistakes.",
    "introspect": "Have the trained model analyze responses, and check whether it can tell harm.",
    "respond": "Step 4: answer the suites before and after training.",
    "judge": "Step 5: judge the responses.",
    "report": "Write metrics.json and report.html.",
}


def run(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    out: Out = None,
    redo: From = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the whole pipeline, or resume it."""
    from setbacks.cli.arguments import default_folder, load_recipe

    loaded = load_recipe(recipe, overrides)
    _carry_out(out or default_folder(loaded), loaded, "report", redo, quiet, json)


def stage(name: str) -> Callable[..., None]:
    """Return the command of a stage.

    Args:
        name: one of `STAGES`.
    """

    def command(
        run: RunOrRecipe,
        overrides: Overrides = None,
        out: Out = None,
        redo: From = None,
        quiet: Quiet = False,
        json: Json = False,
    ) -> None:
        from setbacks.cli.arguments import run_or_recipe

        folder, recipe = run_or_recipe(run, overrides, out)
        _carry_out(folder, recipe, name, redo, quiet, json)

    command.__doc__ = f"{STAGES[name]}\n\nRuns the missing stages up to this one."
    return command


def evaluate(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|NAME=MODEL|NAME=ANSWERS|KEY.PATH=VALUE ...",
            help="Models (smollm2-135m, a folder, the folder of a PEFT adapter, a hub id), files "
            "of answers, and values that override the recipe. The first arm is the baseline.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="harmful, hijacking, safe, helpful; KIND=SOURCE; or a recipe, for its suites "
            "(default: all four). Repeat it for several.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="J",
            help="A judge (default: the recipe's). Repeat it for several.",
            autocompletion=installed("judges"),
        ),
    ] = None,
    fields: Fields = None,
    out: Out = None,
    redo: From = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run suites on any models, or score existing answers. Trains nothing."""
    from setbacks.cli.arguments import default_folder, evaluation, field_mapping

    recipe = evaluation(arms, suite or (), judge or (), field_mapping(fields))
    _carry_out(out or default_folder(recipe), recipe, "report", redo, quiet, json)


def compare(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Arms of the recipe to compare, by name, or other methods (default: the recipe's "
            "arms).",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of training seeds per method (default: the recipe's)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the comparison (default: runs/NAME-compare)."),
    ] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train and measure several methods at equal data, or resume a comparison."""
    from setbacks.cli.arguments import default_folder, load_recipe, of_methods
    from setbacks.studies import carry_out

    options = [] if seeds is None else [f"compare.seeds={seeds}"]
    options += [] if jobs is None else [f"jobs={jobs}"]
    loaded = load_recipe(recipe, overrides, options)
    if methods is not None:
        loaded = of_methods(loaded, methods)
    folder = out or default_folder(loaded, "-compare")
    several(partial(carry_out, "compare"), loaded, folder, quiet, json)


def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A study (default: list the studies).",
            autocompletion=installed("studies"),
        ),
    ] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the study (default: runs/NAME-STUDY)."),
    ] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or resume it; without a name, list the studies."""
    if name is None:
        from setbacks.cli.listing import listing, show

        show(listing(["studies"]), json)
        return
    from setbacks.cli.arguments import default_folder, load_recipe
    from setbacks.studies import carry_out

    loaded = load_recipe(recipe, overrides, [] if jobs is None else [f"jobs={jobs}"])
    folder = out or default_folder(loaded, f"-{name}")
    several(partial(carry_out, name), loaded, folder, quiet, json)


def several(
    work: Callable[..., Path], recipe: Recipe, folder: Path, quiet: bool, as_json: bool
) -> None:
    """Carry out a comparison, a study or a loop, and print its findings."""
    from setbacks.report.page import FINDINGS, on_terminal
    from setbacks.runs.progress import show

    with show(quiet) as on_progress:
        page = work(recipe, folder, on_progress)
    findings = (page.parent / FINDINGS).read_text(encoding="utf-8")
    if as_json:
        print(findings, end="")
        return
    from rich.console import Console

    console = Console()
    on_terminal(console, findings)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def _carry_out(
    folder: Path, recipe: Recipe | None, until: str, redo: str | None, quiet: bool, as_json: bool
) -> None:
    """Run the pipeline up to one of its steps, and print the result."""
    from setbacks.pipeline import run_until
    from setbacks.runs.progress import show
    from setbacks.training import processes

    if processes.rank():  # it has nothing to save, and the first process says why all end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with show(quiet) as progress:
        on_progress = progress if recipe else _announcing(progress, folder, until)
        result = run_until(recipe, folder, until, redo=redo, on_progress=on_progress)
    if until == "report":
        _print_report(result, as_json)
    else:
        _print_stage(until, folder, result, as_json)


def _announcing(progress: Show | None, folder: Path, until: str) -> Show:
    """Return progress that says once, before it starts, which earlier stage has to run first."""
    announced = False

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal announced
        stage = what.partition(" ")[0]
        if done < total and not announced:
            announced = True
            if stage != until:
                log.warning(
                    f"{folder}: the stage {stage} is not finished, so it runs before {until}, with "
                    "all stages in between; Ctrl-C stops, and progress is saved"
                )
        if progress:
            progress(what, done, total)

    return on_progress


def _print_stage(name: str, folder: Path, result: Any, as_json: bool) -> None:
    """Print that a stage is done, and what it measured of the model."""
    data: dict[str, Any] = {"stage": name, "folder": str(folder)}
    text = f"{name}: done, in {folder}"
    if name == "preflight":
        about_flips, flips = _flips(result)
        about, auc = _own_verdict(result.readings)
        text = f"{text}\n{about}\n{about_flips}"
        data |= {"auc": auc, "flips": flips}
    elif name == "introspect":
        about, data["auc"] = _own_verdict(result)
        text = f"{text}\n{about}"
    if as_json:
        import json

        text = json.dumps(data)
    print(text)


def _own_verdict(readings: Sequence[Reading]) -> tuple[str, Any]:
    """Return how good the model's own verdict is: a line, and the AUC as data."""
    from setbacks.measure import spoken
    from setbacks.measure.formatting import coefficient

    verdicts = spoken(readings)
    what = "AUC of the model's own verdict"
    if verdicts:
        return f"{what}: {coefficient(verdicts.auc)}", verdicts.auc
    if readings:
        return f"{what}: needs 10 responses of each kind", None
    why = "the method learns no analyses, or the engine gives no probabilities"
    return f"{what}: skipped; {why}", None


def _flips(result: Preflight) -> tuple[str, Any]:
    """Return the flip rates: lines, and data."""
    from setbacks.measure import flip_report, to_json
    from setbacks.measure.formatting import change_with_p, with_interval

    report = flip_report(result.flips)
    if not result.flips:
        return "flip rate: skipped; see preflight.flip_rate in the recipe", None
    if report is None:
        return "flip rate: needs 10 mistakes", None
    lines = [
        f"flip rate: harmless refusals, which training would learn, in % of {report.n} mistakes"
    ]
    lines += [f"  {context}: {with_interval(rate)}" for context, rate in report.rates.items()]
    lines += [
        f"  {one.context} - {one.against}: {change_with_p(one)}" for one in report.differences
    ]
    return "\n".join(lines), to_json(report)


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        print((report.path.parent / "metrics.json").read_text(encoding="utf-8"), end="")
        return
    from rich.console import Console

    from setbacks.report.run_page import headline

    console = Console()
    console.print(headline(report.results))
    for finding in report.results.findings:
        console.print(f"- {finding.text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {report.path}", markup=False, highlight=False, soft_wrap=True)
