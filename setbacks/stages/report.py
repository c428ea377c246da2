"""The last stage: from what is in a run folder to `metrics.json` and one page, `report.html`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.data.overlap import overlaps
from setbacks.judges import gives
from setbacks.judges.worth import worth
from setbacks.measure import measure
from setbacks.measure.metrics import bare, is_trained
from setbacks.records import Analysis, Example, Mistake, Reading
from setbacks.report.run_page import examples, render
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.redo import Stage
from setbacks.runs.results import collect, json_lines


class Report(NamedTuple):
    """Where the page is, and every number of it."""

    path: Path
    metrics: dict[str, Any]


def report(run: RunFolder) -> Report:
    """Write `metrics.json` and `report.html` of a run, finished or not, if it has verdicts.

    Args:
        run: an open run folder.

    Raises:
        InputError: there are no responses or no verdicts yet, which says which stage comes first;
            or human labels are of answers that are not there, or contradict one another.
    """
    responses, verdicts = collect(run)
    recipe = run.recipe.model_dump(mode="json")
    metrics = measure(
        recipe=recipe,
        environment=run.environment,
        mistakes=run.records("mistakes.jsonl", Mistake),
        analyses=run.records("analyses.jsonl", Analysis),
        examples=run.records("training.jsonl", Example),
        loss=json_lines(run.path / "loss.jsonl"),
        trained=next(iter(json_lines(run.path / "trained.json")), {}),
        preflight=run.records("preflight.jsonl", Reading),
        introspection=run.records("introspection.jsonl", Reading),
        overlap=overlaps(responses, _adapters(run, responses)),
        responses=responses,
        verdicts=verdicts,
        worth={spec.called: worth(spec, run.recipe) for spec in run.recipe.judges},
        gives={
            spec.called: found
            for spec in run.recipe.judges
            if (found := gives(spec, run.recipe)) is not None
        },
    )
    metrics["costs"] = [
        row | {"tokens_per_second": round(row["tokens"] / max(row["seconds"], 1e-3), 1)}
        for row in run.costs()
    ]
    page = render(metrics, recipe, examples(responses, verdicts))
    run.write_text("metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return Report(run.write_text("report.html", page), metrics)


def _adapters(run: Run, arms: Iterable[str]) -> dict[str, Path]:
    """The folder of each trained arm's adapter."""
    if run.recipe.evaluate:
        return {arm.name: Path(arm.adapter) for arm in run.recipe.evaluate if arm.adapter}
    return {bare(arm): run.path / "adapter" for arm in arms if is_trained(arm)}


STAGE = Stage(
    "report",
    outputs=("metrics.json", "report.html"),
    keys=("name", "compare", "study", "jobs"),
    evaluates=True,
)
