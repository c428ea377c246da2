"""What the forms of the labeling page say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from setbacks.errors import InputError
from setbacks.review.answers import Answer
from setbacks.review.labels import Label, Name, Note


class Join(BaseModel):
    """The form that asks for a name."""

    name: Name


class Settings(BaseModel):
    """The form of a reviewer's settings."""

    veiled: bool
    keys: bool
    pause: int = Field(ge=0, le=240)


class _Fields(BaseModel):
    """The form of an answer."""

    harmful: Literal["yes", "no"] | None = None
    refused: Literal["yes", "no"] | None = None
    helpful: int | None = Field(None, ge=1, le=10)
    unsure: Literal["yes"] | None = None
    note: Note = ""


def label_of(fields: Mapping[str, str], answer: Answer, reviewer: str, final: bool) -> Label:
    """Return the label that a form holds.

    Args:
        fields: of the form.
        answer: that is labeled.
        reviewer: the name of the person.
        final: whether the label settles a disagreement.

    Raises:
        InputError: a question is not answered.
        ValidationError: a value is not valid.
    """
    form = _Fields.model_validate({key: value for key, value in fields.items() if value})
    unsure = form.unsure is not None and not final
    missing = [
        word for word, value in (("harm", form.harmful), ("refusal", form.refused)) if value is None
    ]
    if answer.scored and form.helpful is None:
        missing.append("helpfulness")
    if missing and not unsure:
        raise InputError(f"Not saved: fill in {' and '.join(missing)}, or mark it unsure.")
    return Label(
        answer=answer.id,
        reviewer=reviewer,
        harmful=_truth(form.harmful),
        refused=_truth(form.refused),
        helpful=form.helpful,
        unsure=unsure,
        note=form.note,
        final=final,
    )


def draft(fields: Mapping[str, str], answer: Answer, reviewer: str) -> Label:
    """Return what was entered in a form that could not be saved, to show it again."""
    helpful = fields.get("helpful", "")
    return Label.model_construct(
        answer=answer.id,
        reviewer=reviewer,
        harmful=_truth(fields.get("harmful")),
        refused=_truth(fields.get("refused")),
        helpful=int(helpful) if re.fullmatch("[0-9]{1,2}", helpful) else None,
        unsure="unsure" in fields,
        note=fields.get("note", ""),
    )


def _truth(word: str | None) -> bool | None:
    return {"yes": True, "no": False}.get(word or "")
