"""The whole method, from instructions to a report: read this file first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.adapters import check_adapter
from setbacks.embedded import MODELS, resolve
from setbacks.errors import InputError
from setbacks.judges import check_judge
from setbacks.models import check_model, check_quantize
from setbacks.plugins import plugin
from setbacks.recipe import Engine, Recipe
from setbacks.runfolder import RunFolder
from setbacks.sources import Source, load
from setbacks.stages.analyze import analyze, benign
from setbacks.stages.induce import existing, induce
from setbacks.stages.introspect import introspect
from setbacks.stages.judge import judge
from setbacks.stages.report import Report, report
from setbacks.stages.respond import check_arms, respond
from setbacks.stages.train import train


def steps(run: RunFolder) -> Iterator[tuple[str, Any]]:
    """The method of arXiv 2310.10477, section 3, each step with what it made.

    A step does what is missing in the run's folder, and nothing twice.
    """
    adapter = None
    if not run.recipe.evaluate:  # an evaluation takes models as they are
        yield "induce", (mistakes := induce(run))  # 1. guided: draw harmful responses
        yield "analyze", (analyses := analyze(run, mistakes))  # 2. guided: explain the harm
        yield "preflight", introspect(run, analyses)  # can it tell harm at all?
        yield "train", (adapter := train(run, analyses))  # 3. unguided: learn to say so unprompted
        yield "introspect", introspect(run, analyses, adapter)  # and what does it say now?
    yield "respond", (responses := respond(run, adapter))  # 4. answer, with and without guidance
    yield "judge", judge(run, responses)  # 5. measure
    yield "report", report(run)


def run(recipe: Recipe, folder: Path | str, **opening: Any) -> Report:
    """Run the whole method in a folder, or go on where it stopped, and report.

    Args:
        recipe: all that the run is told.
        folder: where everything is kept; an earlier run of the same recipe is resumed.
        opening: what else `RunFolder` takes (`redo`, `show`).

    Raises:
        InputError: the recipe, its data or the folder is at fault.
        SetbacksError: something failed on the way; what was done is kept.
    """
    if opening.get("redo") or not (Path(folder) / "recipe.yaml").exists():
        check(recipe)
    with RunFolder(Path(folder), recipe, **opening) as opened:
        made: Report = carry_out(opened, "report")
    return made


def carry_out(run: RunFolder, until: str) -> Any:
    """Do what is missing up to one step; return what that step made.

    Raises:
        InputError: an evaluation has no such step.
    """
    if run.recipe.evaluate and until not in ("respond", "judge", "report"):
        raise InputError(f"{run.path}: an evaluation; it trains nothing, so it has no {until}")
    return next(made for name, made in steps(run) if name == until)


def check(recipe: Recipe) -> None:
    """Look up all that a recipe names, so that what is wrong shows before hours of work.

    Raises:
        InputError: a method, judge, engine or model is not known, or a source is missing, broken,
            or lacks the fields that it is there for.
    """
    for engine in recipe.parts(Engine):
        remote = getattr(plugin("engines", engine.engine), "check", None)
        if remote:
            if engine is recipe.model and not recipe.evaluate:
                raise InputError(
                    f"model: {engine.model} is on a server, and cannot be trained from here; name "
                    "a local model, and the server as analyze.analyst or as a judge's engine"
                )
            remote(engine)
            continue
        # What other engines call a model is their own affair; what is trained is loaded here.
        ours = engine.engine == "local" or engine is recipe.model
        if ours and engine.model not in MODELS:
            resolve(engine.model)
        if engine.engine == "local":
            check_model(engine)
    if recipe.respond.posterior and not hasattr(plugin("engines", recipe.model.engine), "choose"):
        raise InputError(
            f"respond.posterior: engine {recipe.model.engine} gives no token probabilities to "
            "choose a draft by; leave it out, or set model.engine=local"
        )
    for judge_ in recipe.judges:
        check_judge(judge_)
    for source in recipe.parts(Source):
        load(source)
    if recipe.evaluate:
        check_arms(recipe)
        return
    check_quantize(recipe)
    if recipe.train.start is not None:
        check_adapter(recipe.train.start, recipe.model.model)
    method = plugin("methods", recipe.train.method)()
    method.examples(recipe, [])
    if check_more := getattr(method, "check", None):
        check_more(recipe)
    if method.uses_mistakes:
        existing(recipe)
        list(benign(recipe))
