"""The pages of the labeling page; they work without scripts."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import ValidationError

from setbacks.errors import InputError
from setbacks.review import formats
from setbacks.review.answers import Answer
from setbacks.review.forms import Join, Settings, draft, label_of
from setbacks.review.labels import LONGEST_NAME, LONGEST_NOTE, TASKS, Label, disagreements
from setbacks.review.site import (
    PAIRED,
    Form,
    Here,
    Rejected,
    Site,
    Who,
    labels_file,
    reason,
    redirect,
    remember,
)
from setbacks.review.store import Reviewer, Store

ENDINGS = {"jsonl": ".jsonl", "csv": ".csv", "labels": "-labels.jsonl", "argilla": "-argilla.json",
           "label-studio": "-label-studio.json"}  # fmt: skip

router = APIRouter()


@router.get("/")
def first() -> Response:
    """Go to the answers."""
    return redirect("/label")


# A reviewer --------------------------------------------------------------------------------------


@router.get("/join")
def ask_name(site: Here) -> Response:
    """Ask for the reviewer's name."""
    names = [reviewer.name for reviewer in site.store.reviewers()]
    return site.page("join", names=names, longest=LONGEST_NAME)


@router.post("/join")
def join(site: Here, fields: Form) -> Response:
    """Remember the reviewer's name."""
    reviewer = site.store.join(Join(name=fields.get("name", "")).name)
    reply = redirect("/label")
    remember(reply, f"{site.keys.cookie_name}_who", str(reviewer.id))
    return reply


@router.get("/settings")
def settings(site: Here, reviewer: Who) -> Response:
    """Show the reviewer's settings."""
    return site.page("settings", reviewer, progress=site.store.progress(reviewer))


@router.post("/settings")
def save_settings(site: Here, reviewer: Who, fields: Form) -> Response:
    """Save the reviewer's settings."""
    form = Settings(veiled="veiled" in fields, keys="keys" in fields, pause=fields.get("pause", ""))
    site.store.settings(reviewer.id, **form.model_dump())
    return redirect("/label")


@router.post("/rest")
def rest(site: Here, reviewer: Who, fields: Form) -> Response:
    """Note that the reviewer has taken a break."""
    site.store.settings(reviewer.id, rested_at=site.store.clock())
    return redirect("/label")


@router.get("/guide")
def guide(site: Here, reviewer: Who) -> Response:
    """Show what the questions mean."""
    return site.page("guide", reviewer)


# An answer ---------------------------------------------------------------------------------------


@router.get("/label")
def next_answer(site: Here, reviewer: Who, show: bool = False, saved: bool = False) -> Response:
    """Show the next answer to label."""
    answer = site.store.next(reviewer)
    if answer is None:
        return site.page("done", reviewer, progress=site.store.progress(reviewer))
    return _labeling(site, reviewer, answer, shown=show, saved=saved)


@router.get("/answers/{name}")
def one_answer(site: Here, reviewer: Who, name: str, show: bool = False) -> Response:
    """Show an answer with the reviewer's label of it."""
    answer = _answer(site.store, name)
    label = site.store.last(reviewer, answer.id)
    return _labeling(site, reviewer, answer, label=label, shown=show)


@router.get("/settle/{name}")
def disagreement(site: Here, reviewer: Who, name: str, show: bool = False) -> Response:
    """Show an answer with everybody's labels of it, to settle a disagreement."""
    answer = _answer(site.store, name)
    others = tuple(label for label in site.store.labels() if label.answer == answer.id)
    label = site.store.last(reviewer, answer.id, final=True)
    return _labeling(site, reviewer, answer, label=label, others=others, shown=show, final=True)


@router.post("/answers/{name}")
def save(site: Here, reviewer: Who, name: str, fields: Form) -> Response:
    """Save a label."""
    return _save(site, reviewer, name, fields, final=False)


@router.post("/settle/{name}")
def settle(site: Here, reviewer: Who, name: str, fields: Form) -> Response:
    """Save a label that settles a disagreement."""
    return _save(site, reviewer, name, fields, final=True)


@router.post("/undo")
def undo(site: Here, reviewer: Who, fields: Form) -> Response:
    """Take back the reviewer's last label, and show its answer again."""
    label = site.store.undo(reviewer.id)
    if label is None:
        return redirect("/label")
    site.changed()
    return redirect(f"/{'settle' if label.final else 'answers'}/{label.answer}")


# What people say together ------------------------------------------------------------------------


@router.get("/disagreements")
def differing(site: Here, reviewer: Who, all: bool = False) -> Response:
    """List the disagreements."""
    labels = site.store.labels()
    rows = disagreements(labels)
    seen = {label.answer for label in labels if label.reviewer == reviewer.name}
    # A reviewer should not read the others' labels of an answer before labeling it.
    listed = [(d, site.store.batch.answers[d.answer]) for d in rows if all or d.answer in seen]
    return site.page("disagreements", reviewer, rows=listed, hidden=len(rows) - len(listed))


@router.get("/agreement")
def agreeing(site: Here, reviewer: Who) -> Response:
    """Show how far people agree."""
    counts: dict[str, int] = {}
    for label in site.store.labels():
        if not label.final:
            counts[label.reviewer] = counts.get(label.reviewer, 0) + 1
    return site.page(
        "agreement",
        reviewer,
        agreement=site.agreement(),
        tasks=TASKS,
        paired=PAIRED,
        counts=counts,
        progress=site.store.progress(reviewer),
        share=site.store.share,
        formats=list(formats.FORMATS),
    )


@router.get("/export/{format}")
def export(site: Here, reviewer: Who, format: str) -> Response:
    """Download the labels, or before the first one the answers."""
    batch, labels = site.store.batch, site.store.labels()
    text = formats.export(format, batch, labels) if labels else formats.to_label(format, batch)
    name = f'attachment; filename="review{ENDINGS[format]}"'
    return labels_file(text, format, **{"Content-Disposition": name})


# -------------------------------------------------------------------------------------------------


def _labeling(
    site: Site,
    reviewer: Reviewer,
    answer: Answer,
    *,
    status: int = 200,
    label: Label | None = None,
    others: tuple[Label, ...] = (),
    problem: str = "",
    shown: bool = False,
    saved: bool = False,
    final: bool = False,
) -> Response:
    minutes = site.store.at_work(reviewer)
    return site.page(
        "label",
        reviewer,
        status=status,
        tab="disagreements" if final else "label",
        answer=answer,
        progress=site.store.progress(reviewer),
        label=label,
        others=others,
        problem=problem,
        veiled=reviewer.veiled and not shown,
        saved=saved,
        final=final,
        # Not while a label is being settled or corrected.
        tired=round(minutes) if 0 < reviewer.pause <= minutes and label is None else 0,
        form=secrets.token_urlsafe(16),
        longest=LONGEST_NOTE,
    )


def _save(
    site: Site, reviewer: Reviewer, name: str, fields: dict[str, str], final: bool
) -> Response:
    answer = _answer(site.store, name)
    try:
        label = label_of(fields, answer, reviewer.name, final)
    except (InputError, ValidationError) as error:
        problem = reason(error) if isinstance(error, ValidationError) else str(error)
        entered = draft(fields, answer, reviewer.name)
        return _labeling(
            site, reviewer, answer, status=422, label=entered, problem=problem, shown=True,
            final=final,
        )  # fmt: skip
    site.store.save(label, fields.get("form"))
    site.changed()
    return redirect("/disagreements" if final else "/label?saved=1")


def _answer(store: Store, name: str) -> Answer:
    answer = store.batch.answers.get(name)
    if answer is None:
        raise Rejected(404, "there is no such answer in this run")
    return answer
