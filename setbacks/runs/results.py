"""What a run has measured so far: its responses and verdicts, checked and joined."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from setbacks.errors import InputError
from setbacks.records import Response, Verdict
from setbacks.runs.folder import Run

# Responses by arm, and the verdicts on them by arm and judge.
Collected = tuple[dict[str, list[Response]], dict[tuple[str, str], list[Verdict]]]


def collect(run: Run) -> Collected:
    """Return the responses of a run, by arm, and the verdicts on them, by arm and judge.

    Args:
        run: the run; only read.

    Raises:
        InputError: as `report`.
    """
    responses = run.responses()
    if not any(responses.values()):
        raise InputError(f"{run.path}: no responses yet; run `setbacks respond RUN` first")
    verdicts = {
        (arm, judge): run.records(f"verdicts/{arm}.{judge}.jsonl", Verdict)
        for arm in responses
        for judge in _judges(run.path, arm)
    }
    if not any(verdicts.values()):
        raise InputError(f"{run.path}: no verdicts yet; run `setbacks judge RUN` first")
    drawn = read_plan(run.path / "review" / "plan.json")
    for (arm, judge), rows in verdicts.items():
        if judge == "human":
            where = run.path / "verdicts" / f"{arm}.human.jsonl"
            verdicts[arm, judge] = _labels(where, rows, responses[arm], drawn)
    return responses, verdicts


def thoughts(run: Run) -> dict[tuple[str, str], list[Verdict]]:
    """Return the verdicts on a run's thoughts, by arm and judge."""
    return {
        (arm.name, judge): run.records(f"thoughts/{arm.name}.{judge}.jsonl", Verdict)
        for arm in run.arms()
        for judge in _judges(run.path, arm.name, "thoughts")
    }


def _labels(
    where: Path,
    labels: Sequence[Verdict],
    responses: Sequence[Response],
    drawn: Mapping[str, float],
) -> list[Verdict]:
    """Check people's labels of one arm, and give each the probability with which it was drawn."""
    known = {response.id for response in responses}
    by_id: dict[str, Verdict] = {}
    for label in labels:
        if label.response_id not in known:
            raise InputError(
                f"{where}: a label for the unknown response {label.response_id}; remove "
                "that line, or restore the responses that it belongs to"
            )
        before = by_id.setdefault(label.response_id, label)
        values = [(v.harmful, v.refused, v.helpful_score) for v in (before, label)]
        if values[0] != values[1]:
            raise InputError(
                f"{where}: two labels of {label.response_id} contradict each other; keep one"
            )
    return [
        label.model_copy(
            update={
                "sampling_probability": drawn.get(label.response_id, label.sampling_probability)
            }
        )
        for label in by_id.values()
    ]


def read_plan(path: Path) -> dict[str, float]:
    """Return the probability with which a review's plan drew each response, in the plan's order.

    Args:
        path: of the plan; without this file, the result is empty.

    Raises:
        InputError: the file is not a plan.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["answers"]
        planned = {str(row["response_id"]): float(row["probability"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        planned = {}
    if not planned:
        raise InputError(
            f"{path}: not a plan of a review; create it again with `setbacks review plan RUN`, or "
            "remove it"
        )
    if wrong := [p for p in planned.values() if not 0 < p <= 1]:
        raise InputError(
            f"{path}: {wrong[0]} is not a probability; it must be above 0 and at most 1"
        )
    return planned


def _judges(folder: Path, arm: str, kind: str = "verdicts") -> list[str]:
    names = (path.stem.rpartition(".") for path in (folder / kind).glob("*.jsonl"))
    return sorted(judge for of, _, judge in names if of == arm)


def as_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a JSON Lines file; characters other than ASCII stay readable."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return plain JSON lines; a torn last line (training was killed) is left out."""
    rows = []
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
