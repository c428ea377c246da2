"""What a loop has decided: `loop.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from setbacks.errors import InputError
from setbacks.files import write_atomic

Outcome = Literal["accepted", "worse", "undecided", "alarm", "no setbacks"]


class Round(BaseModel, extra="forbid", frozen=True):
    """The decision about one round.

    Attributes:
        number: of the round, from 1.
        planned: the rounds that the recipe planned when this one was first decided. A round that
            did not pass ends the loop until more are planned.
        outcome: what was decided. Without setbacks there was nothing to train on.
        evidence: the gate's decision in words: a line for each claim, and what would decide it.
        alarms: warnings of the round's report that forbid to accept it.
    """

    number: int
    planned: int
    outcome: Outcome
    evidence: list[str] = []
    alarms: list[str] = []

    @property
    def accepted(self) -> bool:
        """Whether the round's model became the current one."""
        return self.outcome == "accepted"

    @property
    def name(self) -> str:
        """The name of the round's folder."""
        return f"round-{self.number}"


class _File(BaseModel, extra="forbid"):
    """`loop.json`: the decisions, and the adapter that they lead to, for programs that deploy."""

    current: str | None
    rounds: list[Round]


def read_rounds(folder: Path) -> list[Round]:
    """Return the decided rounds of a loop's folder, in order.

    Raises:
        InputError: `loop.json` is damaged.
    """
    path = folder / "loop.json"
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(path.read_bytes()).rounds
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{path}: damaged at {where or 'its start'}; delete it, and `setbacks loop` decides "
            "again by the answers in the folders of the rounds"
        ) from None


def write_rounds(folder: Path, rounds: list[Round]) -> None:
    """Write the decisions in one step."""
    accepted = [f"{one.name}/adapter" for one in rounds if one.accepted]
    file = _File(current=accepted[-1] if accepted else None, rounds=rounds)
    write_atomic(folder / "loop.json", file.model_dump_json(indent=1).encode() + b"\n")
