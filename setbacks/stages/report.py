"""The last stage: writes `metrics.json` and the page `report.html` from the records of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from setbacks.data.overlap import overlaps
from setbacks.judges import gives
from setbacks.judges.worth import worth_of_verdicts
from setbacks.measure import Measurement, RunInfo, measure, to_json
from setbacks.measure.results import Cost, LossRow, Trained, Worth
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Correction, Example, Flip, Mistake, OwnAnswer, Reading
from setbacks.report.run_page import examples, render
from setbacks.runs.decontamination import LeftOut, counted
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.redo import Stage
from setbacks.runs.results import collect, json_lines, thoughts


class Report(NamedTuple):
    """The page of a run, and its results.

    Args:
        path: path of the page.
        results: every number on the page.
    """

    path: Path
    results: Measurement

    @property
    def metrics(self) -> dict[str, Any]:
        """The results as plain data, as in `metrics.json`."""
        metrics: dict[str, Any] = to_json(self.results)
        return metrics


def report(run: RunFolder) -> Report:
    """Write `metrics.json` and `report.html` of a run that has verdicts, finished or not.

    Args:
        run: an open run folder.

    Raises:
        InputError: there are no responses or no verdicts yet, and the message says which stage
            comes first; or human labels belong to no response, or contradict each other.
    """
    responses, verdicts = collect(run)
    by_arm = {arm: responses[arm.name] for arm in run.arms()}
    results = measure(
        _info(run.recipe),
        responses=by_arm,
        verdicts=verdicts,
        thoughts=thoughts(run),
        environment=run.environment,
        mistakes=run.records("mistakes.jsonl", Mistake),
        analyses=run.records("analyses.jsonl", Analysis),
        examples=run.records("training.jsonl", Example),
        loss=cast(list[LossRow], json_lines(run.path / "loss.jsonl")),
        trained=cast(Trained, next(iter(json_lines(run.path / "trained.json")), {})),
        checked={
            "Attempts at corrections of mistakes": run.records("corrections.jsonl", Correction),
            "Answers to refused requests": run.records("answered.jsonl", Correction),
            "The model's own helpful answers": run.records("benign.jsonl", OwnAnswer),
        },
        preflight=run.records("preflight.jsonl", Reading),
        flips=run.records("flips.jsonl", Flip),
        introspected=run.records("introspection.jsonl", Reading),
        overlap=overlaps(responses, _adapters(run)),
        left_out=counted(run.records("left_out.jsonl", LeftOut)),
        worth={
            spec.called: cast(
                list[Worth],
                worth_of_verdicts(
                    spec,
                    run.recipe,
                    [
                        v
                        for (_, judge), rows in verdicts.items()
                        if judge == spec.called
                        for v in rows
                    ],
                ),
            )
            for spec in run.recipe.judges
        },
        gives={
            spec.called: metrics
            for spec in run.recipe.judges
            if (metrics := gives(spec, run.recipe)) is not None
        },
        costs=[_with_speed(cast(Cost, row)) for row in run.costs()],
    )
    report = Report(run.path / "report.html", results)
    page = render(results, run.recipe.model_dump(mode="json"), examples(by_arm, verdicts))
    run.write_text("metrics.json", json.dumps(report.metrics, indent=1, ensure_ascii=False) + "\n")
    run.write_text(report.path.name, page)
    return report


def _info(recipe: Recipe) -> RunInfo:
    """Return what the report shows of the recipe; an evaluation trains no model."""
    evaluated = bool(recipe.evaluate)
    return RunInfo(
        name=recipe.name,
        model=None if evaluated else recipe.model.model,
        method=None if evaluated else recipe.train.method,
        seed=recipe.seed,
        words=tuple(recipe.spoken_words()),
        clauses=tuple(clause.id for clause in recipe.policy),
        judges=tuple(spec.called for spec in recipe.judges),
        votes=frozenset(spec.called for spec in recipe.judges if spec.judge == "vote"),
    )


def _with_speed(cost: Cost) -> Cost:
    speed = cost["tokens"] / max(cost["seconds"], 1e-3)
    return {**cost, "tokens_per_second": round(speed, 1)}


def _adapters(run: Run) -> dict[str, Path]:
    """The folder of each adapter, by the name of the unguided arm that answers with it."""
    if run.recipe.evaluate:
        return {spec.name: Path(spec.adapter) for spec in run.recipe.evaluate if spec.adapter}
    unguided = [arm for arm in run.arms() if arm.way == "unguided"]
    adapters = {arm.name: run.path / "adapter" for arm in unguided if arm.trained}
    if before := run.recipe.current:
        adapters |= {arm.name: before for arm in unguided if arm.is_untrained}
    return adapters


STAGE = Stage(
    "report",
    outputs=("metrics.json", "report.html"),
    keys=("name", "preflight", "compare", "study", "loop", "jobs", "words", "policy"),
    evaluates=True,
)
