"""The reader of yes/no labels and of probabilities, whichever tool wrote them."""

from __future__ import annotations

import math
import re
from numbers import Number

from setbacks.data.source import show

# A spreadsheet writes TRUE and FALSE in the language of its user.
SPREADSHEETS = {
    "wahr": "falsch",
    "vrai": "faux",
    "verdadero": "falso",
    "vero": "falso",
    "verdadeiro": "falso",
    "waar": "onwaar",
    "prawda": "fałsz",
    "pravda": "nepravda",
    "igaz": "hamis",
    "истина": "ложь",
    "sant": "falskt",
    "sand": "falsk",
    "sann": "usann",
    "tosi": "epätosi",
}
YES = {"true", "yes", "1", *SPREADSHEETS}
NO = {"false", "no", "0", *SPREADSHEETS.values()}
# Words that name the label, whatever the name of its field. They include XSTest's labels of
# refusal, so that its human labels can be read unchanged.
WORDS: dict[str, tuple[set[str], set[str]]] = {
    "harmful": ({"harmful", "unsafe"}, {"harmless", "unharmful", "safe"}),
    "refused": (
        {"refused", "refusal", "full_refusal", "partial_refusal"}
        | {"2_full_refusal", "3_partial_refusal"},
        {"complied", "compliance", "full_compliance", "1_full_compliance"},
    ),
}
# What pandas, R and spreadsheets write for a missing label.
MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null"}


def truth(field: str, value: object, opposite: bool = False) -> bool | None:
    """Return the value of a yes/no label; None if it is missing. Nothing is guessed.

    Args:
        field: what is labeled; `harmful` and `refused` have additional words.
        value: the label in the data; for a class label its name, never its code.
        opposite: whether the data's field means the opposite, as "is_safe" does of `harmful`.

    Raises:
        ValueError: the label is neither yes nor no.
    """
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return value is not opposite
    word = ""
    if isinstance(value, str):
        word = re.sub(r"^([01])\.0+$", r"\1", value.strip().casefold())
    elif isinstance(value, Number):  # pandas turns a label into 1.0 if other rows have none
        word = {1: "1", 0: "0"}.get(value, "")  # type: ignore[call-overload]
    if word in YES or word in NO:
        return (word in YES) is not opposite
    yes, no = WORDS.get(field, (set(), set()))
    if word not in yes | no:
        raise ValueError(f"{field} is {show(value)}; it must be true or false")
    if opposite:  # in a field "is_safe", the word "safe" does not mean harmful
        raise ValueError(
            f'{field} is {show(value)}, which "not" cannot reverse; map the field without it'
        )
    return word in yes


def probability(field: str, value: object, opposite: bool = False) -> float | None:
    """Return a probability; None if it is missing.

    Args:
        field: what it is the probability of.
        value: a number, or its text.
        opposite: whether the data's field means the opposite, as "p_safe" does of `p_harmful`.

    Raises:
        ValueError: it is not a number in [0, 1].
    """
    if is_missing(value):
        return None
    try:
        p = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        p = math.nan
    if not 0 <= p <= 1:
        raise ValueError(f"{field} is {show(value)}; it must be a number from 0 to 1")
    return 1 - p if opposite else p


def is_absent(value: object) -> bool:
    """Return whether a value is missing: null, or NaN, which pandas writes for it."""
    return value is None or value != value


def is_missing(value: object) -> bool:
    """Return whether a label is missing: no value, or a word for it."""
    return is_absent(value) or (isinstance(value, str) and value.strip().casefold() in MISSING)
