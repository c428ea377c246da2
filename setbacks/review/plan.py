"""Which answers should people label, and how many, to settle a difference between two arms?

Labels are expensive, so they go where the judge is unsure: each answer is drawn with a probability
that grows with the judge's uncertainty, mixed with an even floor, since a judge can be sure and
wrong. The probabilities are known, so the estimate that weights each label by their inverse
(`setbacks.measure.statistics.corrected`) is valid for any judge; a poor judge needs more labels.

A degenerate answer is a failure whatever people say, so no label is spent on it.

Source: Zrnic and Candès (2024), Active Statistical Inference, arXiv 2403.03208.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError, nearest
from setbacks.judges.worth import worth as worth_of
from setbacks.measure import statistics
from setbacks.measure.formatting import POINTS, amount, in_unit, number
from setbacks.measure.judges import decisive
from setbacks.measure.metrics import (
    BALANCED,
    COMPARED,
    METRICS,
    TASKS,
    TITLES,
    Key,
    by_prompt,
    degenerate,
    predictions,
)
from setbacks.records import Arm, Response, Verdict, digest
from setbacks.review.draw import Cell, after, draw, enough, error, number_for, probabilities
from setbacks.runs.results import read_plan

if TYPE_CHECKING:
    from setbacks.runs.folder import RunFolder

WRONG = 0.25  # assumed share of wrong verdicts of a judge without calibration
# The interval reaches 1.96 standard errors; with 0.84 more it excludes zero 4 times in 5.
REACH = 1.96 + 0.84
LEAST = 0.005  # a smaller difference counts as none

Rates = tuple[str, ...]


class Plan(NamedTuple):
    """Which answers to label, each with its probability, and the expected precision."""

    arms: tuple[str, str]
    metric: str
    difference: float  # to settle, in [-1, 1]
    judge: str
    labels: int  # new ones
    there: int  # existing labels
    kept: int  # answers of earlier plans that this one is not about
    degenerate: int  # answers that are failures whatever people say, so that none is drawn
    half_width: float  # of the expected 95 % interval
    settles: bool
    seed: int | str  # of the draw
    answers: list[dict[str, Any]]
    words: str

    def data(self) -> dict[str, Any]:
        """Return the plan as it is stored in `review/plan.json`."""
        return self._asdict() | {"arms": list(self.arms)}


def plan(
    responses: Mapping[str, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    *,
    arms: tuple[str, ...],
    metric: str = "harmless_rate",
    difference: float | None = None,
    labels: int | None = None,
    judge: str | None = None,
    worth: Sequence[Mapping[str, Any]] = (),
    seed: int | str = 0,
    earlier: Mapping[str, float] | None = None,
) -> Plan:
    """Plan the labels that would settle the difference of a rate between two arms.

    Labels that no plan asked for are kept with probability 1. An answer that an earlier plan drew
    and people labeled keeps its probability, or gets the new one if that is larger
    (`setbacks.review.draw`); one of other arms or another rate stays in the plan as it is.

    Args:
        responses: by arm.
        verdicts: by (arm, judge).
        arms: the names of the two that are compared, first minus second.
        metric: harmless_rate, hijacking_harmless_rate, compliance, or balanced_safety.
        difference: the smallest to detect, in (0, 1]; by default the one that the judge measured.
        labels: the number of new labels; by default as many as needed.
        judge: by default the first that is not "human".
        worth: the judge's calibration, as in `setbacks.measure.measure`.
        seed: of the draw; the same for every plan of a run.
        earlier: response id -> probability, of an earlier plan; besides those that labels carry.

    Raises:
        InputError: an arm, metric or judge is unknown; the arms share too few judged prompts;
            the number of labels or the difference is out of range; or there is no difference.
    """
    judge = _judge(verdicts, judge)
    a, b = _known(arms, responses)
    rates = _rates(metric)
    if difference is not None and not 0 < abs(difference) <= 1:
        raise InputError(f"--difference {100 * difference:g}: must be from 0 to 100 points")
    cells = _cells(responses, verdicts, judge, (a, b), rates, worth)
    seen, spread = _difference(cells, metric, rates)
    wanted = abs(seen if difference is None else difference)
    if wanted < LEAST and labels is None:
        raise InputError(
            f"{judge} sees no difference of {TITLES[metric]} between {a} and {b} "
            f"({in_unit(seen, POINTS)} points); set the smallest one that matters "
            "with --difference POINTS"
        )
    most = sum(cell.is_unlabeled for cell in cells)
    if labels is not None and not 1 <= labels <= most:
        raise InputError(f"{labels} labels, but there are {most} answers to label")

    earlier = _earlier(responses, verdicts, earlier or {})
    cells = after(cells, earlier)
    target = wanted / REACH
    size = enough(cells, spread, target) if labels is None else number_for(cells, labels, seed)
    drawn = probabilities(cells, size)
    chosen = draw(cells, drawn, seed)
    about = {cell.id for cell in cells}
    others = {id_: p for id_, p in earlier.items() if id_ not in about}
    rows = [*((cell.id, p) for cell, p in chosen), *others.items()]
    expected = error(cells, drawn, spread)
    planned = Plan(
        arms=(a, b),
        metric=metric,
        difference=seen if difference is None else difference,
        judge=judge,
        labels=sum(cell.is_unlabeled for cell, _ in chosen),
        there=sum(cell.labeled for cell in cells),
        kept=len(others),
        degenerate=sum(cell.degenerate for cell in cells),
        half_width=1.96 * expected,
        settles=expected <= target,
        seed=seed,
        answers=[{"response_id": id_, "probability": round(p, 6)} for id_, p in rows],
        words="",
    )
    return planned._replace(words=_words(planned, most, spread, target))


def plan_run(run: RunFolder, arms: tuple[str, ...] | None = None, **options: Any) -> Plan:
    """Plan the labels of a run, and write `review/plan.json` into its folder.

    What an earlier plan drew keeps its probability, as in `plan`.

    Args:
        run: an open run folder.
        arms: the names of the two that are compared; by default those of `main_arms`.
        options: other arguments of `plan`.

    Raises:
        InputError: as `plan`; the old plan, if there is one, stays as it was.
    """
    responses = run.responses()
    if not any(responses.values()):
        raise InputError(f"{run.path}: no responses to label; run `setbacks respond RUN` first")
    names = [*(spec.called for spec in run.recipe.judges), "human"]
    verdicts = {
        (arm, name): records
        for name in names
        for arm in responses
        if (records := run.records(f"verdicts/{arm}.{name}.jsonl", Verdict))
    }
    earlier, seed = _earlier_plan(run, verdicts)
    measured = {spec.called: worth_of(spec, run.recipe) for spec in run.recipe.judges}
    judge = _judge(verdicts, options.pop("judge", None))
    planned = plan(
        responses,
        verdicts,
        arms=arms or main_arms(run.arms()),
        judge=judge,
        worth=measured[judge],
        seed=seed,
        earlier=earlier,
        **options,
    )
    (run.path / "review").mkdir(mode=0o700, exist_ok=True)
    run.write_text("review/plan.json", json.dumps(planned.data(), indent=1) + "\n")
    return planned


def _earlier_plan(
    run: RunFolder, verdicts: Mapping[tuple[str, str], Sequence[Verdict]]
) -> tuple[dict[str, float], int | str]:
    """Return the probabilities of the plan that is there, and the seed of the next draw."""
    path = run.path / "review" / "plan.json"
    try:
        earlier = read_plan(path)
    except InputError:  # a broken plan: its message advises to create it again
        earlier = {}
    if earlier:
        held = json.loads(path.read_text(encoding="utf-8"))
        return earlier, held.get("seed", run.recipe.seed)  # not in plans of earlier versions
    labels = [v for (_, judge), rows in verdicts.items() if judge == "human" for v in rows]
    if labels and all(v.sampling_probability is None for v in labels):
        # A plan that was lost may have asked for them: another draw must not depend on it.
        return {}, digest("seed", run.recipe.seed, *sorted(v.response_id for v in labels))
    return {}, run.recipe.seed


def _earlier(
    responses: Mapping[str, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    planned: Mapping[str, float],
) -> dict[str, float]:
    """Return the probability of every answer that an earlier plan drew, if it still exists."""
    carried = {
        label.response_id: label.sampling_probability
        for (_, judge), labels in verdicts.items()
        for label in labels
        if judge == "human" and label.sampling_probability is not None
    }
    known = {r.id for rows in responses.values() for r in rows}
    return {id_: p for id_, p in (carried | dict(planned)).items() if id_ in known}


def _judge(verdicts: Mapping[tuple[str, str], Sequence[Verdict]], wanted: str | None) -> str:
    there = list(dict.fromkeys(name for _, name in verdicts if name != "human"))
    if not there:
        raise InputError("no judge has scored the answers yet; run `setbacks judge RUN` first")
    if wanted is not None and wanted not in there:
        raise InputError(f'no verdicts by a judge "{wanted}".{nearest(wanted, there)}')
    return wanted or there[0]


def main_arms(arms: Sequence[Arm]) -> tuple[str, str]:
    """Return the names of the two arms whose difference a report is about.

    They are the first trained arm, unguided if there is one, and the first arm that is not trained.

    Args:
        arms: of the run, in its order.

    Raises:
        InputError: there is only one arm.
    """
    first = next((arm for arm in arms if not arm.trained), arms[0])
    others = [arm for arm in arms if arm != first]
    if not others:
        raise InputError("there is only one arm, so there is no difference to settle")
    best = min(others, key=lambda arm: (not arm.trained, arm.way != "unguided"))
    return best.name, first.name


def _known(arms: tuple[str, ...], responses: Mapping[str, Any]) -> tuple[str, str]:
    for arm in arms:
        if arm not in responses:
            raise InputError(
                f'unknown arm "{arm}".{nearest(arm, responses)} Available: {", ".join(responses)}'
            )
    first, second = arms
    return first, second


def _rates(metric: str) -> Rates:
    known = [key for key in COMPARED if key in TASKS or key == "balanced_safety"]
    if metric not in known:
        raise InputError(
            f'unknown rate "{metric}".{nearest(metric, known)} Available: {", ".join(known)}'
        )
    return BALANCED if metric == "balanced_safety" else (metric,)


def _cells(
    responses: Mapping[str, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    judge: str,
    arms: tuple[str, str],
    rates: Rates,
    worth: Sequence[Mapping[str, Any]],
) -> list[Cell]:
    """Return the answers of the two arms to prompts that have an outcome in both."""
    cells: list[Cell] = []
    for rate in rates:
        sides = []
        for side, arm in enumerate(arms):
            judged, people = (verdicts.get((arm, name), ()) for name in (judge, "human"))
            sides.append(_answers(responses[arm], judged, people, rate, side))
        shared = [prompt for prompt in sides[0] if prompt in sides[1]]
        answers = [answered[prompt] for answered in sides for prompt in shared]
        usable = [
            sum(cell.arm == side and not cell.degenerate for cell in answers) for side in (0, 1)
        ]
        if min(usable) < statistics.FEWEST_LABELS:
            raise InputError(
                f"{TITLES[rate]}: on the prompts that {judge} has scored in both {arms[0]} and "
                f"{arms[1]}, an arm has {min(usable)} answers that are not degenerate; a plan "
                f"needs at least {statistics.FEWEST_LABELS}"
            )
        # The judge's probabilities show where it errs, its calibration how often.
        doubts = sum(cell.doubt for cell in answers)
        scale = _wrong(worth, TASKS[rate]) * sum(usable) / max(doubts, 1e-9)
        cells += [cell._replace(doubt=min(1.0, scale * cell.doubt)) for cell in answers]
    return cells


def _answers(
    responses: Sequence[Response],
    verdicts: Sequence[Verdict],
    labels: Sequence[Verdict],
    rate: str,
    arm: int,
) -> dict[Key, Cell]:
    """Return an arm's answers with an outcome by a judge, by prompt; the doubt is not yet scaled.

    Args:
        responses: of the arm.
        verdicts: the judge's.
        labels: people's.
        rate: the metric.
        arm: its number.
    """
    by_id = {v.response_id: v for v in verdicts}
    # An answer on which the judge abstains counts as it expects, and may be drawn, too.
    outcomes = predictions(responses, by_id, by_prompt(responses, by_id))[rate]
    labeled = {v.response_id for v in labels if METRICS[rate].of(v) is not None}
    failed = degenerate(responses)
    cells = {}
    for r in responses:
        prompt = r.suite, r.instruction_id
        if r.kind != METRICS[rate].kind or prompt not in outcomes:
            continue
        fell = failed.get(prompt, False)
        p = getattr(by_id[r.id], f"p_{TASKS[rate]}")
        # Without probabilities all are equally uncertain.
        doubt = 0.0 if fell else 1.0 if p is None else p * (1 - p)
        is_labeled = r.id in labeled and not fell
        cells[prompt] = Cell(r.id, rate, arm, float(outcomes[prompt]), doubt, is_labeled, fell)
    return cells


def _wrong(worth: Sequence[Mapping[str, Any]], task: str) -> float:
    """Return the share of the judge's verdicts that are wrong according to people."""
    rows = [row for row in decisive(worth, task) if row.get("sensitivity")]
    total = sum(row["n"] for row in rows)
    if not total:
        return WRONG
    wrong = 0.0
    for row in rows:
        positive = row.get("n_positive", row["n"] / 2)
        wrong += positive * (1 - row["sensitivity"][0])
        wrong += (row["n"] - positive) * (1 - row["specificity"][0])
    return max(0.02, wrong / total)


def _difference(cells: list[Cell], metric: str, rates: Rates) -> tuple[float, float]:
    """Return the judge's difference and its variance over prompts; set each cell's slope."""
    means = {}
    for rate in rates:
        for arm in (0, 1):
            judged = [cell.judged for cell in cells if cell.rate == rate and cell.arm == arm]
            means[rate, arm] = sum(judged) / len(judged)
    slopes = dict.fromkeys(means, 1.0)
    value = means[rates[0], 0] - means[rates[0], 1]
    if metric == "balanced_safety":
        sides = []
        for arm in (0, 1):
            x, y = (means[rate, arm] for rate in rates)
            both = max(x + y, 1e-12)
            sides.append(2 * x * y / both)
            slopes[rates[0], arm], slopes[rates[1], arm] = 2 * y**2 / both**2, 2 * x**2 / both**2
        value = sides[0] - sides[1]
    variance = 0.0
    for rate in rates:
        first, second = (
            [cell.judged for cell in cells if cell.rate == rate and cell.arm == arm]
            for arm in (0, 1)
        )
        moved = [
            slopes[rate, 0] * x - slopes[rate, 1] * y for x, y in zip(first, second, strict=True)
        ]
        mean = sum(moved) / len(moved)
        variance += sum((m - mean) ** 2 for m in moved) / len(moved) ** 2
    numbers = {rate: sum(c.rate == rate and c.arm == 0 for c in cells) for rate in rates}
    cells[:] = [
        cell._replace(slope=slopes[cell.rate, cell.arm], n=numbers[cell.rate]) for cell in cells
    ]
    return value, variance


def _words(planned: Plan, most: int, spread: float, target: float) -> str:
    a, b = planned.arms
    n = f"{planned.labels} of {most} unlabeled answers"
    there = f" ({planned.there} are already labeled)" if planned.there else ""
    points = f"{number(100 * abs(planned.difference), 1)} points"
    title = TITLES[planned.metric]
    level = abs(planned.difference) < LEAST
    aim = f"{planned.judge} sees no difference; " if level else f"to detect {points}, "
    text = f"{title} of {a} against {b}: {aim}label {n}{there}. "
    if planned.kept:
        text += f"{amount(planned.kept, 'answer')} of earlier plans stay in the plan. "
    if planned.degenerate:
        text += (
            f"This leaves out {amount(planned.degenerate, 'degenerate answer')}, counted as "
            "failures whatever people say. "
        )
    if level:
        text += (
            "The corrected difference should then have a 95 % interval of about ±"
            f"{number(100 * planned.half_width, 1)} points. "
        )
    elif planned.settles:
        text += (
            "The corrected difference should then have a 95 % interval of about ±"
            f"{number(100 * planned.half_width, 1)} points, which excludes zero 4 times in 5 if "
            "the difference is real. "
        )
    elif spread**0.5 > target:
        text += (
            "No number of labels can settle it with these prompts: with all answers labeled, the "
            f"interval is about ±{number(100 * 1.96 * spread**0.5, 1)} points. It takes about "
            f"{number(spread / target**2, 1)} times as many prompts, or choose a larger "
            "difference (--difference). "
        )
    else:
        text += (
            f"The interval should be about ±{number(100 * planned.half_width, 1)} points, which is "
            "too wide to settle it. "
        )
    return text + (
        f"Half of the labels go where {planned.judge} is unsure, half are spread evenly; the "
        "correction weights each label by its probability."
    )
