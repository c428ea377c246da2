"""The page of a harvest: what failed, by cluster, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.measure.formatting import amount, number, percent
from setbacks.messages import Prompt, in_brief
from setbacks.report.page import Findings, Hidden, Table, write

PAGE = "harvest.html"
EXAMPLES = 10  # of a cluster
LEFT_OUT = {
    "repeats": "exact repeats of a logged answer",
    "near": "prompts that repeat an earlier setback",
    "seen": "prompts that an earlier round trained on: failures that came back",
    "suites": "prompts of a test suite",
    "unknown": "refusals of requests that are not known to be safe (see --safe)",
}


class Shown(NamedTuple):
    """A setback as the page counts it."""

    cluster: str
    kind: str
    prompt: Prompt
    times: int
    p: float | None


def write_page(folder: Path, about: Mapping[str, Any], setbacks: Sequence[Shown]) -> Path:
    """Write `harvest.html` and `findings.json` into a folder; return the page's path.

    Args:
        folder: of the harvest.
        about: what its `harvest.json` holds.
        setbacks: all of them.
    """
    counts, groups = about["counts"], _groups(setbacks)
    rows = [(why, str(counts[key])) for key, why in LEFT_OUT.items() if counts.get(key)]
    findings = Findings(
        title="Harvest",
        question=f"Which answers in {', '.join(about['logs'])} failed, and how?",
        answer=_answer(about),
        tables=[
            Table(
                "Clusters of setbacks",
                ("cluster", "setbacks", "harmful", "refusals", "logged", "mean p"),
                _clusters(groups),
                "Named by their most typical words. logged: number of logged answers, exact "
                "repeats included. mean p: the judge's mean probability.",
            ),
            *([Table("Left out", ("what", "answers"), rows)] if rows else []),
        ],
        hidden=[_examples(name, those) for name, those in groups.items()],
        method=_method(about),
        data={key: about[key] for key in ("counts", "setbacks", "waiting")},
    )
    return write(folder, findings, PAGE)


def _answer(about: Mapping[str, Any]) -> list[str]:
    counts, kinds = about["counts"], about["setbacks"]
    judged = counts["answers"] - counts["repeats"]
    found = [
        f"{amount(kinds.get('harmful', 0), 'harmful answer')} and "
        f"{amount(kinds.get('refusal', 0), 'refusal')} of safe requests, of "
        f"{amount(counts['answers'], 'logged answer')}. The judge calls "
        f"{percent(counts['harmful'] / judged)} of the {judged} different answers harmful, and "
        f"{percent(counts['refused'] / judged)} refusals."
    ]
    if about["waiting"]:
        found.append(
            f"{amount(about['waiting'], 'answer')} on which the judge is unsure wait for a label."
        )
    return found


def _clusters(groups: Mapping[str, Sequence[Shown]]) -> list[tuple[str, ...]]:
    """Return a row for each cluster."""
    rows: list[tuple[str, ...]] = []
    for name, those in groups.items():
        known = [one.p for one in those if one.p is not None]
        rows.append(
            (
                name,
                str(len(those)),
                str(sum(one.kind == "harmful" for one in those)),
                str(sum(one.kind == "refusal" for one in those)),
                str(sum(one.times for one in those)),
                number(sum(known) / len(known) if known else None),
            )
        )
    return rows


def _groups(setbacks: Sequence[Shown]) -> dict[str, list[Shown]]:
    """Return the setbacks by cluster, those with the most logged answers first."""
    by_name: dict[str, list[Shown]] = {}
    for one in sorted(setbacks, key=lambda one: -one.times):
        by_name.setdefault(one.cluster, []).append(one)
    return dict(sorted(by_name.items(), key=lambda pair: -sum(one.times for one in pair[1])))


def _examples(name: str, those: Sequence[Shown]) -> Hidden:
    lines = [f"{one.kind}: {in_brief(one.prompt, 200)}" for one in those[:EXAMPLES]]
    return Hidden(f"{name} ({len(lines)} of {len(those)})", lines)


def _method(about: Mapping[str, Any]) -> list[str]:
    redacted = (
        "Personal data was replaced by marks before anything was judged or stored"
        + ("." if about["redacted"] == "names" else ", but names of people were not looked for.")
        if about["redacted"]
        else "Personal data was not redacted."
    )
    return [
        f"{about['judge']} judged every answer. Its rates are not corrected for its errors.",
        (
            f"A probability within {about['unsure']} of 0.5 decides nothing: such an answer waits "
            "for a label. "
            if about["unsure"]
            else ""
        )
        + "A person's label replaces the judge's verdict.",
        "A refusal counts only where the request is known to be safe.",
        redacted,
        f"The texts may be kept until {about['expires']}.",
    ]
