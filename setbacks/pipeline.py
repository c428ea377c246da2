"""The whole method, from instructions to a report: read this file first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from setbacks.data import Source, load
from setbacks.errors import InputError
from setbacks.judges import check_judge, judge_class
from setbacks.judges.checks import check_checker
from setbacks.methods import open_method
from setbacks.models.chat_template import check_chat
from setbacks.models.embedded import resolve
from setbacks.models.loading import check_model, check_quantize, load_tokenizer
from setbacks.plugins import plugin
from setbacks.recipe import Engine, JudgeSpec, Recipe
from setbacks.runs.folder import RunFolder
from setbacks.stages.analyze import analyze, benign
from setbacks.stages.induce import existing, induce
from setbacks.stages.introspect import introspect
from setbacks.stages.judge import judge
from setbacks.stages.report import Report, report
from setbacks.stages.respond import check_arms, respond
from setbacks.stages.train import train
from setbacks.training.targets import check_served, look_up, look_up_start

log = logging.getLogger(__name__)

# Engines that run what transformers knows; what those of other packages run, they alone can say.
OURS = ("local", "vllm", "ray")


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
        kind = plugin("engines", engine.engine)
        if kind.elsewhere and engine is recipe.model and not recipe.evaluate:
            raise InputError(
                f"model: {engine.model} is on a server, and cannot be trained from here; name "
                "a local model, and the server as analyze.analyst or as a judge's engine"
            )
        kind.check(engine)
        # What other engines call a model is their own affair; what is trained is loaded here.
        ours = engine.engine == "local" or engine is recipe.model
        if ours and _is_used(engine, recipe):
            resolve(engine.model, engine.revision)
            if engine.engine == "local":
                check_model(engine)
    if recipe.respond.posterior and not plugin("engines", recipe.model.engine).shows_probabilities:
        raise InputError(
            f"respond.posterior: engine {recipe.model.engine} gives no token probabilities to "
            "choose a draft by; leave it out, or set model.engine=local"
        )
    for judge_ in (*recipe.judges, *_checkers(recipe)):
        if reader := check_judge(judge_).embedded:
            resolve(reader)
    for judge_ in _checkers(recipe):
        check_checker(judge_, recipe)
    for source in recipe.parts(Source):
        load(source)
    if recipe.evaluate:
        check_arms(recipe)
    else:
        _check_training(recipe)
    _check_chats(recipe)


def _checkers(recipe: Recipe) -> list[JudgeSpec]:
    """Return the judges that check what a run is trained on."""
    if recipe.evaluate:
        return []
    method, train = open_method(recipe), recipe.train
    found = [recipe.induce.judge] if recipe.induce.judge and method.uses_mistakes else []
    return (
        [*found, train.judge or JudgeSpec()]
        if method.checks_texts or train.helpful_from == "model"
        else found
    )


def _check_training(recipe: Recipe) -> None:
    """Look up what a recipe that trains names besides, and what its adapter is put on.

    A model that another package's engine runs is looked up when its training begins.
    """
    check_quantize(recipe)
    method = open_method(recipe)
    method.examples(recipe, [])
    if method.uses_mistakes:
        existing(recipe)
        list(benign(recipe))
    if recipe.model.engine not in OURS:
        return
    if recipe.train.start is not None:
        look_up_start(recipe, recipe.train.start)
    else:
        check_served(recipe)
        if left_out := look_up(recipe).left_out:
            _warn_once(left_out)
    method.check(recipe)


def _is_used(engine: Engine, recipe: Recipe) -> bool:
    """Whether a run needs an engine: an evaluation asks its own model only for a judge."""
    if not recipe.evaluate or engine is not recipe.model:
        return True
    return any(
        judge_.engine is None and judge_class(judge_).needs_engine for judge_ in recipe.judges
    )


@cache
def _warn_once(line: str) -> None:
    """Warn of something that all the runs of a comparison have in common."""
    log.warning(line)


def _check_chats(recipe: Recipe) -> None:
    """Check that conversations can be put to the models that run here; last, since it loads them.

    Guards have conversations of their own, and servers have their own templates.
    """
    if recipe.evaluate:
        asked = [arm.model for arm in recipe.evaluate]
    else:
        asked = [recipe.model, recipe.analyze.analyst]
    judges = (*recipe.judges, *_checkers(recipe))
    asked += [judge.engine for judge in judges if judge_class(judge).weights is None]
    for spec in asked:
        if spec is not None and spec.engine in OURS:
            trains = spec is recipe.model and not recipe.evaluate
            _check_chat(spec.model_dump_json(), trains)


@cache
def _check_chat(spec: str, trains: bool) -> None:
    """Check one model, and warn of it, once: the runs of a comparison have the same models."""
    engine = Engine.model_validate_json(spec)
    check_chat(load_tokenizer(engine), engine, trains=trains)
