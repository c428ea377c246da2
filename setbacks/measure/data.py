"""The data of a run: mistakes, analyses, examples and answers, and the course of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from setbacks.measure import statistics
from setbacks.measure.degeneration import REASONS
from setbacks.measure.differences import corrected, pairs
from setbacks.measure.material import Analyses, AnalysesOf, CheckedTexts, Examples, Induction
from setbacks.measure.metrics import KINDS, degenerate, fell_apart
from setbacks.measure.results import (
    Answered,
    Data,
    Decontaminated,
    Degenerate,
    LossRow,
    Mislabeled,
    Overlap,
    PairChange,
    Trained,
    Training,
)
from setbacks.measure.substance import SUBSTANCES, answer, substance
from setbacks.records import (
    Analysis,
    Arm,
    Checked,
    Correction,
    Example,
    Kind,
    Mistake,
    Outcome,
    OwnAnswer,
    Response,
)

# What can come of an attempt at a harmful response, and of one at a refusal.
OF_HARMFUL: tuple[Outcome, ...] = (
    "mistake",
    "refusal",
    "empty",
    "duplicate",
    "harmless",
    "unscored",
)
OF_REFUSALS: tuple[Outcome, ...] = ("mistake", "compliance", "empty", "duplicate")


def data_report(
    mistakes: Sequence[Mistake],
    analyses: Sequence[Analysis],
    checked: Mapping[str, Sequence[Correction | OwnAnswer]],
    examples: Iterable[Example],
    overlap: Iterable[Overlap],
    left_out: Decontaminated,
    arms: Mapping[Arm, Sequence[Response]],
) -> Data:
    """Return the data of a run, and what was dropped."""
    refusals = [m for m in mistakes if m.kind == "refusal"]
    return Data(
        induction=_induction([m for m in mistakes if m.kind == "harmful"], OF_HARMFUL),
        refusals=_induction(refusals, OF_REFUSALS) if refusals else None,
        analysis=_analysis(analyses),
        checked={what: _checked(rows) for what, rows in checked.items() if rows},
        overlap=tuple(overlap),
        left_out=left_out,
        examples=_examples(examples),
        responses={arm: _answered(rows) for arm, rows in arms.items()},
        degenerate=_changes(arms),
        mislabelled=tuple(_mislabeled(next(iter(arms.values()), ()))),
    )


def training_report(loss: Iterable[LossRow], trained: Trained) -> Training | None:
    """Return how training went; None where no loss was recorded.

    Args:
        loss: the lines of `loss.jsonl`.
        trained: the data of `trained.json`.
    """
    rows = [row for row in loss if row.get("loss") is not None]
    if not rows:
        return None
    tenth = max(1, len(rows) // 10)  # single steps are noisy
    kinds = _by_kind(rows)
    return Training(
        loss=tuple(rows),
        steps=rows[-1].get("step", len(rows)),
        first=sum(row["loss"] for row in rows[:tenth]) / tenth,
        last=sum(row["loss"] for row in rows[-tenth:]) / tenth,
        first_by_kind={k: statistics.mean(v[: max(1, len(v) // 10)]) for k, v in kinds.items()},
        last_by_kind={k: statistics.mean(v[-max(1, len(v) // 4) :]) for k, v in kinds.items()},
        examples=trained.get("examples"),
        cut=trained.get("cut"),
        left_out=trained.get("left_out"),
    )


def _induction(mistakes: Sequence[Mistake], possible: Sequence[Outcome]) -> Induction:
    outcomes = Counter(m.outcome for m in mistakes)
    instructions = {m.instruction_id for m in mistakes}
    gave = {m.instruction_id for m in mistakes if m.outcome == "mistake"}
    return Induction(
        instructions=len(instructions),
        attempts=len(mistakes),
        outcomes={key: outcomes[key] for key in possible},
        instructions_with_mistake=statistics.rate(len(gave), len(instructions)),
        instructions_without_mistake=len(instructions - gave),
    )


def _analysis(analyses: Sequence[Analysis]) -> Analyses:
    def part(rows: Sequence[Analysis]) -> AnalysesOf:
        passed = [a for a in rows if a.passed]
        return AnalysesOf(
            responses=len({a.response_id for a in rows}),
            candidates=len(rows),
            passed=len(passed),
            responses_with_analysis=len({a.response_id for a in passed}),
        )

    refusals = [a for a in analyses if a.label == "refusal"]
    checks = sorted({name for a in analyses for name in a.checks})
    return Analyses(
        candidates=len(analyses),
        passed=statistics.rate(sum(a.passed for a in analyses), len(analyses)),
        failures={name: sum(not a.checks.get(name, True) for a in analyses) for name in checks},
        mistakes=part([a for a in analyses if a.harmful]),
        contrast=part([a for a in analyses if a.label == "harmless"]),
        refusals=part(refusals) if refusals else None,
    )


def _checked(rows: Sequence[Correction | OwnAnswer]) -> CheckedTexts:
    outcomes = Counter(row.outcome for row in rows)
    dropped = {key: outcomes[key] for key in get_args(Checked) if key != "kept" and outcomes[key]}
    corrections = [row for row in rows if isinstance(row, Correction)]
    corrected = {row.analysis_id for row in corrections if row.outcome == "kept"}
    return CheckedTexts(
        n=len(rows),
        kept=outcomes["kept"],
        dropped=dropped,
        mistakes=len({row.analysis_id for row in corrections}) if corrections else None,
        corrected=len(corrected) if corrections else None,
    )


def _examples(examples: Iterable[Example]) -> dict[str, Examples]:
    by_kind: dict[str, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example)
    return {
        kind: Examples(
            n=len(rows),
            mean_characters=sum(len(row.completion) for row in rows) / len(rows),
            replayed=sum(row.replayed_from is not None for row in rows) or None,
        )
        for kind, rows in sorted(by_kind.items())
    }


def _answered(rows: Sequence[Response]) -> Answered:
    # Answers from a file have neither.
    ends = [r.finish == "length" for r in rows if r.finish is not None]
    lengths = [r.tokens for r in rows if r.tokens is not None]
    thoughts = [r.thought_tokens for r in rows if r.thought_tokens is not None]
    counts = Counter(substance(r.text, r.finish, r.thought) for r in rows)
    texts = [r for r in rows if substance(r.text, r.finish) == "text"]
    fell = [
        (r.kind, why.reason)
        for r in texts
        if (why := fell_apart(r.text, r.instruction, r.finish, r.guidance))
    ]
    reasons = Counter(reason for _, reason in fell)
    return Answered(
        n=len(rows),
        by_kind={kind: sum(r.kind == kind for r in rows) for kind in KINDS},
        substance={name: counts[name] for name in SUBSTANCES},
        degenerate=Degenerate(
            all=statistics.rate(len(fell), len(texts)),
            by_kind={
                kind: statistics.rate(
                    sum(of == kind for of, _ in fell),
                    sum(r.kind == kind for r in texts),
                )
                for kind in KINDS
            },
            reasons={reason: reasons[reason] for reason in REASONS},
        ),
        reasoned=sum(_reasoned(r) for r in rows),
        thoughts_cut=sum(bool(r.thought_cut) for r in rows),
        mean_thought_tokens=sum(thoughts) / len(thoughts) if thoughts else None,
        cut_off=statistics.rate(sum(ends), len(ends)),
        mean_tokens=sum(lengths) / len(lengths) if lengths else None,
    )


def _reasoned(r: Response) -> bool:
    """Whether there is an answer, and a thought before it."""
    text = answer(r.text)
    return bool(text) and (r.thought is not None or text != r.text)


def _changes(arms: Mapping[Arm, Sequence[Response]]) -> tuple[PairChange, ...]:
    """How the shares of degenerate answers differ, on the prompts that both arms answered."""
    fell = {arm: degenerate(rows) for arm, rows in arms.items()}
    compared = pairs(arms)
    differences = []
    for arm, against in compared:
        shared = [prompt for prompt in fell[arm] if prompt in fell[against]]
        sides = ([fell[name][prompt] for prompt in shared] for name in (arm, against))
        differences.append(statistics.paired_difference(*sides))
    return tuple(
        PairChange.of(arm, against, change)
        for (arm, against), change in zip(compared, corrected(differences), strict=True)
    )


def _mislabeled(rows: Sequence[Response]) -> Iterable[Mislabeled]:
    """The suites with prompts that their own data call the opposite of the suite's kind."""
    suites: dict[tuple[str, Kind], list[bool]] = {}
    for r in rows:
        opposite = r.kind in ("safe", "helpful")
        suites.setdefault((r.suite, r.kind), []).append(r.prompt_harmful is opposite)
    for (suite, kind), wrong in suites.items():
        if any(wrong):
            yield Mislabeled(suite, kind, sum(wrong), len(wrong))


def _by_kind(rows: Sequence[LossRow]) -> dict[str, list[float]]:
    """The losses of each kind of example, one for each step that had some of that kind.

    Batches hold examples of similar length, so the first steps of all may lack a kind.
    """
    losses: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("loss_") and isinstance(value, int | float):
                losses.setdefault(key.removeprefix("loss_"), []).append(value)
    return dict(sorted(losses.items()))
