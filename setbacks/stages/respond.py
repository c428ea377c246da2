"""Step 4, guided response generation (arXiv 2310.10477, section 3.3).

The model before and after training answers every prompt of every suite, with and without guidance:
p(Y | X, T) is proportional to p(Y | X) p(T | X, Y), so guidance calls up what training taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from setbacks.engines import Request
from setbacks.prompts import fill, prompts
from setbacks.recipe import Suite
from setbacks.records import Instruction, Response, digest
from setbacks.runfolder import RunFolder
from setbacks.suites import instructions


class Arm(NamedTuple):
    """One model in the comparison: its name, its adapter, and whether it answers guided."""

    name: str
    adapter: Path | None
    guided: bool


@dataclass(frozen=True)
class Question:
    """One prompt of a suite, put to one arm."""

    id: str
    suite: Suite
    instruction: Instruction


def respond(run: RunFolder, adapter: Path) -> dict[str, list[Response]]:
    """Return the responses of every arm, by the arm's name.

    Args:
        run: the open run folder.
        adapter: the trained adapter's folder.

    Raises:
        InputError: a suite's source is missing, broken or empty.
    """
    asked = [
        (suite, instruction)
        for suite in run.recipe.respond.suites
        for instruction in instructions(suite.sources)
    ]
    return {arm.name: _answer(run, arm, asked) for arm in arms(run, adapter)}


def arms(run: RunFolder, adapter: Path) -> list[Arm]:
    """Return the arms of a run: before and after, without and, if so told, with guidance."""
    models = [("vanilla", None), (run.method.name, adapter)]
    guidance = (False, True) if run.recipe.respond.guidance else (False,)
    return [
        Arm(f"{name}-guided" if guided else name, path, guided)
        for name, path in models
        for guided in guidance
    ]


def _answer(run: RunFolder, arm: Arm, asked: Sequence[tuple[Suite, Instruction]]) -> list[Response]:
    recipe = run.recipe
    engine = run.engine(recipe.model)
    questions = [
        Question(digest("response", recipe.seed, arm.name, suite.name, x.id), suite, x)
        for suite, x in asked
    ]

    def request(question: Question) -> Request:
        text = question.instruction.text
        # The draw depends on the question alone, so that arms do not differ by luck.
        seed = int(digest("draw", recipe.seed, question.instruction.id), 16)
        guided = prompts(recipe.language)["guided"]
        return Request(
            prompt=fill(guided, instruction=text) if arm.guided else text,
            seed=seed,
            prefill=recipe.respond.prefill,
        )

    def draw(batch: Sequence[Question]) -> tuple[list[Response], int, int]:
        made = engine.generate(
            [request(question) for question in batch], recipe.respond.sampling, arm.adapter
        )
        records = [
            Response(
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
                text=completion.text,
                finish=completion.finish,
                prompt_tokens=completion.prompt_tokens,
                tokens=completion.tokens,
                model=engine.name,
            )
            for question, completion in zip(batch, made, strict=True)
        ]
        return records, sum(c.prompt_tokens for c in made), sum(c.tokens for c in made)

    plan = engine.plan([request(question) for question in questions])
    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    batches = [[questions[index] for index in batch] for batch in plan]
    run.carry_out(journal, "respond", batches, draw, label=arm.name)
    return journal.finish()
