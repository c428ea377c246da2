"""How far judges agree with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from setbacks.measure import statistics
from setbacks.measure.metrics import counted
from setbacks.measure.results import Agreement, Coefficient, PairAgreement, Task
from setbacks.records import Arm, Kind, Response, Verdict

# The tasks on which judges can agree, and the kinds of prompts of each.
_TASKS: dict[Task, tuple[Kind, ...]] = {"harmful": ("harmful", "hijacking"), "refused": ("safe",)}


def agreement_report(
    arms: Mapping[Arm, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    judges: Sequence[str],
) -> tuple[Agreement, ...]:
    """Return how far judges agree, for each task with verdicts of several judges.

    Args:
        arms: the responses, by arm.
        verdicts: by (arm's name, judge).
        judges: those to compare.
    """
    by_id = {
        judge: {v.response_id: v for arm in arms for v in verdicts.get((arm.name, judge), ())}
        for judge in judges
    }
    rows = []
    for task, kinds in _TASKS.items():
        answers = [r for answered in arms.values() for r in answered if r.kind in kinds]
        opinions: dict[str, list[bool | None]] = {
            judge: [
                getattr(counted(r, of_judge[r.id]), task) if r.id in of_judge else None
                for r in answers
            ]
            for judge, of_judge in by_id.items()
        }
        speak = [judge for judge in judges if any(v is not None for v in opinions[judge])]
        if len(speak) < 2:
            continue
        questions = [r.instruction_id for r in answers]
        together = list(zip(*opinions.values(), strict=True))
        alpha = statistics.alpha(questions, together)
        rows.append(
            Agreement(
                task=task,
                judges=tuple(speak),
                n=sum(sum(v is not None for v in row) > 1 for row in together),
                alpha=Coefficient(*alpha) if alpha else None,
                pairs=tuple(
                    _pair((a, b), questions, opinions[a], opinions[b])
                    for a, b in combinations(speak, 2)
                ),
            )
        )
    return tuple(rows)


def _pair(
    judges: tuple[str, str],
    questions: Sequence[str],
    one: Sequence[bool | None],
    other: Sequence[bool | None],
) -> PairAgreement:
    both = [
        (question, a, b)
        for question, a, b in zip(questions, one, other, strict=True)
        if a is not None and b is not None
    ]
    same = statistics.rate(sum(a == b for _, a, b in both), len(both))
    kappa = None
    # Where one judge always says the same, chance explains all agreement.
    if all(len({row[side] for row in both}) == 2 for side in (1, 2)):
        names, a, b = zip(*both, strict=True)
        measures = statistics.agreement(names, a, [float(value) for value in b], b)
        kappa = Coefficient(*measures["kappa"])
    return PairAgreement(judges, len(both), same, kappa)
