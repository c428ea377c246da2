"""Before step 3: the untrained model's own answers to benign prompts (`train.helpful_from: model`).

To keep a model helpful, text in its own style matters more than good text: other people's answers
pull the model away from its style. RealSafe-R1 (arXiv 2504.10081) and OPSA (arXiv 2605.15239) mix
in own answers, too. They are checked first, so that the model does not learn refusals and loops.
"""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.data.instructions import instructions
from setbacks.errors import InputError
from setbacks.judges import Item
from setbacks.judges.checks import Check, Checker
from setbacks.methods import open_method, own_answers
from setbacks.notices import notice
from setbacks.recipe import Recipe
from setbacks.records import Completion, Instruction, OwnAnswer, Request, digest
from setbacks.runs.session import Session


def with_own_answers(run: Session) -> Recipe:
    """Return the run's recipe, with the model's own answers as helpful data if it asks for them.

    If none of them passes the checks, the answers in the data are learned, and a notice says so.

    Args:
        run: the session.

    Raises:
        InputError: no answer passed the checks, and the data has none.
    """
    recipe = run.recipe
    learned = open_method(recipe).sources(recipe).values()
    used = any(source in sources for sources in learned for source in recipe.train.helpful)
    if recipe.train.helpful_from == "data" or not used:
        return recipe
    answers = _own_answers(run)
    if answers and not any(answer.outcome == "kept" for answer in answers):
        return _with_answers_of_data(run, len(answers))
    helpful = [own_answers(run.path)] if answers else []
    train = recipe.train.model_copy(update={"helpful_from": "data", "helpful": helpful})
    return recipe.model_copy(update={"train": train})


def _with_answers_of_data(run: Session, rejected: int) -> Recipe:
    recipe = run.recipe
    problem = f"none of the model's {rejected} own answers passed the checks (see benign.jsonl)"
    if not any(prompt.answer for prompt in instructions(recipe.train.helpful)):
        raise InputError(
            f"{run.path}: {problem}, and train.helpful has no answers; name data with answers, or "
            "set train.helpful=[]"
        )
    notice(f"{problem}; the answers in train.helpful are learned instead")
    train = recipe.train.model_copy(update={"helpful_from": "data"})
    return recipe.model_copy(update={"train": train})


def _own_answers(run: Session) -> Sequence[OwnAnswer]:
    """Have the untrained model answer every helpful prompt, and check its answers."""
    recipe, model = run.recipe, run.engine(run.recipe.model).name
    checker = Checker(recipe.train.judge, run)
    questions = [
        prompt._replace(id=digest("benign", recipe.seed, prompt.id))
        for prompt in instructions(recipe.train.helpful, language=recipe.language)
    ]

    def check(batch: Sequence[Instruction], completions: Sequence[Completion]) -> list[Check]:
        return checker.check(
            [
                Item(prompt.id, prompt.text, one.text, language=prompt.language, finish=one.finish)
                for prompt, one in zip(batch, completions, strict=True)
            ]
        )

    def record(prompt: Instruction, one: Completion, check: Check) -> OwnAnswer:
        return OwnAnswer(
            id=prompt.id,
            instruction_id=digest("instruction", prompt.text),
            instruction=prompt.text,
            text=one.text,
            answer=check.answer,
            outcome=check.outcome,
            language=prompt.language,
            source=prompt.source,
            model=model,
        )

    journal = run.journal("benign.jsonl", OwnAnswer)
    checker.write(
        run,
        journal,
        "train",
        questions,
        request=lambda prompt: Request(prompt.text, seed=int(prompt.id, 16)),
        sampling=recipe.train.helpful_sampling,
        check=check,
        record=record,
        label="own helpful answers",
    )
    return journal.finish()
