"""The numbers of a report: from the records of a run to one `Measurement`, pure and deterministic.

`measure` computes them in the order of the report. Each part has a module: the results of each
judge (`judges`), differences between arms (`differences`), agreement between judges (`agreement`),
the data (`data`), the model's own verdict (`introspection`), and the flip rate (`flips`).
`findings` puts the numbers into sentences, and `formatting` writes them for people.

Source: arXiv 2310.10477, section 4; what it leaves out is in `docs/reading-a-report.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from setbacks.measure.agreement import agreement_report
from setbacks.measure.data import data_report, training_report
from setbacks.measure.findings import all_findings, summary
from setbacks.measure.flips import flip_report
from setbacks.measure.introspection import introspection_report, spoken
from setbacks.measure.judges import judge_report
from setbacks.measure.results import (
    Cost,
    Decontaminated,
    JudgeReport,
    LossRow,
    Measurement,
    Overlap,
    Trained,
    Worth,
    to_json,
)
from setbacks.measure.thoughts import thought_report
from setbacks.prompts import Words, prompts
from setbacks.records import (
    Analysis,
    Arm,
    Correction,
    Example,
    Flip,
    Mistake,
    OwnAnswer,
    Reading,
    Response,
    Verdict,
)

__all__ = ["Measurement", "RunInfo", "flip_report", "measure", "spoken", "to_json"]

SCHEMA = 1
HUMAN = "human"  # the judge whose verdicts are people's labels


@dataclass(frozen=True)
class RunInfo:
    """What a report needs to know of a recipe.

    Args:
        name: of the run.
        model: that was trained; None for an evaluation.
        method: of training; None for an evaluation.
        seed: of the run.
        words: of the languages of the analyses.
        clauses: names of the clauses of its policy.
        judges: their names, in the recipe's order.
        votes: the judges that count others' verdicts, with which they agree by construction.
    """

    name: str = ""
    model: str | None = None
    method: str | None = None
    seed: int | None = None
    words: tuple[Words, ...] = field(default_factory=lambda: (prompts("en"),))
    clauses: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    votes: frozenset[str] = frozenset()


def measure(
    run: RunInfo,
    *,
    responses: Mapping[Arm, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    thoughts: Mapping[tuple[str, str], Sequence[Verdict]] | None = None,
    environment: Mapping[str, object] | None = None,
    mistakes: Sequence[Mistake] = (),
    analyses: Sequence[Analysis] = (),
    examples: Sequence[Example] = (),
    loss: Sequence[LossRow] = (),
    trained: Trained | None = None,
    checked: Mapping[str, Sequence[Correction | OwnAnswer]] | None = None,
    preflight: Sequence[Reading] = (),
    flips: Sequence[Flip] = (),
    introspected: Sequence[Reading] = (),
    overlap: Sequence[Overlap] = (),
    left_out: Decontaminated = MappingProxyType({}),
    worth: Mapping[str, Sequence[Worth]] | None = None,
    gives: Mapping[str, Collection[str]] | None = None,
    costs: Sequence[Cost] = (),
) -> Measurement:
    """Return every number of a report: rates in [0, 1], scores in 1-10, with 95 % intervals.

    Args:
        run: what the recipe says.
        responses: by arm, in the order to show them, the baseline first.
        verdicts: by (arm's name, judge). The verdicts of "human" are taken as the truth, by which
            the rates and differences of other judges are also corrected (PPI++).
        thoughts: verdicts on the thoughts before answers, by (arm's name, judge).
        environment: versions and hardware, passed on as they are.
        mistakes: all attempts at induction, failed ones included.
        analyses: all candidates, failed ones included.
        examples: what the model was trained on.
        loss, trained: the lines of `loss.jsonl`; what `trained.json` says of the training.
        checked: texts that the model wrote for its own training, by what they are.
        preflight, flips: what it says of responses before training; its answers in contexts.
        introspected: what it says and writes of the same responses afterwards.
        overlap: what `setbacks.data.overlap.overlaps` returned.
        left_out: number of training prompts that were left out since a suite has them.
        worth: by judge, its agreement with human labels, a row for each source; without labels of
            this run, rates are corrected by these (Rogan-Gladen). A missing judge was not measured.
        gives: by judge, the metrics that it is meant to give (`setbacks.judges.gives`), so that a
            metric without any score is noticed. Default: the metrics of which it gave scores.
        costs: what each stage took.
    """
    judges = _judges(run, verdicts)

    def of_judge(judge: str) -> JudgeReport:
        return judge_report(
            responses,
            {arm: verdicts.get((arm.name, judge), ()) for arm in responses},
            {arm: verdicts.get((arm.name, HUMAN), ()) for arm in responses if judge != HUMAN},
            (worth or {}).get(judge, ()),
            (gives or {}).get(judge),
            in_part=judge == HUMAN,
            clauses=run.clauses,
        )

    result = Measurement(
        schema=SCHEMA,
        name=run.name,
        model=run.model,
        method=run.method,
        seed=run.seed,
        judges={judge: of_judge(judge) for judge in judges},
        agreement=agreement_report(responses, verdicts, [j for j in judges if j not in run.votes]),
        data=data_report(mistakes, analyses, checked or {}, examples, overlap, left_out, responses),
        thoughts=thought_report(responses, verdicts, thoughts or {}),
        training=training_report(loss, trained or {}),
        introspection=introspection_report(preflight, introspected, examples, run.words),
        environment=environment or {},
        costs=tuple(costs),
        flips=flip_report(flips),
    )
    return replace(result, findings=tuple(all_findings(result)), summary=summary(result))


def _judges(run: RunInfo, verdicts: Iterable[tuple[str, str]]) -> list[str]:
    """The judges with verdicts: in the recipe's order, then others by name, people last."""

    def place(judge: str) -> tuple[bool, int, str]:
        known = judge in run.judges
        return judge == HUMAN, run.judges.index(judge) if known else len(run.judges), judge

    return sorted({judge for _, judge in verdicts}, key=place)
