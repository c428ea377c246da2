"""Checks that several stages share, before any work: engines, chat templates and judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

from setbacks.data import load
from setbacks.data.source import show
from setbacks.errors import InputError
from setbacks.judges import check_judge, judge_class
from setbacks.judges.checks import check_checker
from setbacks.messages import Message, Prompt, last_question, transcript, turns_of
from setbacks.methods import open_method
from setbacks.models.adapters import check_adapter
from setbacks.models.chat_template import encode_request
from setbacks.models.embedded import resolve
from setbacks.models.loading import check_length, check_model, context, load_config, load_tokenizer
from setbacks.models.template_checks import check_chat, check_conversation
from setbacks.notices import notice
from setbacks.plugins import plugin
from setbacks.prompts import languages
from setbacks.recipe import AUTO, Engine, JudgeSpec, Recipe, Source
from setbacks.records import Example, Instruction, Request
from setbacks.text import encodable

# Engines for models that transformers can load. Engines of other packages check their own models.
OURS = ("local", "vllm", "ray")


def induces(recipe: Recipe) -> bool:
    """Whether mistakes are induced and analyzed."""
    return not recipe.evaluate and open_method(recipe).uses_mistakes


def keys_of_judge(spec: JudgeSpec | None) -> tuple[str, ...]:
    """Return the keys of the recipe that a judge's verdicts depend on, besides its section."""
    return () if spec is None else judge_class(spec).reads


def notice_languages(recipe: Recipe, rows: Sequence[Instruction]) -> None:
    """Give a notice of the rows that get English words, since their language has no pack."""
    if recipe.language != AUTO:
        return
    known = {*languages(), *recipe.words}
    without = Counter(row.language for row in rows if row.language not in known)
    if without:
        named = ", ".join(f"{name} ({number})" for name, number in sorted(without.items()))
        notice(
            f"English prompts for {without.total()} of {len(rows)} rows: there is no language pack "
            f"for {named}; `setbacks list languages` shows all"
        )


def check_engines(recipe: Recipe) -> None:
    """Look up every engine that a recipe names, and the models that are loaded here.

    Raises:
        InputError: an engine or a model is not known or cannot be used as the recipe says, or the
            adapter is not one of the model.
    """
    if recipe.adapter is not None and not recipe.evaluate:
        check_adapter(recipe.adapter, recipe.model.model)
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


def check_conversations(engine: Engine | None, sources: Iterable[Source]) -> None:
    """Check that a model's chat template takes the conversations of data, if the model runs here.

    One row of each pattern of roles is rendered: data have few patterns.

    Args:
        engine: the model, which is asked what the data hold.
        sources: of the data.

    Raises:
        InputError: it does not take a row, or a source is missing or broken.
    """
    if engine is None or engine.engine not in OURS:
        return
    for source in sources:
        prompts = {_pattern(row.text): row.text for row in reversed(load(source))}
        for prompt in prompts.values():
            begins = show(last_question(prompt))
            where = f"{source.source}, the row whose last question is {begins}"
            _check_prompt(engine, turns_of(prompt), where)


def check_lengths(recipe: Recipe, engine: Engine | None, requests: Iterable[Request]) -> None:
    """Check that requests fit into the context of a model, if it runs here.

    A token is at least a byte. So only requests with more bytes than half of the context has tokens
    are tokenized; the other half is room for what a chat template adds.

    Args:
        recipe: gives the words of the Alpaca template.
        engine: the model.
        requests: to answer.

    Raises:
        InputError: one does not fit.
    """
    if engine is None or engine.engine not in OURS:
        return
    spec = engine.model_dump_json()
    limit = _context(spec)
    if limit is None:
        return
    for request in requests:
        if len(encodable(transcript(request.prompt)).encode()) > limit // 2:
            ids = encode_request(_tokenizer(spec), request, engine, recipe.words_for())
            check_length(engine.model, request, len(ids), limit)


def check_examples(engine: Engine, examples: Iterable[Example]) -> None:
    """Check the prompts of training examples as `check_conversations` does."""
    prompts = {_pattern(tuple(example.prompt)): example for example in examples}
    for example in prompts.values():
        begins = show(last_question(tuple(example.prompt)))
        where = f'a training example of kind "{example.kind}", to the question {begins}'
        _check_prompt(engine, example.prompt, where)


def _pattern(prompt: Prompt) -> Hashable:
    """Return what a chat template may take or refuse of a conversation, other than its texts."""
    return tuple(
        (turn.role, bool(turn.content.strip()), len(turn.tool_calls or ()), turn.name is None)
        for turn in (() if isinstance(prompt, str) else prompt)
    )


def _check_prompt(engine: Engine, messages: Sequence[Message], where: str) -> None:
    if engine.system is None and [message.role for message in messages] == ["user"]:
        return  # `check_chat` has rendered one
    try:
        check_conversation(_tokenizer(engine.model_dump_json()), engine, messages)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


@lru_cache(maxsize=2)
def _tokenizer(spec: str) -> Any:
    return load_tokenizer(Engine.model_validate_json(spec))


@lru_cache(maxsize=2)
def _context(spec: str) -> int | None:
    return context(load_config(Engine.model_validate_json(spec)))


@cache
def _check_chat(spec: str, trains: bool) -> None:
    """Check one model, and warn once: the runs of a comparison share their models."""
    engine = Engine.model_validate_json(spec)
    check_chat(_tokenizer(spec), engine, trains=trains)


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


def check_judge_of_texts(spec: JudgeSpec, recipe: Recipe, *, declines: bool = False) -> None:
    """Look up a judge that checks texts before the model is trained on them.

    Raises:
        InputError: as `check_judge_and_model` and `check_checker`.
    """
    check_judge_and_model(spec)
    check_checker(spec, recipe, declines=declines)
