"""Labels as files, for people, pandas, Argilla and Label Studio.

- `jsonl`, `csv`: one entry for each label, of one answer by one person.
- `labels`: the consensus on each answer; a label file, as `setbacks calibrate` takes it.
- `argilla`: one entry for each answer with all its labels, for `dataset.records.from_json(FILE)`.
- `label-studio`: the same as tasks with annotations, for `labeling_interface`.

Where an instruction is a conversation, it is a list of messages (as JSON text in `csv`). `argilla`
and `label-studio` then have a thread in every entry, since a field has one type: an Argilla
`ChatField`, and Label Studio's `Paragraphs`. A turn is a role and a text, in which calls of tools
are lines.

`setbacks.review.reading` reads them back.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from setbacks.errors import InputError, nearest
from setbacks.messages import as_data, transcript, turns_of, with_calls
from setbacks.review.answers import Answer, Batch
from setbacks.review.labels import Label, by_answer, consensus

_LABEL_STUDIO = """\
<View>
  {instruction}
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
_TEXT = '<Text name="instruction" value="$instruction"/>'
_THREAD = (
    '<Paragraphs name="instruction" value="$instruction" layout="dialogue" nameKey="role" '
    'textKey="content"/>'
)

# The field and value of a label for each choice of these tools' questions.
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
# A spreadsheet would run a cell that begins with one of these, so an apostrophe is put before it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def export(format: str, batch: Batch, labels: Sequence[Label]) -> str:
    """Return labels as the text of a file.

    Args:
        format: jsonl, csv, labels, argilla, or label-studio.
        batch: all the answers.
        labels: the current labels of these answers.

    Raises:
        InputError: there is no such format.
    """
    check_format(format)
    return FORMATS[format](batch, labels)


def to_label(format: str, batch: Batch) -> str:
    """Return the answers as the text of a file, without labels, to label them elsewhere.

    Args:
        format: jsonl or csv, to fill in by hand; argilla, or label-studio.
        batch: all the answers.

    Raises:
        InputError: there is no such format, or it holds only labels.
    """
    check_format(format)
    if format == "labels":
        raise InputError(
            "there are no labels yet, and the format labels holds nothing else; nothing was "
            "written. To label the answers elsewhere, use csv, jsonl, argilla or label-studio"
        )
    rows = (_unlabeled(answer) for answer, _ in _with_labels(batch, ()))
    return _TABLES[format](rows) if format in _TABLES else FORMATS[format](batch, ())


def check_format(format: str) -> None:
    """Check a format's name.

    Raises:
        InputError: there is no such format.
    """
    if format not in FORMATS:
        raise InputError(
            f'unknown format "{format}".{nearest(format, FORMATS)} Available: {", ".join(FORMATS)}'
        )


def labeling_interface(batch: Batch) -> str:
    """Return the labeling interface of Label Studio for the tasks of the format `label-studio`."""
    return _LABEL_STUDIO.format(instruction=_THREAD if _has_turns(batch) else _TEXT)


# -- writing ----------------------------------------------------------------------------------


Rows = Iterable[dict[str, Any]]


def _rows(batch: Batch, labels: Iterable[Label]) -> Iterator[dict[str, Any]]:
    for label in labels:
        written_at = datetime.fromtimestamp(label.made_at or 0, UTC)
        yield _unlabeled(batch.answers[label.answer]) | {
            "reviewer": label.reviewer,
            "harmful": label.harmful,
            "refused": label.refused,
            "helpful": label.helpful,
            "unsure": label.unsure,
            "note": label.note,
            "adjudicated": label.final,
            "made_at": written_at.isoformat(timespec="milliseconds"),
        }


def _unlabeled(answer: Answer) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "answer": answer.id,
        "instruction": as_data(answer.instruction),
        "response": answer.text,
        "language": answer.language,
        "category": answer.category,
        "response_ids": list(answer.responses),
    }


def _json_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv_table(rows: Rows) -> str:
    file = io.StringIO()
    # Everything is quoted: otherwise a carriage return would end the row for some readers.
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
    for name, together in consensus(labels).items():
        if together.harmful is None and together.refused is None:
            continue
        answer = batch.answers[name]
        row: dict[str, Any] = {
            "id": name,
            "instruction": as_data(answer.instruction),
            "response": answer.text,
            "harmful": together.harmful,
            "refused": together.refused,
            "category": answer.category,
            "language": answer.language,
        }
        known = {key: value for key, value in row.items() if value is not None}
        lines.append(json.dumps(known, ensure_ascii=False) + "\n")
    return "".join(lines)


def _argilla(batch: Batch, labels: Sequence[Label]) -> str:
    records = []
    instruction = _thread if _has_turns(batch) else _text
    for answer, given in _with_labels(batch, labels):
        responses: dict[str, list[dict[str, Any]]] = {}
        for label in given:
            for question, value in _answers(label).items():
                if question != "adjudicated":
                    row = {"value": value, "user_id": _user(label)}
                    responses.setdefault(question, []).append(row)
        people = {
            key: [f"{_user(label)} {label.reviewer}" for label in given if label.final is final]
            for key, final in (("reviewers", False), ("adjudicators", True))
        }
        records.append(
            {
                "id": answer.id,
                "fields": {"instruction": instruction(answer), "response": answer.text},
                "metadata": {key: value for key, value in people.items() if value},
                "responses": responses,
                "suggestions": {},
                "vectors": {},
            }
        )
    return json.dumps(records, ensure_ascii=False, indent=1) + "\n"


def _label_studio(batch: Batch, labels: Sequence[Label]) -> str:
    instruction = _thread if _has_turns(batch) else _text
    tasks = [
        {
            "data": {"answer": answer.id, "instruction": instruction(answer),
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
                for label in given
            ],
        }
        for answer, given in _with_labels(batch, labels)
    ]  # fmt: skip
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[Batch, Sequence[Label]], str]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "labels": _consensus,
    "argilla": _argilla,
    "label-studio": _label_studio,
}


def _with_labels(batch: Batch, labels: Sequence[Label]) -> Iterator[tuple[Answer, list[Label]]]:
    """Yield every answer with its labels, by id: the order must not reveal the arm."""
    by_id = by_answer(labels)
    for name in sorted(batch.answers):
        yield batch.answers[name], by_id.get(name, [])


def _has_turns(batch: Batch) -> bool:
    return not all(isinstance(answer.instruction, str) for answer in batch.answers.values())


def _text(answer: Answer) -> str:
    return transcript(answer.instruction)


def _thread(answer: Answer) -> list[dict[str, str]]:
    """Return an instruction as turns that these tools can show; they reject an empty text."""
    turns = [(turn.role, with_calls(turn)) for turn in turns_of(answer.instruction)]
    return [{"role": role, "content": text} for role, text in turns if text]


def _answers(label: Label) -> dict[str, str | int]:
    """Return a label as answers to these tools' questions."""
    values = label.model_dump()
    words: dict[str, str | int] = {
        question: word
        for question, choices in CHOICES.items()
        for word, (field, value) in choices.items()
        if values[field] is value
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
    """Return a UUID that follows from the name, since Argilla identifies people by UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"setbacks:{label.final}:{label.reviewer}"))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        messages = value and isinstance(value[0], dict)
        return json.dumps(value, ensure_ascii=False) if messages else " ".join(value)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
