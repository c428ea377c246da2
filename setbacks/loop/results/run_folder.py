"""Results of our own run folders: the metrics of each judge, by arm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from setbacks.loop.results.item import Item
from setbacks.measure.metrics import by_prompt
from setbacks.runs.folder import Run
from setbacks.runs.results import collect


def recognizes(path: Path) -> bool:
    """Return whether a path is a run folder."""
    return (path / "recipe.yaml").is_file()


def items(path: Path) -> Iterator[Item]:
    """Yield the answers of every arm; a metric is named with its judge unless that is the first."""
    run = Run(path)
    responses, verdicts = collect(run)
    judges = sorted({judge for _, judge in verdicts})
    first = next((spec.called for spec in run.recipe.judges), judges[0])
    for arm, rows in responses.items():
        scores: dict[tuple[str, str], dict[str, bool | float]] = {}
        for judge in judges:
            by_id = {v.response_id: v for v in verdicts.get((arm, judge), ())}
            for metric, values in by_prompt(rows, by_id).items():
                name = metric if judge == first else f"{metric} ({judge})"
                for prompt, value in values.items():
                    scores.setdefault(prompt, {})[name] = value
        for r in rows:
            yield Item(r.instruction, r.text, scores.get((r.suite, r.instruction_id), {}), arm)
