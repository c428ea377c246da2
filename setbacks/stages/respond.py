"""Step 4, guided response generation (arXiv 2310.10477, section 3.3).

The model before and after training answers every prompt of every suite, with and without guidance:
p(Y | X, T) is proportional to p(Y | X) p(T | X, Y), so guidance calls up what training taught. It
can also answer by that formula itself: posterior decoding, see `setbacks.engines.own_verdict`.
In an evaluation, models of any kind answer, and answers that are there already are taken over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.data.instructions import instructions
from setbacks.engines.own_verdict import drafts
from setbacks.errors import InputError
from setbacks.methods import Method, open_method
from setbacks.models.adapters import check_adapter
from setbacks.plugins import plugin
from setbacks.prompts import fill, prompts
from setbacks.recipe import Engine, Posterior, Recipe, Respond, Suite
from setbacks.records import Completion, Instruction, Request, Response, digest
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session, planned
from setbacks.stages.answers import answers
from setbacks.stages.checks import check_chat_of


class Arm(NamedTuple):
    """One model in the comparison: its name, its adapter, and how it answers.

    Where the answers are there already, there is no model. `posterior` says that it chooses among
    drafts of its own.
    """

    name: str
    model: Engine | None
    adapter: Path | None = None
    guided: bool = False
    posterior: Posterior | None = None


class Question(NamedTuple):
    """One prompt of a suite, put to one arm."""

    id: str
    suite: Suite
    instruction: Instruction


def respond(run: Session, adapter: Path | None = None) -> dict[str, Sequence[Response]]:
    """Return the responses of every arm, by the arm's name.

    Args:
        run: the session.
        adapter: the trained adapter's folder; None in an evaluation.

    Raises:
        InputError: a suite's source is missing, broken or empty, or lacks an answer.
    """
    questions = prompts_of(run.recipe)
    made: dict[str, Sequence[Response]] = {}
    model = None
    for arm in arms(run.recipe, adapter):
        if arm.model != model:
            run.release_engines()  # one model in memory at a time
            model = arm.model
        get = _take if arm.model is None else _answer
        made[arm.name] = get(run, arm, questions)
    return made


def prompts_of(recipe: Recipe) -> list[tuple[Suite, Instruction]]:
    """Return every prompt of a recipe's suites.

    Raises:
        InputError: a suite's source is missing, broken or empty.
    """
    return [
        (suite, instruction)
        for suite in recipe.respond.suites
        for instruction in instructions(suite.sources)
    ]


def arms(recipe: Recipe, adapter: Path | None = None) -> list[Arm]:
    """Return the arms of a run: before and after, and, if so told, with guidance and by drafts.

    Args:
        recipe: all that the run is told.
        adapter: the trained adapter's folder; None in an evaluation, which names its own.

    Raises:
        InputError: two arms of an evaluation have one name.
    """
    if recipe.evaluate:
        folders = [None if arm.adapter is None else Path(arm.adapter) for arm in recipe.evaluate]
        bare = [
            Arm(arm.name, arm.model, folder)
            for arm, folder in zip(recipe.evaluate, folders, strict=True)
        ]
    else:
        bare = [
            Arm("vanilla", recipe.model),
            Arm(open_method(recipe).name, recipe.model, adapter),
        ]
    found = [other for arm in bare for other in _ways(arm, recipe.respond)]
    names = [arm.name for arm in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f'two arms are called "{twice[0]}": rename one, or set respond.guidance=false'
        )
    return found


def _ways(arm: Arm, told: Respond) -> Iterator[Arm]:
    """Yield an arm as it is, and as it answers in every other way."""
    yield arm
    if arm.model and told.guidance:
        yield arm._replace(name=f"{arm.name}-guided", guided=True)
    if arm.model and told.posterior:
        yield arm._replace(name=f"{arm.name}-posterior", posterior=told.posterior)


def check(recipe: Recipe) -> None:
    """Look up what the arms need: of an evaluation, adapters and an answer to every prompt.

    Raises:
        InputError: something is missing, two arms have one name, or a model cannot be asked.
    """
    if recipe.respond.posterior and not plugin("engines", recipe.model.engine).shows_probabilities:
        raise InputError(
            f"respond.posterior: engine {recipe.model.engine} gives no token probabilities to "
            "choose a draft by; leave it out, or set model.engine=local"
        )
    arms(recipe)
    if not recipe.evaluate:
        return
    asked = prompts_of(recipe)
    for told in recipe.evaluate:
        if told.model is not None and told.adapter is not None:
            check_adapter(told.adapter, told.model.model)
        if told.answers:
            answers(told, asked)
        check_chat_of(told.model)


def request(recipe: Recipe, arm: Arm, text: str) -> Request:
    """Return what an arm's model is asked, for an instruction.

    Args:
        recipe: gives the seed, the language and how a response begins.
        arm: whether it is guided counts.
        text: the instruction.
    """
    return Request(
        prompt=_prompt(recipe, arm, text),
        # The draw depends on the instruction alone, so that arms do not differ by luck.
        seed=int(digest("draw", recipe.seed, digest("instruction", text)), 16),
        prefill=recipe.respond.prefill,
    )


def _prompt(recipe: Recipe, arm: Arm, text: str) -> str:
    """An instruction as it is put to an arm."""
    if not arm.guided:
        return text
    if method := trained_method(recipe, arm):
        return method.guided_prompt(recipe.language, text)
    return fill(prompts(recipe.language)["guided"], instruction=text)


def trained_method(recipe: Recipe, arm: Arm) -> Method | None:
    """The method that trained an arm's model in this run, if it answers under guidance."""
    if recipe.evaluate or arm.adapter is None or not arm.guided:
        return None
    return open_method(recipe)


def _answer(
    run: Session, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]
) -> Sequence[Response]:
    """Have an arm's model answer."""
    recipe = run.recipe
    engine = run.engine(arm.model)
    sampling = recipe.respond.sampling
    if method := trained_method(recipe, arm):
        room = sampling.max_new_tokens + method.more_tokens(recipe)
        sampling = sampling.model_copy(update={"max_new_tokens": room})
    questions = [
        Question(digest("response", recipe.seed, arm.name, suite.name, x.id), suite, x)
        for suite, x in asked
    ]

    def sized(question: Question) -> Request:  # a seed takes longer than all the rest of it
        return Request(_prompt(recipe, arm, question.instruction.text), 0, recipe.respond.prefill)

    def put(question: Question) -> Request:
        return request(recipe, arm, question.instruction.text)

    def record(question: Question, found: Sequence[Completion]) -> Response:
        kept = found[0]
        return _response(
            arm,
            question,
            **said(recipe, arm, kept.text),
            finish=kept.finish,
            prompt_tokens=kept.prompt_tokens,
            tokens=sum(completion.tokens for completion in found),
            model=engine.name,
            drafts=[completion.text for completion in found] if arm.posterior else None,
        )

    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    work = run.work(journal, "respond", planned(engine, questions, sized), arm.name)
    if arm.posterior is None:
        for batch, completions in work.generated(engine, put, sampling, arm.adapter):
            records = [record(q, [one]) for q, one in zip(batch, completions, strict=True)]
            work.commit(batch, records, completions)
    else:
        for batch in work:
            found = drafts(engine, recipe, arm.posterior, [*map(put, batch)], arm.adapter)
            ranked = [[draft.completion for draft in of] for of in found]
            records = [record(q, of) for q, of in zip(batch, ranked, strict=True)]
            work.commit(batch, records, chain(*ranked))
    return journal.finish()


def said(recipe: Recipe, arm: Arm, text: str) -> dict[str, str | None]:
    """Split what an arm wrote into its answer (`text`) and the analysis before it, if any."""
    method = trained_method(recipe, arm)
    answer, analysis = method.split(recipe.language, text) if method else (text, None)
    return {"text": answer, "analysis": analysis}


def _take(run: Session, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]) -> Sequence[Response]:
    """Take over the answers that an arm has already."""
    found = answers(next(told for told in run.recipe.evaluate if told.name == arm.name), asked)
    # The answer is part of the id, so that a changed file shows.
    questions = [
        Question(digest("response", arm.name, suite.name, x.id, found[x.id].response), suite, x)
        for suite, x in asked
    ]

    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    work = run.work(journal, "respond", [questions], arm.name)
    for batch in work:
        records = [
            _response(arm, question, text=found[question.instruction.id].response, model=arm.name)
            for question in batch
        ]
        work.commit(batch, records)
    return journal.finish()


def _response(arm: Arm, question: Question, **said: Any) -> Response:
    return Response(
        id=question.id,
        arm=arm.name,
        suite=question.suite.name,
        kind=question.suite.kind,
        instruction_id=question.instruction.id,
        instruction=question.instruction.text,
        reference=question.instruction.answer,
        category=question.instruction.category,
        language=question.instruction.language,
        guided=arm.guided,
        prompt_harmful=question.instruction.harmful,
        **said,
    )


STAGE = Stage(
    "respond", outputs=("responses",), keys=("respond", "evaluate"), check=check, evaluates=True
)
