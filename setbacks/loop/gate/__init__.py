"""The gate: may a candidate replace a base model? Claims that must all hold, each with its proof.

A claim says that a metric is better, or no worse than by a margin. It *holds* if the 95 % interval
of the paired difference is wholly on the right side of the margin, it is *refuted* if the interval
is wholly on the wrong side, and is *open* otherwise. The gate passes if all claims hold; since all
must, no correction for their number is needed (an intersection-union test, Berger 1982,
Technometrics 24). It fails if any claim is refuted; there the intervals are Bonferroni's, since one
wrong refutation among several claims would be enough.

The difference has the judge's error removed: by people's labels of these answers if there are
enough, otherwise by the judge's calibration. If neither is known, it is as judged, and says so.
Non-inferiority by the end of an interval: ICH E9 (1998), section 3.3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple, cast

from setbacks.errors import InputError, nearest
from setbacks.judges import gives
from setbacks.judges.worth import folder, worth_of_verdicts
from setbacks.loop.results import parts
from setbacks.measure import statistics
from setbacks.measure.differences import difference, difference_by_people
from setbacks.measure.formatting import in_unit, is_score, unit_of_change
from setbacks.measure.judged import Judged, judged, prompt_of
from setbacks.measure.judges import accuracy, unknown_languages
from setbacks.measure.metrics import BALANCED, COMPARED, TASKS
from setbacks.measure.results import Worth
from setbacks.measure.statistics import Difference, Verdicts
from setbacks.recipe import JudgeSpec
from setbacks.records import Arm
from setbacks.runs.arms import choose_arm
from setbacks.runs.folder import Run
from setbacks.runs.results import Collected, collect
from setbacks.text import one_line, quoted

Outcome = Literal["holds", "refuted", "open"]
Decision = Literal["pass", "fail", "undecided"]
By = Literal["labels", "calibration", "judge"]
NORMAL = NormalDist()
EXIT: dict[Decision, int] = {"pass": 0, "fail": 3, "undecided": 4}


class Claim(NamedTuple):
    """What must hold of a metric.

    Args:
        metric: a key of `COMPARED`.
        better: whether the candidate must be better; otherwise it must not be worse.
        margin: by how much it must be better, or may be worse; a share, or points of a score.
    """

    metric: str
    better: bool
    margin: float

    @property
    def least(self) -> float:
        """The difference that the candidate must be shown to exceed."""
        return self.margin if self.better else -self.margin

    @property
    def text(self) -> str:
        """The claim in words."""
        unit = unit_of_change(self.metric)
        by = f" by more than {in_unit(self.margin, unit).lstrip('+')} {unit.name}"
        if self.better:
            return f"{self.metric} is better{by if self.margin else ''}"
        return f"{self.metric} is not worse{by if self.margin else ''}"


@dataclass(frozen=True)
class Evidence:
    """What the results say of a claim.

    Args:
        claim: the claim.
        outcome: whether it holds, is refuted, or stays open.
        difference: candidate minus base, with its 95 % interval.
        by: what removed the judge's error: people's labels, its calibration, or nothing.
    """

    claim: Claim
    outcome: Outcome
    difference: Difference
    by: By


@dataclass(frozen=True)
class Gate:
    """The decision, and why.

    Args:
        base: the base arm, as the user named it.
        candidate: the candidate.
        judge: whose verdicts count.
        decision: pass, fail or undecided.
        evidence: for each claim.
        incomplete: what is missing; an incomplete run never passes.
        next: what would decide it, if it is undecided.
    """

    base: str
    candidate: str
    judge: str
    decision: Decision
    evidence: Sequence[Evidence]
    incomplete: Sequence[str]
    next: Sequence[str]


def claim(text: str, better: bool) -> Claim:
    """Read a claim: "harmless_rate", or "compliance:2" with a margin in points.

    Raises:
        InputError: the metric is unknown, or the margin is not a number of at least 0.
    """
    metric, colon, margin = text.partition(":")
    if metric not in COMPARED:
        raise InputError(
            f'unknown metric "{metric}".{nearest(metric, COMPARED)} Available: '
            f"{', '.join(COMPARED)}"
        )
    try:
        points = float(margin) if colon else 0.0
    except ValueError:
        points = -1.0
    if not 0 <= points < math.inf:
        raise InputError(f"{text}: a margin is a number of points, such as {metric}:2")
    return Claim(metric, better, points if is_score(metric) else points / 100)


class Side(NamedTuple):
    """One arm, as one judge sees it.

    `spec` is the judge in the run's recipe; None for verdicts that somebody added.
    """

    name: str
    run: Run
    arm: Arm
    judge: str
    spec: JudgeSpec | None
    judged: Judged


def gate(base: str, candidate: str, claims: Sequence[Claim], judge: str | None = None) -> Gate:
    """Decide whether a candidate may replace a base model.

    Args:
        base: a run folder, with `:ARM` behind it; without, its untrained arm.
        candidate: the same; without `:ARM`, the arm that the run trained.
        claims: what must hold, at least one.
        judge: whose verdicts count; the candidate's first judge by default.

    Raises:
        InputError: a folder, an arm or a judge does not exist, or they share no prompt.
    """
    read = cache(_read)  # both may be arms of one run
    new = _side(candidate, judge, read, trained=True)
    old = _side(base, new.judge, read, trained=False)
    if (old.run.path.resolve(), old.arm) == (new.run.path.resolve(), new.arm):
        raise InputError(one_line(f"{base} and {candidate} are the same arm; name another one"))
    if not {prompt_of(r) for r in old.judged.rows} & {prompt_of(r) for r in new.judged.rows}:
        raise InputError(one_line(f"{base} and {candidate} answered none of the same prompts"))
    if _identity(old) != _identity(new):
        raise InputError(
            one_line(
                f"{base} and {candidate} were judged by other judges, or by versions or options of "
                f"{new.judge} that differ; judge one again: setbacks report RUN --from judge"
            )
        )
    measured = _worth(new)
    evidence = [_evidence(claim, old, new, measured, len(claims)) for claim in claims]
    incomplete = [line for claim in claims for line in _missing(claim, old, new)]
    outcomes = {one.outcome for one in evidence}
    decision: Decision = "undecided"
    if "refuted" in outcomes:
        decision = "fail"
    elif outcomes == {"holds"} and not incomplete:
        decision = "pass"
    steps = [_step(one, old, new) for one in evidence if one.outcome == "open"]
    return Gate(
        base,
        candidate,
        new.judge,
        decision,
        evidence,
        list(dict.fromkeys(incomplete)),
        steps if decision == "undecided" else [],
    )


def _read(path: Path) -> tuple[Run, Collected]:
    run = Run(path)
    return run, collect(run)


def _side(
    source: str,
    judge: str | None,
    read: Callable[[Path], tuple[Run, Collected]],
    *,
    trained: bool,
) -> Side:
    """Look up an arm and its verdicts."""
    path, name = parts(source)
    run, (responses, verdicts) = read(path)
    arm = choose_arm(path, run.arms(), name, trained=trained)
    judges = [spec.called for spec in run.recipe.judges]
    judge = judge or judges[0]
    if (arm.name, judge) not in verdicts:
        there = sorted({name for of, name in verdicts if of == arm.name})
        raise InputError(
            one_line(f"{source}: no verdicts by {judge}; it has {', '.join(there) or 'none'}")
        )
    spec = next((spec for spec in run.recipe.judges if spec.called == judge), None)
    metrics = gives(spec, run.recipe) if spec else None
    table = judged(
        {arm: responses[arm.name]},
        {arm: verdicts[arm.name, judge]},
        {arm: verdicts.get((arm.name, "human"), ())},
        COMPARED if metrics is None else metrics,
        {r.kind for r in responses[arm.name]},
        in_part=False,
    )
    return Side(source, run, arm, judge, spec, table[arm])


def _identity(side: Side) -> tuple[frozenset[int], str]:
    """What tells judges apart: their versions, and what a calibration of theirs depends on."""
    versions = frozenset(verdict.version for verdict in side.judged.verdicts.values())
    return versions, folder(side.spec, side.run.recipe).name if side.spec else ""


def _worth(side: Side) -> list[Worth]:
    """Return how far the judge agrees with people."""
    if side.spec is None:
        return []
    rows = worth_of_verdicts(side.spec, side.run.recipe, side.judged.verdicts.values())
    return cast(list[Worth], rows)


def _missing(claim: Claim, old: Side, new: Side) -> Iterator[str]:
    """Yield what an arm lacks for a claim: answers to the other's prompts, and scores."""
    for key in BALANCED if claim.metric == "balanced_safety" else (claim.metric,):
        for side, other in ((old, new), (new, old)):
            due, theirs = ({prompt_of(r) for r in one.judged.due[key]} for one in (side, other))
            if lost := len(theirs - {prompt_of(r) for r in side.judged.rows}):
                yield f"{side.name} has no answer to {lost} of {len(theirs)} prompts of {key}"
            if unscored := len(due - side.judged.outcomes[key].keys()):
                yield f"{side.name} has no score for {unscored} of {len(due)} answers of {key}"
            if not due:
                yield f"{side.name} has no prompts of {key}"


def _evidence(
    claim: Claim, old: Side, new: Side, measured: Sequence[Worth], claims: int
) -> Evidence:
    by: By = "labels"
    change = difference_by_people(new.judged, old.judged, claim.metric)
    if change.value is None:
        by = "calibration"
        change = _calibrated(claim.metric, new, old, measured)
    if change.value is None and not change.n:  # else its judge is no better than chance
        by = "judge"
        change = difference(new.judged.outcomes, old.judged.outcomes, claim.metric)
    return Evidence(claim, _outcome(claim, change, claims), change, by)


def _outcome(claim: Claim, change: Difference, claims: int) -> Outcome:
    if change.value is None or change.low is None or change.high is None:
        return "open"
    if change.low > claim.least:
        return "holds"
    # Bonferroni's interval: the same estimate, at a level for all claims together. An interval by
    # calibration is lopsided, but where the candidate is worse, the end that counts is the one near
    # zero, whose tail is shorter than the normal one. In simulations the level holds either way.
    wider = NORMAL.inv_cdf(1 - 0.025 / claims) / NORMAL.inv_cdf(0.975)
    return (
        "refuted" if change.value + wider * (change.high - change.value) < claim.least else "open"
    )


def _calibrated(metric: str, a: Side, b: Side, measured: Sequence[Worth]) -> Difference:
    """Return the difference a - b, corrected by the judge's calibration, if it is a known rate."""
    keys = BALANCED if metric == "balanced_safety" else (metric,)
    known = [v for key in keys if (v := _verdicts(key, a, b, measured)) is not None]
    if len(known) < len(keys):
        return Difference(None, None, None, 0, None)
    if metric == "balanced_safety":
        return statistics.calibrated_safety_difference(*known)
    return statistics.calibrated_difference(*known)


def _verdicts(metric: str, a: Side, b: Side, measured: Sequence[Worth]) -> Verdicts | None:
    """Return the verdicts on both arms' answers, if it is known how often they are right."""
    if metric not in TASKS:
        return None
    keys = [key for key in a.judged.outcomes[metric] if key in b.judged.outcomes[metric]]
    due = set(keys)
    spoken = {r.language for r in a.judged.rows if prompt_of(r) in due}
    known = None
    if not unknown_languages(measured, TASKS[metric], spoken):
        known = accuracy(measured, TASKS[metric], spoken)
    if known is None:
        return None

    def bad(side: Side) -> list[bool | None]:
        values = side.judged.outcomes[metric]
        return [None if key in side.judged.failed else not values[key] for key in keys]

    return Verdicts(bad(a), bad(b), known.sensitivity, known.specificity)


def _step(one: Evidence, old: Side, new: Side) -> str:
    """Say what would decide an open claim."""
    claim, change = one.claim, one.difference
    if change.value is None or change.high is None:
        chance = one.by == "calibration" and change.n
        why = "the judge is no better than chance here" if chance else "nothing is measured yet"
        return f"{claim.text}: {why}"
    distance = abs(change.value - claim.least)
    if claim.metric in TASKS and old.run.path == new.run.path and distance:
        return (
            f"{claim.text}: `setbacks review plan {quoted(new.run.path)} --arms "
            f"{new.arm.name},{old.arm.name} --metric {claim.metric} "
            f"--difference {100 * distance:.1f}` selects the answers to label"
        )
    if not distance:
        return f"{claim.text}: the estimate is at the margin; no number of prompts decides that"
    if one.by != "judge":
        return f"{claim.text}: more prompts, and more human labels of answers like these"
    prompts = math.ceil(change.n * ((change.high - change.value) / distance) ** 2)
    return f"{claim.text}: about {prompts:,} prompts like these, instead of {change.n:,}"
