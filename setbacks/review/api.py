"""The JSON API of the labeling page, for scripts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from setbacks.messages import Prompt, as_data
from setbacks.review import formats, reading
from setbacks.review.answers import queue
from setbacks.review.labels import Name
from setbacks.review.site import PAIRED, Here, labels_file

router = APIRouter(prefix="/api")


class PostedLabel(BaseModel):
    """A label of an answer, named by its id, a response's id, or its instruction and response."""

    model_config = ConfigDict(extra="forbid")

    answer: str | None = None
    response_id: str | None = None
    instruction: Prompt | None = None
    response: str | None = None
    harmful: bool | None = None
    refused: bool | None = None
    helpful: int | None = None
    unsure: bool = False
    note: str = ""
    adjudicated: bool = False


class Posted(BaseModel):
    """Labels of one reviewer; `replace` overwrites earlier ones by the same reviewer."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Name
    labels: list[PostedLabel] = Field(min_length=1)
    replace: bool = False


@router.get("/answers")
def answers(site: Here, reviewer: Name = "script") -> list[dict[str, Any]]:
    """List the answers that a reviewer is to label, in order."""
    return [
        {
            "answer": a.id,
            "instruction": as_data(a.instruction),
            "response": a.text,
            "scored": a.scored,
        }
        for a in queue(site.store.batch, reviewer)
    ]


@router.post("/labels")
def add(site: Here, posted: Posted) -> dict[str, int]:
    """Add labels, all or none."""
    rows = [(f"label {i}", row.model_dump(mode="json")) for i, row in enumerate(posted.labels, 1)]
    labels = reading.labels(rows, site.store.batch, posted.reviewer)
    added = site.store.add(labels, replace=posted.replace)
    site.changed()
    return {"added": added, "there": len(labels) - added}


@router.get("/labels")
def export(site: Here, format: str = "jsonl") -> Response:
    """Return the labels in a format."""
    return labels_file(formats.export(format, site.store.batch, site.store.labels()), format)


@router.get("/agreement")
def agreement(site: Here) -> dict[str, Any]:
    """Return how far people agree."""
    now = site.agreement()
    return {
        "alpha": {task: value._asdict() for task, value in now.alphas.items()},
        "kappa": {
            task: [
                {"reviewers": list(people)} | by_task[task]._asdict()
                for people, by_task in now.kappas.items()
                if task in by_task
            ]
            for task in PAIRED
        },
        "disagreements": now.open,
    }


@router.get("/progress")
def progress(site: Here) -> dict[str, Any]:
    """Return how much is labeled, in all and by each reviewer."""
    store = site.store
    by_name = {reviewer.name: store.progress(reviewer) for reviewer in store.reviewers()}
    return {
        "answers": len(store.batch.answers),
        "labelled": len({label.answer for label in store.labels()}),
        "reviewers": {name: {"done": p.done, "left": p.left} for name, p in by_name.items()},
    }
