"""Checks that several stages share, before any work: engines, chat templates and judges."""

from __future__ import annotations

from functools import cache

from setbacks.errors import InputError
from setbacks.judges import check_judge, judge_class
from setbacks.judges.checks import check_checker
from setbacks.methods import open_method
from setbacks.models.chat_template import check_chat
from setbacks.models.embedded import resolve
from setbacks.models.loading import check_model, load_tokenizer
from setbacks.plugins import plugin
from setbacks.recipe import Engine, JudgeSpec, Recipe

# Engines for models that transformers can load. Engines of other packages check their own models.
OURS = ("local", "vllm", "ray")


def induces(recipe: Recipe) -> bool:
    """Whether mistakes are induced and analyzed."""
    return not recipe.evaluate and open_method(recipe).uses_mistakes


def keys_of_judge(spec: JudgeSpec | None) -> tuple[str, ...]:
    """Return the keys of the recipe that a judge's verdicts depend on, besides its section."""
    return () if spec is None else judge_class(spec).reads


def check_engines(recipe: Recipe) -> None:
    """Look up every engine that a recipe names, and the models that are loaded here.

    Raises:
        InputError: an engine or a model is not known, or cannot be used as the recipe says.
    """
    for engine in recipe.parts(Engine):
        kind = plugin("engines", engine.engine)
        if kind.elsewhere and engine is recipe.model and not recipe.evaluate:
            raise InputError(
                f"model: {engine.model} is on a server, and cannot be trained from here; name "
                "a local model, and the server as analyze.analyst or as a judge's engine"
            )
        kind.check(engine)
        # Only our engines name models that are loaded here; the trained model always is.
        ours = engine.engine == "local" or engine is recipe.model
        if ours and _is_used(engine, recipe):
            resolve(engine.model, engine.revision)
            if engine.engine == "local":
                check_model(engine)


def _is_used(engine: Engine, recipe: Recipe) -> bool:
    """Whether a run needs an engine: an evaluation asks its own model only for a judge."""
    if not recipe.evaluate or engine is not recipe.model:
        return True
    return any(spec.engine is None and judge_class(spec).needs_engine for spec in recipe.judges)


def check_chat_of(engine: Engine | None, *, trains: bool = False) -> None:
    """Check that a model's chat template takes conversations, if the model runs here.

    Args:
        engine: the model; servers have their own templates.
        trains: whether it is the model that is trained.

    Raises:
        InputError: it does not.
    """
    if engine is not None and engine.engine in OURS:
        _check_chat(engine.model_dump_json(), trains)


@cache
def _check_chat(spec: str, trains: bool) -> None:
    """Check one model, and warn once: the runs of a comparison share their models."""
    engine = Engine.model_validate_json(spec)
    check_chat(load_tokenizer(engine), engine, trains=trains)


def check_judge_and_model(spec: JudgeSpec) -> None:
    """Look up a judge and its model.

    Raises:
        InputError: the judge is not known, lacks what it needs, or its model cannot be used.
    """
    judge = check_judge(spec)
    if judge.embedded:
        resolve(judge.embedded)
    if judge.weights is None:  # a guard has its own chat template
        check_chat_of(spec.engine)


def check_judge_of_texts(spec: JudgeSpec, recipe: Recipe) -> None:
    """Look up a judge that checks texts before the model is trained on them.

    Raises:
        InputError: as `check_judge_and_model`, or it does not say whether a text is harmful.
    """
    check_judge_and_model(spec)
    check_checker(spec, recipe)
