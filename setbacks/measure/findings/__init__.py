"""Findings: what the numbers of a report mean, how certain that is, and what to try.

An alarm is a function from the results to any number of findings. `ALARMS` lists the alarms in the
order of the report; to add one, write a function and add it to the list. `judges.ALARMS` lists the
alarms for one judge at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from setbacks.measure.findings import answers, judges, training
from setbacks.measure.findings.answers import overlap_finding
from setbacks.measure.findings.summary import summary
from setbacks.measure.findings.training import flip_finding, near_chance
from setbacks.measure.results import Finding, Measurement

__all__ = ["ALARMS", "all_findings", "flip_finding", "near_chance", "overlap_finding", "summary"]


def each_judge(results: Measurement) -> Iterator[Finding]:
    """Yield what each judge's numbers show; where there are several, the judge comes first."""
    several = len(results.judges) > 1
    for judge, report in results.judges.items():
        for alarm in judges.ALARMS:
            for level, text in alarm(judge, report):
                yield Finding(level, f"[{judge}] {text}" if several else text)


ALARMS: tuple[Callable[[Measurement], Iterator[Finding]], ...] = (
    answers.not_answered,
    answers.reasoning,
    answers.degenerate,
    answers.more_degenerate,
    answers.mislabeled_prompts,
    answers.no_balanced_safety,
    answers.kind_without_scores,
    each_judge,
    judges.opposite_verdicts,
    judges.low_agreement,
    training.few_mistakes,
    training.few_refusals,
    training.few_analyses,
    answers.cut_off,
    training.boilerplate,
    training.long_examples,
    training.loss_did_not_fall,
    answers.overlap,
    training.flip_rate,
    answers.left_out,
    training.verdict_near_chance,
    training.verdict_moved,
    training.analyses_repeat,
    training.one_verdict,
    training.refusals_not_seen,
    training.short_analyses,
)


def all_findings(results: Measurement) -> Iterator[Finding]:
    """Yield what a reader should know, each finding once."""
    yield from dict.fromkeys(finding for alarm in ALARMS for finding in alarm(results))
