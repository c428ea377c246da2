"""Measure the detector of degenerate answers on the answers that were labeled by reading.

Prints precision and recall with 95 % Wilson intervals by language and reason, the false alarms on
answers that people wrote, and what other thresholds would give on the half that they were chosen
on. Writes the same as JSON.

    python research/degeneration/measure.py
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from setbacks.data import Source
from setbacks.data.instructions import instructions
from setbacks.measure import degeneration
from setbacks.measure.degeneration import REASONS, guidance
from setbacks.measure.degeneration import degeneration as detect
from setbacks.measure.statistics import rate

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
BUILTIN = ("helpful", "safe", "refusals", "safe_zh")
THRESHOLDS = {  # those that are swept; the others follow from what they are for
    "DISTINCT": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85),
    "COPIED": (0.7, 0.8, 0.9, 0.95),
}

Row = Mapping[str, Any]


def rows_of(language: str, split: str | None = None) -> list[dict[str, Any]]:
    """Return the labeled answers of a language, or of one half of them."""
    lines = (HERE / f"labels-{language}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if split in (None, row["split"])]


def reason_of(row: Row) -> str | None:
    """Return the reason that the detector gives for an answer, if any."""
    result = detect(row["answer"], row["prompt"], guidance())
    return result.reason if result else None


def share(values: Iterable[bool]) -> dict[str, Any]:
    """Return a share with its interval, and what it is a share of."""
    values = list(values)
    return rate(sum(values), len(values))._asdict()


def scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Return precision and recall of the detector; what it gives as the reason does not count."""
    pairs = [(row["label"], reason_of(row)) for row in rows]
    return {
        "answers": len(rows),
        "degenerate": sum(label in REASONS for label, _ in pairs),
        "precision": share(label in REASONS for label, reason_given in pairs if reason_given),
        "recall": share(
            reason_given is not None for label, reason_given in pairs if label in REASONS
        ),
        "recall_by_label": {
            reason: share(
                reason_given is not None for label, reason_given in pairs if label == reason
            )
            for reason in REASONS
        },
        "precision_by_reason": {
            reason: share(
                label in REASONS for label, reason_given in pairs if reason_given == reason
            )
            for reason in REASONS
        },
        # Nonsense without repetition: nothing here looks for it.
        "nonsense_flagged": share(
            bool(reason_given) for label, reason_given in pairs if label == "nonsense"
        ),
    }


def sweep(language: str) -> dict[str, dict[str, Any]]:
    """Return the scores of other thresholds on the half that thresholds were chosen on."""
    rows = rows_of(language, "choose")
    swept: dict[str, dict[str, Any]] = {}
    for name, values in THRESHOLDS.items():
        kept = getattr(degeneration, name)
        for value in values:
            setattr(degeneration, name, value)
            swept[f"{name} {value}"] = scores(rows)
        setattr(degeneration, name, kept)
    return swept


def false_alarms() -> dict[str, Any]:
    """Return the share of flagged answers among the built-in ones, which people wrote and read."""
    alarms = {}
    for name in BUILTIN:
        rows = [x for x in instructions([Source(source=f"builtin:{name}")]) if x.answer]
        alarms[name] = share(detect(x.answer or "", x.text, guidance()) is not None for x in rows)
    return alarms


def shown(estimate: Row) -> str:
    """Return an estimate as "97.1 % (90.2 to 99.2, n 68)"."""
    if estimate["value"] is None:
        return "-"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f}, n {estimate['n']})"


def main() -> None:
    """Print the tables and write results.json."""
    thresholds = {name: getattr(degeneration, name) for name in THRESHOLDS}
    result: dict[str, Any] = {"thresholds": thresholds}
    for language in LANGUAGES:
        result[language] = {
            split: scores(rows_of(language, split)) for split in ("choose", "report")
        }
        result[language]["sweep"] = sweep(language)
        for split in ("choose", "report"):
            part = result[language][split]
            print(f"\n{language}, half to {split}: {part['answers']} answers", end=", ")
            print(f"{part['degenerate']} degenerate")
            print(f"  precision  {shown(part['precision'])}")
            print(f"  recall     {shown(part['recall'])}")
            for reason in REASONS:
                print(
                    f"  {reason:10} recall {shown(part['recall_by_label'][reason])}, "
                    f"precision {shown(part['precision_by_reason'][reason])}"
                )
            print(f"  nonsense   flagged {shown(part['nonsense_flagged'])}")
        print(f"\n{language}, thresholds on the half to choose: precision, recall")
        for name, part in result[language]["sweep"].items():
            print(f"  {name:14} {shown(part['precision'])}, {shown(part['recall'])}")
    result["false_alarms"] = false_alarms()
    print("\nfalse alarms on built-in answers")
    for name, alarms in result["false_alarms"].items():
        print(f"  {name:10} {shown(alarms)}")
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    (HERE / "results.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
