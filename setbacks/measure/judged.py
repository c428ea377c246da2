"""One arm's responses with one judge's verdicts, human labels, and missing verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from setbacks.measure import statistics
from setbacks.measure.metrics import (
    BALANCED,
    METRICS,
    Key,
    Outcomes,
    about,
    by_prompt,
    degenerate,
    predictions,
)
from setbacks.measure.results import Score
from setbacks.measure.statistics import Estimate, Sample
from setbacks.records import Arm, Response, Verdict


class Label(NamedTuple):
    """A person's label of one response, and the probability with which it was drawn."""

    value: bool | float
    probability: float | None


class Judged(NamedTuple):
    """One arm's responses with one judge's verdicts.

    Args:
        rows: the responses.
        verdicts: the judge's, by response id.
        outcomes: the values that count, by metric and prompt; degenerate answers are failures.
        as_judged: the same, but degenerate answers count as judged.
        predicted: `outcomes`, and the judge's expectation where it is unsure.
        failed: the prompts with a degenerate answer, which fails without a judge or a person.
        labels: people's labels, by metric and prompt.
        due: by metric, the responses that should have a score.
    """

    rows: Sequence[Response]
    verdicts: Mapping[str, Verdict]
    outcomes: Outcomes
    as_judged: Outcomes
    predicted: Outcomes
    failed: Collection[Key]
    labels: Mapping[str, Mapping[Key, Label]]
    due: Mapping[str, Sequence[Response]]

    def missing(self, key: str) -> list[Response]:
        """Return the responses that the judge has seen, and that still have no score."""
        scored = self.outcomes[key]
        return [r for r in self.due[key] if r.id in self.verdicts and prompt_of(r) not in scored]

    def sample(self, key: str, prompts: Iterable[Key]) -> Sample:
        """Return the judge's verdicts and people's labels on these prompts side by side."""
        prompts = list(prompts)
        labels = [self.labels[key].get(prompt) for prompt in prompts]
        return Sample(
            [float(self.predicted[key][prompt]) for prompt in prompts],
            [None if label is None else float(label.value) for label in labels],
            [None if label is None else label.probability for label in labels],
            [prompt in self.failed for prompt in prompts],
        )


def judged(
    arms: Mapping[Arm, Sequence[Response]],
    verdicts: Mapping[Arm, Sequence[Verdict]],
    human: Mapping[Arm, Sequence[Verdict]],
    gives: Collection[str],
    kinds: Collection[str],
    in_part: bool,
) -> dict[Arm, Judged]:
    """Return each arm as one judge sees it.

    Args:
        arms: the responses, by arm.
        verdicts: the judge's, by arm.
        human: people's labels, by arm.
        gives: the metrics that the judge gives.
        kinds: the kinds of prompts that it judges.
        in_part: whether the judge scores only a part, as people do, so that nothing else is due.
    """
    table = {}
    for arm, rows in arms.items():
        by_id = {v.response_id: v for v in verdicts.get(arm, ())}

        def is_due(key: str, r: Response, by_id: Mapping[str, Verdict] = by_id) -> bool:
            if key not in gives or r.kind not in kinds or not about(key, r):
                return False
            labeled = r.id in by_id and METRICS[key].of(by_id[r.id]) is not None
            return labeled or not in_part

        outcomes = by_prompt(rows, by_id)
        table[arm] = Judged(
            rows,
            by_id,
            outcomes,
            by_prompt(rows, by_id, as_judged=True),
            predictions(rows, by_id, outcomes),
            {prompt for prompt, fell in degenerate(rows).items() if fell},
            _labels(rows, {v.response_id: v for v in human.get(arm, ())}),
            {key: [r for r in rows if is_due(key, r)] for key in METRICS},
        )
    return table


def prompt_of(r: Response) -> Key:
    """Return what identifies a response's prompt: two arms are paired by it."""
    return r.suite, r.instruction_id


def estimate(values: Iterable[bool | float], is_rate: bool) -> Estimate:
    """Return the rate or the mean of a metric's values."""
    values = list(values)
    if is_rate:
        return statistics.rate(sum(map(bool, values)), len(values))
    return statistics.mean(values)


def score(estimate: Estimate, expected: int) -> Score:
    """Return an estimate with the number of answers that should have a score."""
    return Score(*estimate, expected)


def balanced(outcomes: Outcomes) -> Estimate:
    """Return the balanced safety of one arm."""
    return statistics.balanced(*([*map(bool, outcomes[key].values())] for key in BALANCED))


def _labels(rows: Sequence[Response], human: Mapping[str, Verdict]) -> dict[str, dict[Key, Label]]:
    drawn = {prompt_of(r): human[r.id].sampling_probability for r in rows if r.id in human}
    return {
        key: {prompt: Label(value, drawn[prompt]) for prompt, value in values.items()}
        for key, values in by_prompt(rows, human).items()
    }
