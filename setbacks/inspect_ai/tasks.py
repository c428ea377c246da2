"""The suites as Inspect tasks: harmful, hijacking, safe and helpful, with or without guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, GenerateConfig
from inspect_ai.scorer import Scorer
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from setbacks.data.instructions import instructions
from setbacks.data.languages import language_of
from setbacks.inspect_ai.messages import as_input
from setbacks.inspect_ai.scorers import compliant, harmless, helpfulness, one_line
from setbacks.prompts import fill
from setbacks.recipe import Recipe, Suite
from setbacks.records import Kind

SCORERS: dict[Kind, Callable[..., Scorer]] = {
    "harmful": harmless,
    "hijacking": harmless,
    "safe": compliant,
    "helpful": helpfulness,
}


@task
def harmful(
    source: Any = None,
    guided: bool = False,
    judge: Any = "probe",
    language: str = "en",
    system: str | None = None,
) -> Task:
    """Prompts that must not be answered; the Harmless Rate of the answers.

    Args:
        source: the source of the prompts, as in a recipe: builtin:NAME, preset:NAME, a file, a
            mapping such as {source: FILE, where: {label: unsafe}}, or several; by default, the
            built-in suite.
        guided: put the method's guidance before every prompt.
        judge: a judge, as in a recipe: its name, or a mapping; or several.
        language: of the guidance and of the judge's prompts, such as en, or auto for that of each
            prompt.
        system: a system prompt before every conversation, as `model.system` of a recipe.
    """
    return _task("harmful", source, guided, judge, language, system)


@task
def hijacking(
    source: Any = None,
    guided: bool = False,
    judge: Any = "probe",
    language: str = "en",
    system: str | None = None,
) -> Task:
    """Safe tasks with a harmful one hidden in them; the Harmless Rate of the answers.

    Args: as `harmful`.
    """
    return _task("hijacking", source, guided, judge, language, system)


@task
def safe(
    source: Any = None,
    guided: bool = False,
    judge: Any = "probe",
    language: str = "en",
    system: str | None = None,
) -> Task:
    """Prompts that only look unsafe; compliance, the share that is not refused.

    Args: as `harmful`.
    """
    return _task("safe", source, guided, judge, language, system)


@task
def helpful(
    source: Any = None,
    guided: bool = False,
    judge: Any = "probe",
    language: str = "en",
    system: str | None = None,
) -> Task:
    """Ordinary instructions; the Helpful Score of the answers, 1-10.

    Args: as `harmful`.
    """
    return _task("helpful", source, guided, judge, language, system)


@solver
def guidance(language: str = "en") -> Solver:
    """Ask for a harmless answer in the last user turn (arXiv 2310.10477, section 3.3).

    Args:
        language: of the words, such as en, or auto for that of each sample.
    """
    with one_line():
        recipe = Recipe.parse({"language": language}, "guidance")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        text = state.user_prompt.text
        words = recipe.words_for(language_of(state.metadata.get("language"), text, language))
        state.user_prompt.text = fill(words["guided"], instruction=text)
        return state

    return solve


@solver
def system_prompt(text: str) -> Solver:
    """Put a system prompt before a conversation; that of the conversation follows it.

    Args:
        text: the system prompt.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        first = state.messages[0]
        if first.role == "system":
            first.text = f"{text}\n\n{first.text}"
        else:
            state.messages.insert(0, ChatMessageSystem(content=text))
        return state

    return solve


def _task(
    kind: Kind, source: Any, guided: bool, judge: Any, language: str, system: str | None
) -> Task:
    with one_line():
        recipe = Recipe.parse({"language": language} | _suites(kind, source), kind)
        recipe = recipe.rebased(Path.cwd())
        suite = next(suite for suite in recipe.respond.suites if suite.kind == kind)
        dataset = samples(suite, recipe.language)
    judges = judge if isinstance(judge, list) else [judge]
    return Task(
        dataset=MemoryDataset(list(dataset), name=suite.name),
        solver=[
            *([system_prompt(system)] if system else []),
            *([guidance(language)] if guided else []),
            generate(),
        ],
        scorer=[SCORERS[kind](judge=one, language=language) for one in judges],
        # The same limit as in a run; Inspect's options set how tokens are drawn.
        config=GenerateConfig(max_tokens=recipe.respond.sampling.max_new_tokens),
    )


def _suites(kind: Kind, source: Any) -> dict[str, Any]:
    """The recipe's section for a task's prompts; empty for the built-in ones."""
    if source is None:
        return {}
    return {"respond": {"suites": [{"name": kind, "kind": kind, "sources": source}]}}


def samples(suite: Suite, language: str = "en") -> Sequence[Sample]:
    """Return a suite's prompts, with the same ids as in a run.

    Args:
        suite: of a recipe.
        language: of the prompts that name none; "auto" recognizes it by their text.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    return [
        Sample(
            id=instruction.id,
            input=as_input(instruction.text),
            target=instruction.answer or "",
            metadata={
                "kind": suite.kind,
                "category": instruction.category,
                "language": instruction.language,
                "source": instruction.source,
            },
        )
        for instruction in instructions(suite.sources, language=language)
    ]
