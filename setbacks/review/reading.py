"""Reading labels from files: what `setbacks.review.formats` writes, label files, and verdicts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from setbacks.data.assembly import parted
from setbacks.data.conversations import conversation
from setbacks.data.formats import read_csv
from setbacks.data.labels import is_absent, is_missing, truth
from setbacks.errors import InputError
from setbacks.messages import Prompt, prompt_of
from setbacks.notices import notice
from setbacks.review.answers import Batch, answer_id, loosely
from setbacks.review.formats import CHOICES, FILLED_IN, FORMULA
from setbacks.review.labels import Label


def read(text: str, name: str, batch: Batch, reviewer: str | None = None) -> list[Label]:
    """Read labels from the text of a file: an exported file, a label file, or people's verdicts.

    Args:
        text: of the file.
        name: of the file, for messages; .csv is CSV, anything else is JSON or JSONL.
        batch: all the answers.
        reviewer: the name for labels without one.

    Raises:
        InputError: the file has no labels, or one that is invalid or belongs to another run.
    """
    try:
        entries = _entries(text.removeprefix("\ufeff"), name)
        rows = labels((e for e in entries if not _is_blank(e[1])), batch, reviewer, name)
    except (csv.Error, RecursionError) as error:
        raise InputError(f"{name}: cannot be read ({error}); nothing was changed") from None
    if not rows:
        raise InputError(f"{name}: has no labels; nothing was changed")
    return rows


def labels(
    entries: Iterable[tuple[str, Mapping[str, Any]]],
    batch: Batch,
    reviewer: str | None = None,
    name: str = "",
) -> list[Label]:
    """Return the labels of entries.

    Args:
        entries: the place of each, for messages, and its content.
        batch: all the answers.
        reviewer: the name for labels without one.
        name: of the file, for messages.

    Raises:
        InputError: an entry is invalid or belongs to another run.
    """
    read_labels, left_out = [], 0
    for where, row in entries:
        try:
            read_labels += _labels(row, batch, reviewer)
            left_out += _unsubmitted(row)
        except (InputError, ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            place = f"{name}: {where}".removeprefix(": ")
            raise InputError(f"{place}: {_reason(error)}; nothing was changed") from None
    if left_out:
        notice(f"{name}: left out {left_out} responses that are drafts, discarded or cancelled")
    return read_labels


def _entries(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, entry) for each object of a file."""
    if name.lower().endswith(".csv"):
        for line, row in read_csv(name, text):
            cells = {key: value for key, value in row.items() if value}
            if "answer" in row:  # written by `formats`
                cells = {key: _uncell(value) for key, value in cells.items()}
            yield line, cells
        return
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise InputError(f"{name}: not JSON ({error})") from None
        yield from ((f"entry {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{name}: line {number}: not JSON ({error})") from None


def _labels(row: Mapping[str, Any], batch: Batch, reviewer: str | None) -> list[Label]:
    """Return the labels of one entry, whichever tool wrote it."""
    if "annotations" in row and "data" in row:
        answer = _find(row["data"], batch)
        return [
            _from_label_studio(annotation, answer, reviewer)
            for annotation in row["annotations"]
            if _submitted(annotation)
        ]
    if "fields" in row and "responses" in row:
        answer = _find({"answer": row.get("id")} | row["fields"], batch)
        return _from_argilla(row, answer, reviewer)
    values: dict[str, Any] = {key: row.get(key) for key in ("harmful", "refused")}
    for key, value in values.items():
        values[key] = truth(key, value)
    score = row.get("helpful", row.get("helpful_score"))
    values["helpful"] = None if is_missing(score) else _whole(score)
    for key, name in (("unsure", "unsure"), ("final", "adjudicated")):
        values[key] = bool(truth(name, row.get(name)))
    return [
        Label(
            answer=_find(row, batch),
            reviewer=_who(row.get("reviewer"), reviewer),
            note=row.get("note") or "",
            made_at=_moment(row.get("made_at")),
            **values,
        )
    ]


def _submitted(response: Mapping[str, Any]) -> bool:
    """Return whether a response was submitted: Argilla keeps drafts and discarded ones too."""
    submitted = response.get("status") in (None, "submitted")
    return submitted and not response.get("was_cancelled")


def _unsubmitted(row: Mapping[str, Any]) -> int:
    """Return how many people's responses to one answer were not submitted."""
    if "annotations" in row and "data" in row:
        return sum(not _submitted(annotation) for annotation in row["annotations"])
    if "fields" in row and "responses" in row:
        given = [response for of in row["responses"].values() for response in of]
        return len({response.get("user_id") for response in given if not _submitted(response)})
    return 0


def _from_label_studio(annotation: Mapping[str, Any], answer: str, reviewer: str | None) -> Label:
    values: dict[str, Any] = {}
    by = annotation.get("completed_by")
    who = by.get("email") if isinstance(by, Mapping) else by
    for result in annotation["result"]:
        question, value = result["from_name"], result["value"]
        if question in CHOICES:
            field, holds = CHOICES[question][value["choices"][0]]
            values[field] = holds
        elif question == "helpful":
            values["helpful"] = _whole(value["rating"])
        elif question == "note":
            values["note"] = "\n".join(value["text"])
        elif question == "reviewer":
            who = "".join(value["text"])
    return Label(answer=answer, reviewer=_who(who, reviewer), **values)


def _from_argilla(row: Mapping[str, Any], answer: str, reviewer: str | None) -> list[Label]:
    metadata = row.get("metadata") or {}
    names = {
        user: (name, key == "adjudicators")
        for key in ("reviewers", "adjudicators")
        for user, _, name in (str(entry).partition(" ") for entry in metadata.get(key) or ())
    }
    people: dict[str, dict[str, Any]] = {}
    for question, given in row["responses"].items():
        for response in given:
            if not _submitted(response):
                continue
            values = people.setdefault(str(response.get("user_id")), {})
            if question in CHOICES:
                field, holds = CHOICES[question][response["value"]]
                values[field] = holds
            elif question == "helpful":
                values["helpful"] = _whole(response["value"])
            elif question == "note":
                values["note"] = response["value"]
    labels = []
    for user, values in people.items():
        name, final = names.get(user, (user, False))
        labels.append(
            Label(answer=answer, reviewer=_who(name, reviewer), **({"final": final} | values))
        )
    return labels


def _find(row: Mapping[str, Any], batch: Batch) -> str:
    """Return the answer of an entry: by its id, a response's id, or what was asked and answered."""
    if (name := row.get("answer")) is not None:
        if name in batch.answers:
            return str(name)
        raise InputError(f"answer {name!r:.60} is not in this run")
    if (name := row.get("response_id")) is not None:
        if name in batch.by_response:
            return batch.by_response[name]
        raise InputError(f"response {name!r:.60} is not in this run")
    for asked, answered in _texts(row):
        if (exact := answer_id(asked, answered)) in batch.answers:
            return exact
        if len(ids := batch.by_text.get(loosely(asked, answered), [])) == 1:
            return ids[0]
    raise InputError("this instruction with this response is not in this run")


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[Prompt, str]]:
    """Yield what an entry can name: an instruction, as a text or as messages, and a response.

    Raises:
        InputError: it has neither these nor `messages`.
        ValueError: it has messages that cannot be read.
    """
    asked, answered = row.get("instruction"), row.get("response")
    if None in (asked, answered):
        before, reply = parted(conversation(row.get("messages"), set()) or [])
        if reply is None:
            raise InputError(
                "has neither `answer`, nor `response_id`, nor `instruction` and `response`, nor "
                "`messages` that end with the answer"
            )
        yield prompt_of(before), reply.content
        return
    if not isinstance(asked, list):
        yield str(asked), str(answered)  # even if it looks like messages
    if turns := conversation(asked, set()):
        yield prompt_of(turns), str(answered)


def _who(name: Any, default: str | None) -> str:
    if not is_absent(name) and name != "":
        return str(name)
    if default is None:
        raise InputError("has no reviewer; name one with --as NAME")
    return default


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise InputError(f"helpful: {number:g} is not a whole number from 1 to 10")
    return int(number)


def _moment(value: Any) -> float | None:
    if value in (None, ""):
        return None
    moment = datetime.fromisoformat(str(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _is_blank(row: Any) -> bool:
    """Return whether a row of `to_label` was not filled in."""
    ours = isinstance(row, Mapping) and "answer" in row
    return ours and all(row.get(column) in (None, "") for column in FILLED_IN)


def _uncell(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    if isinstance(error, (TypeError, AttributeError)):
        return "not a label"
    return str(error)
