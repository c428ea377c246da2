"""The result of a replay for people and for programs: `report.html`, `replay.json`, a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from setbacks.files import write_atomic
from setbacks.loop.replay.rates import Rate, Replayed
from setbacks.loop.replay.shard import Event
from setbacks.measure.formatting import MISSING, amount, listed, number
from setbacks.measure.results import to_json
from setbacks.measure.statistics import Difference, Estimate
from setbacks.report.page import Findings, Table, write

PER = 10_000
NAMES: dict[Event, str] = {
    "harmful": "harmful answers",
    "refused": "refusals",
    "degenerate": "degenerate answers",
}


def write_report(folder: Path, replayed: Replayed, logs: Sequence[str]) -> Path:
    """Write `replay.json`, `findings.json` and `report.html` of a replay; return the page's path.

    Args:
        folder: of the replay.
        replayed: its result.
        logs: names of the logs.
    """
    text = json.dumps(to_json(replayed), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "replay.json", text.encode("utf-8", "replace"))
    return write(folder, findings(replayed, logs))


def findings(replayed: Replayed, logs: Sequence[str]) -> Findings:
    """Return a replay in words and tables.

    Args:
        replayed: its result.
        logs: names of the logs.
    """
    tables = [
        Table(
            "Per 10,000 conversations",
            ("model", "", "as judged", "95 % interval", "truly at most", "without a verdict"),
            [_row(rate) for rate in replayed.rates],
            "truly at most: an upper bound (95 %) that holds what the judge overlooks; "
            f"{MISSING} if nobody measured that.",
        )
    ]
    if replayed.changes:
        tables.append(
            Table(
                f"Per 10,000 conversations, minus {replayed.changes[0].against}",
                ("model", "", "as judged", "95 % interval", "without the judge's error", ""),
                [
                    (
                        one.arm,
                        NAMES[one.event],
                        *_per(one.judged, signed=True),
                        *(_per(one.true, signed=True) if one.true else (MISSING, MISSING)),
                    )
                    for one in replayed.changes
                ],
            )
        )
    return Findings(
        title="Replay",
        question=f"What would the models have answered in {listed(logs)}?",
        answer=[_sentence(replayed, rate) for rate in replayed.rates if rate.event == "harmful"],
        tables=tables,
        method=_method(replayed),
        data={"replay": replayed},
    )


def _row(rate: Rate) -> tuple[str, ...]:
    bound = MISSING if rate.at_most is None else number(PER * rate.at_most, 1)
    return (rate.arm, NAMES[rate.event], *_per(rate.judged), bound, str(rate.unscored))


def _per(value: Estimate | Difference, signed: bool = False) -> tuple[str, str]:
    """Write a share and its interval per 10,000."""
    if value.value is None or value.low is None or value.high is None:
        return MISSING, MISSING
    ends = (number(PER * end, 1, signed) for end in (value.low, value.high))
    return number(PER * value.value, 1, signed), " to ".join(ends)


def _sentence(replayed: Replayed, rate: Rate) -> str:
    if rate.judged.value is None:
        return f"{rate.arm}: {replayed.judge} gave no verdict on harm."
    hits = round(rate.judged.value * rate.judged.n)
    seen = f"{rate.arm}: {replayed.judge} calls {amount(hits, 'answer')} of {rate.judged.n:,} "
    if rate.at_most is None:
        return seen + "harmful. Nobody measured what it overlooks, so there is no bound."
    bound = number(PER * rate.at_most, 1)
    return seen + f"harmful; with what it overlooks, at most {bound} of 10,000 are."


def _method(replayed: Replayed) -> list[str]:
    units = "Each conversation counts by itself."
    if replayed.clusters is not None:
        units = (
            f"The conversations belong to {amount(replayed.clusters, 'cluster')}, the largest with "
            f"{replayed.largest}. Those of one cluster are alike, so intervals are taken at the "
            "effective number of conversations (Korn and Graubard 1998); where fewer than ten "
            "clusters have an event, all conversations of a cluster count as one."
        )
    lines = [
        f"{amount(replayed.conversations, 'conversation')}; {amount(replayed.prompts, 'prompt')} "
        "answered by each model, since conversations of a shard that share a prompt share the "
        f"answer. {units}",
        "Rates have the exact interval of Clopper and Pearson (1934), differences the limits of "
        "Zou and Donner (2008). A judge that finds a share s of the harmful answers reports at "
        "least s times the true rate, whatever its false alarms, so the rate is at most the upper "
        "limit divided by the lower limit of s. Differences are divided by sensitivity + "
        "specificity − 1 (Rogan and Gladen 1978): this assumes that the judge errs equally often "
        "on both models, and as often as where it was measured.",
    ]
    if replayed.measured_on:
        lines.append(f"The errors of {replayed.judge}: {listed(replayed.measured_on)}.")
    if replayed.unmeasured:
        lines.append(f"They were not measured in {listed(replayed.unmeasured)}.")
    return lines
