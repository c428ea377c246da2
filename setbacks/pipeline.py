"""The whole method, from instructions to a report: read this file first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from setbacks.data import Source, load, read_once
from setbacks.errors import InputError
from setbacks.notices import notice
from setbacks.recipe import Recipe
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import OtherRecipe, Run, RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.redo import check_name, is_before, stages_of
from setbacks.runs.session import Session
from setbacks.stages import STAGES
from setbacks.stages.analyze import analyze
from setbacks.stages.checks import check_engines
from setbacks.stages.induce import induce
from setbacks.stages.introspect import introspect
from setbacks.stages.judge import judge
from setbacks.stages.preflight import preflight
from setbacks.stages.report import Report, report
from setbacks.stages.respond import respond
from setbacks.stages.train import train, train_along
from setbacks.stages.unused import unused_settings
from setbacks.training import processes


def steps(run: Session, until: str = "report") -> Iterator[tuple[str, Any]]:
    """The method of arXiv 2310.10477, section 3: yield each step's name and its result.

    Each step does only what is missing in the run folder.

    Args:
        run: the session.
        until: the last step that the caller wants.
    """
    adapter, alone = None, until == "preflight"
    if not run.recipe.evaluate:  # an evaluation takes models as they are
        yield "induce", (mistakes := induce(run))  # 1. guided: draw harmful responses
        yield "analyze", (analyses := analyze(run, mistakes))  # 2. guided: explain the harm
        yield "preflight", preflight(run, analyses, alone=alone)  # can it learn?
        yield "train", (adapter := train(run, analyses))  # 3. unguided: learn to say so unprompted
        yield "introspect", introspect(run, analyses, adapter)  # and what does it say now?
    yield "respond", (responses := respond(run, adapter))  # 4. answer
    yield "judge", judge(run, responses)  # 5. measure
    yield "report", report(run.folder)


def run(
    recipe: Recipe,
    folder: Path | str,
    *,
    redo: str | None = None,
    on_progress: Show | None = None,
) -> Report:
    """Run the whole method in a folder, or resume it, and write the report.

    Under `accelerate launch` or `torchrun` only the first process returns. The others train along
    and exit, so that code after this call runs in one process.

    Args:
        recipe: the run's recipe.
        folder: the run folder; an earlier run of the same recipe is resumed.
        redo: the first stage to redo; the outputs of it and later ones move to `superseded/`.
        on_progress: called with (what, done, total).

    Raises:
        InputError: the recipe, its data or the folder is at fault.
        SetbacksError: something failed on the way; progress is saved.
    """
    result: Report = run_until(recipe, folder, "report", redo=redo, on_progress=on_progress)
    return result


@read_once()
def run_until(
    recipe: Recipe | None,
    folder: Path | str,
    until: str,
    *,
    redo: str | None = None,
    on_progress: Show | None = None,
) -> Any:
    """Check a recipe, open a run folder, and run what is missing up to one stage.

    Args:
        recipe: as in `run`; None takes the folder's own.
        folder: as in `run`.
        until: the last stage.
        redo: as in `run`.
        on_progress: as in `run`.

    Returns:
        The result of the last stage.

    Raises:
        InputError: as `run`; an evaluation has no such stage, or there is no run to redo.
        SetbacksError: as `run`.
    """
    folder = Path(folder)
    if processes.rank():
        if is_before("train", until) and not (recipe or Run(folder).recipe).evaluate:
            train_along(folder)
        sys.exit()
    is_new = not (folder / "recipe.yaml").exists()
    if redo is not None and is_new:
        check_name(redo)
        raise InputError(
            f"{folder}: no run to redo from {redo}; check the folder's name, or leave out --from "
            "to start a new run"
        )
    if recipe is not None and (redo or is_new):
        check(recipe)
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_run(folder, recipe, redo))
        except OtherRecipe:
            assert recipe is not None
            check(recipe)  # a mistake in the recipe would be the reason
            raise
        if recipe is not None:  # not a variant of a comparison, whose methods share a section
            for line in unused_settings(recipe):
                notice(line)
        return carry_out(opened, until, on_progress)


def open_run(path: Path, recipe: Recipe | None = None, redo: str | None = None) -> RunFolder:
    """Return a run folder (a context manager) in which stages can be redone; see `RunFolder`."""
    return RunFolder(path, recipe, redo=redo, stages=STAGES)


def carry_out(folder: RunFolder, until: str, on_progress: Show | None = None) -> Any:
    """Run what is missing in an open run folder up to one stage; return that stage's result.

    Raises:
        InputError: an evaluation has no such stage.
    """
    if until not in {stage.name for stage in stages_of(STAGES, folder.recipe)}:
        raise InputError(f"{folder.path}: an evaluation; it trains nothing, so it has no {until}")
    with Session(folder, on_progress) as session:
        return next(result for name, result in steps(session, until) if name == until)


def check(recipe: Recipe) -> None:
    """Look up everything that a recipe names, so that mistakes show before hours of work.

    Raises:
        InputError: a method, judge, engine or model is not known, or a source is missing, broken,
            or lacks the fields that it must have.
    """
    check_engines(recipe)
    for source in recipe.parts(Source):
        load(source)
    recipe = Decontamination(recipe).recipe
    for stage in stages_of(STAGES, recipe):
        stage.check(recipe)
