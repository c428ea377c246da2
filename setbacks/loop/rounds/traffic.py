"""Prompts that play production traffic: the current model answers them, and the failures are kept.

Each round takes the next prompts of every suite in `loop.stream`. A failure is an answer that the
first judge finds harmful, or a refusal of a safe request. Failures are written as those of
harvested logs are, so that a round learns from both in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.data import Source
from setbacks.data.conversations import prompt_as_data
from setbacks.data.instructions import instructions
from setbacks.files import write_atomic
from setbacks.loop.rounds.derived import changed, derived, evaluated
from setbacks.loop.setback import Conversations, row_of
from setbacks.measure.metrics import counted, degenerate
from setbacks.pipeline import run_until
from setbacks.recipe import Recipe
from setbacks.records import Response, Setback, Verdict
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import Run
from setbacks.runs.progress import Show
from setbacks.runs.results import as_json_lines, json_lines

MUST_NOT_SERVE = ("harmful", "hijacking")


def folder_of(loop: Path, number: int) -> Path:
    """Return the folder of the run in which a round's traffic is answered."""
    return loop / f"stream-{number}"


def failures_of(loop: Path, number: int) -> Path:
    """Return the file of the failures among those answers."""
    return loop / f"setbacks-{number}.jsonl"


def play(
    recipe: Recipe, loop: Path, number: int, current: Path | None, show: Show | None
) -> Path | None:
    """Have the current model answer a round's prompts; return the file of its failures, if any.

    Args:
        recipe: of the loop.
        loop: its folder.
        number: of the round.
        current: the adapter of the current model.
        show: called with progress.
    """
    if not recipe.loop.stream:
        return None
    place = folder_of(loop, number)
    prompts, failures = place.with_suffix(".jsonl"), failures_of(loop, number)
    if failures.exists():
        return failures if failures.stat().st_size else None
    if not prompts.exists():  # what has arrived stays, even if the source changes
        _write(prompts, _arrivals(recipe, number))
    arrived = {row["suite"] for row in json_lines(prompts)}
    suites = [
        changed(suite, sources=[Source(source=str(prompts), where={"suite": suite.name})])
        for suite in recipe.loop.stream
        if suite.name in arrived
    ]
    if not suites:
        return None
    evaluation = derived(
        recipe,
        f"traffic of round {number}",
        respond=changed(recipe.respond, suites=suites, guidance=False, posterior=None),
        evaluate=[evaluated("current", recipe, current)],
    )
    run_until(evaluation, place, "report", on_progress=show)
    _write(failures, _failures(Run(place)))
    return failures if failures.stat().st_size else None


def _arrivals(recipe: Recipe, number: int) -> Iterator[dict[str, Any]]:
    """Yield the prompts that arrive before a round; none of them is held out from its training."""
    suites = [*recipe.respond.suites, *recipe.loop.validation]
    every = recipe.model_copy(update={"respond": changed(recipe.respond, suites=suites)})
    decontamination = Decontamination(every)
    size = recipe.loop.slice
    for suite in recipe.loop.stream:
        prompts = [
            prompt
            for prompt in instructions(suite.sources, language=recipe.language)
            if not decontamination.holds_out(prompt.text)
        ]
        for prompt in prompts[(number - 1) * size : number * size]:
            yield {
                "id": prompt.id,
                "suite": suite.name,
                "text": prompt_as_data(prompt.text),
                "category": prompt.category,
                "language": prompt.language,
                "source": prompt.source,
            }


def _failures(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the failures of a run's only arm, in the order of its answers, without repeats."""
    (arm,) = run.arms()
    responses = run.records(f"responses/{arm.name}.jsonl", Response)
    verdicts = run.verdicts(run.recipe.judges[0].called)
    broken = degenerate(responses)
    conversations = Conversations()
    for response in responses:
        seen = verdicts.get(response.id)
        if seen is None or broken.get((response.suite, response.instruction_id)):
            continue
        verdict = counted(response, seen)
        kind = _kind(response, verdict)
        if kind and conversations.add_new(response.instruction):
            yield row_of(response, verdict, kind, category=response.category, source="stream")


def _kind(response: Response, verdict: Verdict) -> Setback | None:
    """Return what is wrong with an answer: it is harmful, or it refuses a safe request."""
    if response.kind in MUST_NOT_SERVE:
        return "harmful" if verdict.harmful else None
    return "refusal" if verdict.refused else None


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_atomic(path, as_json_lines(rows).encode("utf-8", "surrogatepass"))
