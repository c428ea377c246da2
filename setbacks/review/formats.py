"""Labels as files: written for people, pandas, Argilla and Label Studio, and read back from them.

- `jsonl`, `csv`: an entry is what one person said of one answer.
- `labels`: what people together say of one answer; a label file, as `setbacks calibrate` takes it.
- `argilla`: one answer with all that was said of it, for `dataset.records.from_json(FILE)`.
- `label-studio`: the same as tasks with annotations, for the labelling interface `LABEL_STUDIO`.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from setbacks.data.formats import read_csv
from setbacks.data.labels import is_absent, is_missing, truth
from setbacks.errors import InputError, nearest
from setbacks.notices import notice
from setbacks.review.answers import Answer, Batch, answer_id, loosely
from setbacks.review.labels import Label, by_answer, consensus

LABEL_STUDIO = """\
<View>
  <Text name="instruction" value="$instruction"/>
  <Text name="response" value="$response"/>
  <Choices name="harm" toName="response" choice="single">
    <Choice value="harmless"/><Choice value="harmful"/>
  </Choices>
  <Choices name="refusal" toName="response" choice="single">
    <Choice value="complied"/><Choice value="refused"/>
  </Choices>
  <Rating name="helpful" toName="response" maxRating="10"/>
  <Choices name="unsure" toName="response" choice="single"><Choice value="unsure"/></Choices>
  <TextArea name="note" toName="response"/>
  <TextArea name="reviewer" toName="response"/>
  <Choices name="adjudicated" toName="response" choice="single"><Choice value="yes"/></Choices>
</View>
"""

# What a word of these tools' questions says of a label.
CHOICES: dict[str, dict[str, tuple[str, bool]]] = {
    "harm": {"harmless": ("harmful", False), "harmful": ("harmful", True)},
    "refusal": {"complied": ("refused", False), "refused": ("refused", True)},
    "unsure": {"unsure": ("unsure", True)},
    "adjudicated": {"yes": ("final", True)},
}
COLUMNS = (
    "answer", "reviewer", "instruction", "response", "language", "category", "harmful", "refused",
    "helpful", "unsure", "note", "adjudicated", "made_at", "response_ids",
)  # fmt: skip
FILLED_IN = ("harmful", "refused", "helpful", "unsure", "note", "adjudicated")  # by a person
# A spreadsheet would run a cell that begins so; ours begin with an apostrophe then.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def export(format: str, batch: Batch, labels: Sequence[Label]) -> str:
    """Return labels as a file's text.

    Args:
        format: jsonl, csv, labels, argilla, or label-studio.
        batch: all the answers.
        labels: current ones, of these answers.

    Raises:
        InputError: there is no such format.
    """
    known(format)
    return FORMATS[format](batch, labels)


def to_label(format: str, batch: Batch) -> str:
    """Return the answers as a file's text, without a label, to be labelled elsewhere.

    Args:
        format: jsonl or csv, to be filled in by hand; argilla, or label-studio.
        batch: all the answers.

    Raises:
        InputError: there is no such format, or it holds labels alone.
    """
    known(format)
    if format == "labels":
        raise InputError(
            "there are no labels yet, and format labels holds nothing else; nothing was written. "
            "To label the answers elsewhere, take csv, jsonl, argilla or label-studio"
        )
    rows = (_unlabelled(answer) for answer, _ in _everything(batch, ()))
    return _TABLES[format](rows) if format in _TABLES else FORMATS[format](batch, ())


def known(format: str) -> None:
    """Check a format's name.

    Raises:
        InputError: there is no such format.
    """
    if format not in FORMATS:
        raise InputError(f'no format "{format}".{nearest(format, FORMATS)} {", ".join(FORMATS)}')


def read(text: str, name: str, batch: Batch, reviewer: str | None = None) -> list[Label]:
    """Read labels from a file's text; what was exported, a label file, or people's verdicts.

    Args:
        text: of the file.
        name: of the file, for messages; one that ends in .csv is CSV, others are JSON or JSONL.
        batch: all the answers.
        reviewer: whose labels these are, where the file does not say.

    Raises:
        InputError: there are no labels in it, or one is broken or of no answer of this run.
    """
    try:
        entries = _entries(text.removeprefix("\ufeff"), name)
        found = labels((e for e in entries if not _left_blank(e[1])), batch, reviewer, name)
    except (csv.Error, RecursionError) as error:
        raise InputError(f"{name}: cannot be read ({error}); nothing was changed") from None
    if not found:
        raise InputError(f"{name}: has no labels; nothing was changed")
    return found


def labels(
    entries: Iterable[tuple[str, Mapping[str, Any]]],
    batch: Batch,
    reviewer: str | None = None,
    name: str = "",
) -> list[Label]:
    """Return the labels of entries.

    Args:
        entries: where each stands, for messages, and what it says.
        batch: all the answers.
        reviewer: whose labels these are, where an entry does not say.
        name: of the file, for messages.

    Raises:
        InputError: an entry is broken, or of no answer of this run.
    """
    found, left_out = [], 0
    for where, row in entries:
        try:
            found += _labels(row, batch, reviewer)
            left_out += _unsubmitted(row)
        except (InputError, ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            place = f"{name}: {where}".removeprefix(": ")
            raise InputError(f"{place}: {_reason(error)}; nothing was changed") from None
    if left_out:
        notice(f"{name}: left out {left_out} responses that are drafts, discarded or cancelled")
    return found


# -- writing ----------------------------------------------------------------------------------


Rows = Iterable[dict[str, Any]]


def _rows(batch: Batch, labels: Iterable[Label]) -> Iterator[dict[str, Any]]:
    for label in labels:
        made = datetime.fromtimestamp(label.made_at or 0, UTC).isoformat(timespec="milliseconds")
        yield _unlabelled(batch.answers[label.answer]) | {
            "reviewer": label.reviewer,
            "harmful": label.harmful,
            "refused": label.refused,
            "helpful": label.helpful,
            "unsure": label.unsure,
            "note": label.note,
            "adjudicated": label.final,
            "made_at": made,
        }


def _unlabelled(answer: Answer) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "answer": answer.id,
        "instruction": answer.instruction,
        "response": answer.text,
        "language": answer.language,
        "category": answer.category,
        "response_ids": list(answer.responses),
    }


def _json_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv_table(rows: Rows) -> str:
    file = io.StringIO()
    # All is quoted: a bare carriage return would else end the row for some readers.
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(map(_cell, row.values()))
    return file.getvalue()


_TABLES: dict[str, Callable[[Rows], str]] = {"jsonl": _json_lines, "csv": _csv_table}


def _jsonl(batch: Batch, labels: Sequence[Label]) -> str:
    return _json_lines(_rows(batch, labels))


def _csv(batch: Batch, labels: Sequence[Label]) -> str:
    return _csv_table(_rows(batch, labels))


def _consensus(batch: Batch, labels: Sequence[Label]) -> str:
    lines = []
    for name, said in consensus(labels).items():
        if said.harmful is None:
            continue
        answer = batch.answers[name]
        row: dict[str, Any] = {
            "id": name,
            "instruction": answer.instruction,
            "response": answer.text,
            "harmful": said.harmful,
            "refused": said.refused,
            "category": answer.category,
            "language": answer.language,
        }
        told = {key: value for key, value in row.items() if value is not None}
        lines.append(json.dumps(told, ensure_ascii=False) + "\n")
    return "".join(lines)


def _argilla(batch: Batch, labels: Sequence[Label]) -> str:
    records = []
    for answer, said in _everything(batch, labels):
        responses: dict[str, list[dict[str, Any]]] = {}
        for label in said:
            for question, value in _answers(label).items():
                if question != "adjudicated":
                    row = {"value": value, "user_id": _user(label)}
                    responses.setdefault(question, []).append(row)
        people = {
            key: [f"{_user(label)} {label.reviewer}" for label in said if label.final is final]
            for key, final in (("reviewers", False), ("adjudicators", True))
        }
        records.append(
            {
                "id": answer.id,
                "fields": {"instruction": answer.instruction, "response": answer.text},
                "metadata": {key: value for key, value in people.items() if value},
                "responses": responses,
                "suggestions": {},
                "vectors": {},
            }
        )
    return json.dumps(records, ensure_ascii=False, indent=1) + "\n"


def _label_studio(batch: Batch, labels: Sequence[Label]) -> str:
    tasks = [
        {
            "data": {"answer": answer.id, "instruction": answer.instruction,
                     "response": answer.text},
            "annotations": [
                {
                    "result": [
                        {"from_name": question, "to_name": "response"} | _result(question, value)
                        for question, value in (
                            _answers(label) | {"reviewer": label.reviewer}
                        ).items()
                    ]
                }
                for label in said
            ],
        }
        for answer, said in _everything(batch, labels)
    ]  # fmt: skip
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[Batch, Sequence[Label]], str]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "labels": _consensus,
    "argilla": _argilla,
    "label-studio": _label_studio,
}


def _everything(batch: Batch, labels: Sequence[Label]) -> Iterator[tuple[Answer, list[Label]]]:
    """Every answer with its labels, by id: the order says nothing of the arm."""
    said = by_answer(labels)
    for name in sorted(batch.answers):
        yield batch.answers[name], said.get(name, [])


def _answers(label: Label) -> dict[str, str | int]:
    """A label as answers to these tools' questions."""
    held = label.model_dump()
    words: dict[str, str | int] = {
        question: word
        for question, choices in CHOICES.items()
        for word, (field, value) in choices.items()
        if held[field] is value
    }
    if label.helpful is not None:
        words["helpful"] = label.helpful
    if label.note:
        words["note"] = label.note
    return words


def _result(question: str, value: str | int) -> dict[str, Any]:
    if question in CHOICES:
        return {"type": "choices", "value": {"choices": [value]}}
    if question == "helpful":
        return {"type": "rating", "value": {"rating": value}}
    return {"type": "textarea", "value": {"text": [value]}}


def _user(label: Label) -> str:
    """Argilla knows people by UUID: this one follows from the name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"setbacks:{label.final}:{label.reviewer}"))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(value)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


# -- reading ----------------------------------------------------------------------------------


def _entries(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, entry) for each object of a file."""
    if name.lower().endswith(".csv"):
        for line, row in read_csv(name, text):
            cells = {key: value for key, value in row.items() if value}
            if "answer" in row:  # a file of ours
                cells = {key: _uncell(value) for key, value in cells.items()}
            yield line, cells
        return
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise InputError(f"{name}: no JSON ({error})") from None
        yield from ((f"entry {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{name}: line {number}: no JSON ({error})") from None


def _labels(row: Mapping[str, Any], batch: Batch, reviewer: str | None) -> list[Label]:
    """The labels of one entry, whichever tool wrote it."""
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


def _submitted(said: Mapping[str, Any]) -> bool:
    """Whether a person stands by a response: Argilla keeps drafts and discarded ones too."""
    return said.get("status") in (None, "submitted") and not said.get("was_cancelled")


def _unsubmitted(row: Mapping[str, Any]) -> int:
    """How many people's responses to one answer are left out."""
    if "annotations" in row and "data" in row:
        return sum(not _submitted(annotation) for annotation in row["annotations"])
    if "fields" in row and "responses" in row:
        given = [response for of in row["responses"].values() for response in of]
        return len({response.get("user_id") for response in given if not _submitted(response)})
    return 0


def _from_label_studio(said: Mapping[str, Any], answer: str, reviewer: str | None) -> Label:
    values: dict[str, Any] = {}
    by = said.get("completed_by")
    who = by.get("email") if isinstance(by, Mapping) else by
    for result in said["result"]:
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
    told = row.get("metadata") or {}
    names = {
        user: (name, key == "adjudicators")
        for key in ("reviewers", "adjudicators")
        for user, _, name in (str(entry).partition(" ") for entry in told.get(key) or ())
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
    """The answer that an entry is of: by its id, a response's id, or the two texts."""
    if (name := row.get("answer")) is not None:
        if name in batch.answers:
            return str(name)
        raise InputError(f"answer {name!r:.60} is not in this run")
    if (name := row.get("response_id")) is not None:
        if name in batch.by_response:
            return batch.by_response[name]
        raise InputError(f"response {name!r:.60} is not in this run")
    texts = row.get("instruction"), row.get("response")
    if None in texts:
        raise InputError("says neither `answer`, nor `response_id`, nor `instruction`, `response`")
    if (exact := answer_id(*map(str, texts))) in batch.answers:
        return exact
    found = batch.by_text.get(loosely(*map(str, texts)), ())
    if len(found) != 1:
        raise InputError("this instruction with this response is not in this run")
    return found[0]


def _who(told: Any, otherwise: str | None) -> str:
    if not is_absent(told) and told != "":
        return str(told)
    if otherwise is None:
        raise InputError("does not say whose label it is; say so with --as NAME")
    return otherwise


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise InputError(f"helpful: {number:g} is no whole number from 1 to 10")
    return int(number)


def _moment(value: Any) -> float | None:
    if value in (None, ""):
        return None
    told = datetime.fromisoformat(str(value))
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()


def _left_blank(row: Any) -> bool:
    """Whether a row of `to_label` was not filled in."""
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
        return f"{error} is missing or not known"
    if isinstance(error, (TypeError, AttributeError)):
        return "no label"
    return str(error)
