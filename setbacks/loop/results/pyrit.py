"""Results of PyRIT: its memory, exported as JSON or CSV, with a row for each piece of a message.

A conversation's last answer is the result. The user's turns are as they were sent, after
converters. Newer releases export no scores; those of older ones become scores here.

Source: https://azure.github.io/PyRIT/code/memory/9_exporting_data.html, pyrit/models/message_piece
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from setbacks.data.assembly import parted
from setbacks.data.conversations import ROLES, unwritten
from setbacks.data.formats import read_csv
from setbacks.errors import InputError
from setbacks.loop.results.files import document
from setbacks.loop.results.item import Item
from setbacks.messages import Message, prompt_of
from setbacks.text import one_line

PIECE = {"role", "conversation_id", "sequence", "original_value"}
LONGEST_HEADER = 100_000  # characters; the csv module rejects longer columns


def recognizes(path: Path) -> bool:
    """Return whether a file has the form of an export of PyRIT's memory."""
    if not path.is_file():
        return False
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            header = file.readline(LONGEST_HEADER)
        return set(next(csv.reader([header]), ())) >= PIECE
    if path.suffix != ".json":
        return False
    data = document(path)
    return bool(isinstance(data, list) and data and _is_piece(data[0]))


def items(path: Path) -> Iterator[Item]:
    """Yield the last answer of every conversation.

    Raises:
        InputError: a row is no piece of a message.
    """
    conversations: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(_rows(path), 1):
        if not _is_piece(row):
            raise InputError(one_line(f"{path}, row {number}: not a piece of a message of PyRIT"))
        conversations.setdefault(str(row["conversation_id"]), []).append(row)
    for pieces in conversations.values():
        # Several pieces of one message have one number. Exports are in no certain order.
        pieces.sort(key=_place)
        turns = [_turn([*same]) for _, same in groupby(pieces, key=_place)]
        while turns and turns[-1].role != "assistant":
            turns.pop()
        before, answer = parted(turns)
        if answer is not None and any(turn.role == "user" for turn in before):
            last = [piece for piece in pieces if ROLES.get(piece["role"]) == "assistant"]
            yield Item(prompt_of(before), answer.content, _scores(last[-1]))


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".json":
        yield from document(path)
        return
    text = path.read_bytes().decode("utf-8-sig", "replace")
    yield from (record.value for record in read_csv(str(path), text))


def _is_piece(row: Any) -> bool:
    return isinstance(row, dict) and row.keys() >= PIECE and row["role"] is not None


def _place(piece: dict[str, Any]) -> int:
    try:
        return int(piece["sequence"])
    except (TypeError, ValueError):
        return -1


def _turn(pieces: list[dict[str, Any]]) -> Message:
    """Return the text of a message; a piece of another type, such as an image, has none."""
    texts = [
        str(piece.get("converted_value") or piece["original_value"] or "")
        for piece in pieces
        if (piece.get("converted_value_data_type") or "text") == "text"
    ]
    role = ROLES.get(pieces[0]["role"].removeprefix("simulated_"), "user")
    return Message.model_validate({"role": role, "content": "\n".join(texts)})


def _scores(piece: dict[str, Any]) -> dict[str, bool | float]:
    """Return the scores of an answer, by category or scorer."""
    scores: dict[str, bool | float] = {}
    held = piece.get("scores")
    held = unwritten(held) if isinstance(held, str) else held
    for score in held if isinstance(held, list) else ():
        kind, value = score.get("score_type"), str(score.get("score_value"))
        scorer = score.get("scorer_class_identifier") or {}
        name = score.get("score_category") or scorer.get("__type__") or "score"
        name = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
        if kind == "true_false" and value.lower() in ("true", "false"):
            scores[name] = value.lower() == "true"
        elif kind == "float_scale":
            try:
                scores[name] = float(value)
            except ValueError:
                continue
    return scores
