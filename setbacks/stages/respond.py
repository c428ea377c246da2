"""Step 4, guided response generation (arXiv 2310.10477, section 3.3).

The model before and after training answers every prompt of every suite, with and without guidance:
p(Y | X, T) is proportional to p(Y | X) p(T | X, Y), so guidance calls up what training taught. It
can also answer by that formula itself: posterior decoding, see `setbacks.spoken`.
In an evaluation, models of any kind answer, and answers that are there already are taken over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.adapters import check_adapter
from setbacks.engines import Completion, Request, Requests
from setbacks.errors import InputError
from setbacks.plugins import plugin
from setbacks.prompts import fill, prompts
from setbacks.recipe import Engine, Posterior, Recipe, Respond, Suite
from setbacks.records import Instruction, Response, digest
from setbacks.runfolder import RunFolder
from setbacks.spoken import drafts
from setbacks.stages.answers import answers
from setbacks.suites import instructions


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


def respond(run: RunFolder, adapter: Path | None = None) -> dict[str, Sequence[Response]]:
    """Return the responses of every arm, by the arm's name.

    Args:
        run: the open run folder.
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
        method: str = plugin("methods", recipe.train.method)().name
        bare = [Arm("vanilla", recipe.model), Arm(method, recipe.model, adapter)]
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


def check_arms(recipe: Recipe) -> None:
    """Look up what the arms of an evaluation need: adapters, and an answer to every prompt.

    Raises:
        InputError: something is missing, or two arms have one name.
    """
    arms(recipe)
    asked = prompts_of(recipe)
    for told in recipe.evaluate:
        if told.model is not None and told.adapter is not None:
            check_adapter(told.adapter, told.model.model)
        if told.answers:
            answers(told, asked)


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
    words = prompts(recipe.language)
    guided = words["joined"]["prompt"] if thinks_first(recipe, arm) else words["guided"]
    return fill(guided, instruction=text)


def thinks_first(recipe: Recipe, arm: Arm) -> bool:
    """Whether an arm was taught to analyse before it answers, and is asked to."""
    if recipe.evaluate or arm.adapter is None or not arm.guided:
        return False
    return getattr(plugin("methods", recipe.train.method), "thinks_first", False)


def _answer(
    run: RunFolder, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]
) -> Sequence[Response]:
    """Have an arm's model answer."""
    recipe = run.recipe
    engine = run.engine(arm.model)
    sampling = recipe.respond.sampling
    if thinks_first(recipe, arm):
        room = sampling.max_new_tokens + recipe.analyze.sampling.max_new_tokens
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

    def records(batch: Sequence[Question], made: Sequence[Completion]) -> list[Response]:
        return [record(question, [one]) for question, one in zip(batch, made, strict=True)]

    journal, label = run.journal(f"responses/{arm.name}.jsonl", Response), arm.name
    if arm.posterior is None:
        run.generate(
            journal, "respond", engine, questions, put, records, sampling, arm.adapter, label, sized
        )
        return journal.finish()
    told = arm.posterior

    def draw(batch: Sequence[Question]) -> tuple[list[Response], int, int]:
        found = drafts(engine, recipe, told, [*map(put, batch)], arm.adapter)
        ranked = [[draft.completion for draft in of] for of in found]
        every = [completion for found in ranked for completion in found]
        made = [record(question, found) for question, found in zip(batch, ranked, strict=True)]
        return made, sum(c.prompt_tokens for c in every), sum(c.tokens for c in every)

    plan = engine.plan(Requests(sized, questions))
    batches = [[questions[index] for index in batch] for batch in plan]
    run.carry_out(journal, "respond", batches, draw, label)
    return journal.finish()


def said(recipe: Recipe, arm: Arm, text: str) -> dict[str, str | None]:
    """Part what an arm wrote into its answer (`text`) and the analysis before it, if any."""
    if not thinks_first(recipe, arm):
        return {"text": text, "analysis": None}
    analysis, mark, answer = text.partition(prompts(recipe.language)["joined"]["answer"])
    # Without the mark it never came to an answer: what it wrote is all that a reader gets.
    return {
        "text": answer.strip() if mark else text,
        "analysis": analysis.strip() if mark else None,
    }


def _take(
    run: RunFolder, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]
) -> Sequence[Response]:
    """Take over the answers that an arm has already."""
    found = answers(next(told for told in run.recipe.evaluate if told.name == arm.name), asked)
    # The answer is part of the id, so that a changed file shows.
    questions = [
        Question(digest("response", arm.name, suite.name, x.id, found[x.id].response), suite, x)
        for suite, x in asked
    ]

    def take(batch: Sequence[Question]) -> tuple[list[Response], int, int]:
        if unasked := len(found) - len({x.id for _, x in asked}):
            run.log(f"respond: {arm.name}: left out {unasked} answers to prompts of no suite")
        records = [
            _response(arm, question, text=found[question.instruction.id].response, model=arm.name)
            for question in batch
        ]
        return records, 0, 0

    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    run.carry_out(journal, "respond", [questions], take, label=arm.name)
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
