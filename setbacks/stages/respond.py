"""Step 4, guided response generation (arXiv 2310.10477, section 3.3).

The model before and after training answers every prompt of every suite, with and without guidance:
p(Y | X, T) is proportional to p(Y | X) p(T | X, Y), so guidance calls up what training taught.
In an evaluation, models of any kind answer, and answers that are there already are taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.engines import Request
from setbacks.engines.local import check_adapter
from setbacks.errors import InputError
from setbacks.plugins import plugin
from setbacks.prompts import fill, prompts
from setbacks.recipe import Engine, Recipe, Suite
from setbacks.records import Instruction, Response, digest
from setbacks.runfolder import RunFolder
from setbacks.stages.answers import answers
from setbacks.suites import instructions


class Arm(NamedTuple):
    """One model in the comparison: its name, its adapter, and whether it answers guided.

    Where the answers are there already, there is no model.
    """

    name: str
    model: Engine | None
    adapter: Path | None = None
    guided: bool = False


@dataclass(frozen=True)
class Question:
    """One prompt of a suite, put to one arm."""

    id: str
    suite: Suite
    instruction: Instruction


def respond(run: RunFolder, adapter: Path | None = None) -> dict[str, list[Response]]:
    """Return the responses of every arm, by the arm's name.

    Args:
        run: the open run folder.
        adapter: the trained adapter's folder; None in an evaluation.

    Raises:
        InputError: a suite's source is missing, broken or empty, or lacks an answer.
    """
    questions = prompts_of(run.recipe)
    made: dict[str, list[Response]] = {}
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
    """Return the arms of a run: before and after, without and, if so told, with guidance.

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
    guidance = (False, True) if recipe.respond.guidance else (False,)
    found = [
        arm._replace(name=f"{arm.name}-guided", guided=True) if guided else arm
        for arm in bare
        for guided in (guidance if arm.model else (False,))
    ]
    names = [arm.name for arm in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f'two arms are called "{twice[0]}": rename one, or set respond.guidance=false'
        )
    return found


def check_arms(recipe: Recipe) -> None:
    """Look up what the arms of an evaluation need: adapters, and an answer to every prompt.

    Raises:
        InputError: something is missing, or two arms have one name.
    """
    arms(recipe)
    asked = prompts_of(recipe)
    for told in recipe.evaluate:
        if told.model is not None and told.adapter is not None:
            check_adapter(Path(told.adapter), told.model.model)
        if told.answers:
            answers(told, asked)


def request(recipe: Recipe, arm: Arm, text: str) -> Request:
    """Return what an arm's model is asked, for an instruction.

    Args:
        recipe: gives the seed, the language and how a response begins.
        arm: whether it is guided counts.
        text: the instruction.
    """
    guided = prompts(recipe.language)["guided"]
    return Request(
        prompt=fill(guided, instruction=text) if arm.guided else text,
        # The draw depends on the instruction alone, so that arms do not differ by luck.
        seed=int(digest("draw", recipe.seed, digest("instruction", text)), 16),
        prefill=recipe.respond.prefill,
    )


def _answer(run: RunFolder, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]) -> list[Response]:
    """Have an arm's model answer."""
    recipe = run.recipe
    engine = run.engine(arm.model)
    questions = [
        Question(digest("response", recipe.seed, arm.name, suite.name, x.id), suite, x)
        for suite, x in asked
    ]
    requests = {
        question.id: request(recipe, arm, question.instruction.text) for question in questions
    }

    def draw(batch: Sequence[Question]) -> tuple[list[Response], int, int]:
        made = engine.generate(
            [requests[question.id] for question in batch], recipe.respond.sampling, arm.adapter
        )
        records = [
            _response(
                arm,
                question,
                text=completion.text,
                finish=completion.finish,
                prompt_tokens=completion.prompt_tokens,
                tokens=completion.tokens,
                model=engine.name,
            )
            for question, completion in zip(batch, made, strict=True)
        ]
        return records, sum(c.prompt_tokens for c in made), sum(c.tokens for c in made)

    plan = engine.plan([requests[question.id] for question in questions])
    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    batches = [[questions[index] for index in batch] for batch in plan]
    run.carry_out(journal, "respond", batches, draw, label=arm.name)
    return journal.finish()


def _take(run: RunFolder, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]) -> list[Response]:
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
        **said,
    )
