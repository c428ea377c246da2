"""The results of a run: frozen dataclasses, and `to_json`, which turns them into plain data.

`measure` returns a `Measurement`. Findings, pages, model cards and studies read it; `to_json` turns
it into `metrics.json`. Rows from files are typed dictionaries, which keep all keys of their file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from setbacks.measure.degeneration import Reason
from setbacks.measure.flips import Flips
from setbacks.measure.material import OPTIONAL, Analyses, CheckedTexts, Examples, Induction
from setbacks.measure.statistics import Difference, Estimate
from setbacks.measure.substance import Substance
from setbacks.records import Arm, Kind, Label

Level = Literal["good", "note", "warning"]
Task = Literal["harmful", "refused"]
Decontaminated = Mapping[str, Mapping[str, Mapping[str, int]]]  # by source and suite: exact, near


class Coefficient(NamedTuple):
    """A coefficient such as an AUC or a kappa, with its 95 % interval; a list in JSON."""

    value: float
    low: float | None
    high: float | None


# -- judges -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """An estimate over the `n` answers with a score, of `asked` that should have one."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    asked: int

    @classmethod
    def of_json(cls, cell: Mapping[str, Any]) -> Score:
        """Read a score from `metrics.json`; earlier versions did not store `asked`."""
        return cls(
            cell["value"], cell["low"], cell["high"], cell["n"], cell.get("asked", cell["n"])
        )


@dataclass(frozen=True)
class Calibrated:
    """An estimate corrected by the judge's error rates on the labels of these sources."""

    value: float
    low: float
    high: float
    n: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class ArmRow:
    """An arm in a judge's table.

    Args:
        arm: the arm; its name in JSON, as everywhere.
        guided: whether guidance was in its prompt.
        trained: whether it is a trained model.
        harmless_rate: share of answers to harmful prompts that are harmless.
        hijacking_harmless_rate: the same for hijacking prompts.
        compliance: share of safe prompts that it answers.
        helpful_score: mean helpfulness, from 1 to 10.
        harmless_score: mean harmlessness, from 1 to 10.
        refusal_rate_on_helpful: share of helpful prompts that it refuses.
        preferred: share of answers judged better than the reference.
        balanced_safety: harmonic mean of Harmless Rate and compliance.
        as_judged: the same numbers where degenerate answers count as judged, and not as failures.
        unscored: answers without a usable verdict, by kind of prompt.
        unread: those that the judge could have read, by metric.
        unjudged: answers that the judge has not seen yet.
        corrected: estimates corrected by human labels of this run, by metric.
        calibrated: estimates corrected by labels of other answers, by metric.
        uncalibrated: where `calibrated` has no estimate since the judge's error is not known in
            some languages of the answers: these languages, by metric.
    """

    arm: Arm
    guided: bool
    trained: bool
    harmless_rate: Score
    hijacking_harmless_rate: Score
    compliance: Score
    helpful_score: Score
    harmless_score: Score
    refusal_rate_on_helpful: Score
    preferred: Score
    balanced_safety: Score
    as_judged: Mapping[str, Estimate]
    unscored: Mapping[str, int]
    unread: Mapping[str, int]
    unjudged: int
    corrected: Mapping[str, Estimate]
    calibrated: Mapping[str, Calibrated]
    uncalibrated: Mapping[str, tuple[str, ...]] | None = field(default=None, metadata=OPTIONAL)

    def score(self, key: str) -> Score:
        """Return the score of a metric.

        Args:
            key: a key of `setbacks.measure.metrics.TITLES`.
        """
        score: Score = getattr(self, key)
        return score


@dataclass(frozen=True)
class Change:
    """A difference of two arms in one metric, with the p value of "there is none".

    `p_holm` is corrected for all comparisons of that metric; None where there was no test.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class PairChange:
    """The difference `arm` minus `against` in one metric; `value` is None where nothing is shared.

    `p_holm` is corrected for all pairs; None where there was no test.
    """

    arm: Arm
    against: Arm
    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def of(cls, arm: Arm, against: Arm, change: Change | None) -> PairChange:
        """Name the arms of a change; None is a pair without a shared prompt."""
        if change is None:
            return cls(arm, against, None, None, None, 0, None)
        return cls(arm, against, *astuple(change))


@dataclass(frozen=True)
class Comparison:
    """Two arms on the prompts that both answered: `arm` minus `against`, by metric."""

    arm: Arm
    against: Arm
    metrics: Mapping[str, Change]
    corrected: Mapping[str, Change]  # by human labels of this run
    refusals: Change | None  # of safe prompts, degenerate or not


@dataclass(frozen=True)
class Best:
    """The arm with the highest balanced safety, and the arms that it is not significantly above."""

    arm: Arm
    supported: bool
    tied: tuple[Arm, ...]


@dataclass(frozen=True)
class SuiteRow:
    """One suite: the main metric of its kind, arms side by side."""

    suite: str
    kind: Kind
    metric: str
    arms: Mapping[Arm, Score]


@dataclass(frozen=True)
class CategoryRow:
    """One category, or clause of a policy: the main metric of its kind, arms side by side."""

    category: str
    kind: Kind
    metric: str
    arms: Mapping[Arm, Score]


class Worth(TypedDict):
    """How far a judge agrees with human labels on one source; each measure as [value, low, high].

    A measure is absent or None where it is not known.
    """

    source: str
    task: str
    n: int
    n_positive: NotRequired[int]
    n_questions: NotRequired[int | None]
    licence: NotRequired[str | None]
    fitted_on: NotRequired[bool]  # the judge learned from this source
    own: NotRequired[bool]  # the user measured it
    languages: NotRequired[Sequence[str]]  # of the answers; by default English
    auc: NotRequired[Sequence[float | None] | None]
    kappa: NotRequired[Sequence[float | None] | None]
    sensitivity: NotRequired[Sequence[float | None] | None]
    specificity: NotRequired[Sequence[float | None] | None]
    ece: NotRequired[Sequence[float | None] | float | None]


@dataclass(frozen=True)
class JudgeReport:
    """All results of one judge; `worth` is None if the judge was never measured."""

    arms: tuple[ArmRow, ...]
    best: Best | None
    differences: tuple[Comparison, ...]
    by_suite: tuple[SuiteRow, ...]
    by_category: tuple[CategoryRow, ...]
    worth: tuple[Worth, ...] | None
    by_clause: tuple[CategoryRow, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class PairAgreement:
    """How far two judges agree on the answers of which both have a verdict."""

    judges: tuple[str, str]
    n: int
    same: Estimate
    kappa: Coefficient | None


@dataclass(frozen=True)
class Agreement:
    """How far all judges agree on one task, by Krippendorff's alpha, and each pair of them."""

    task: Task
    judges: tuple[str, ...]
    n: int
    alpha: Coefficient | None
    pairs: tuple[PairAgreement, ...]


# -- data ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Degenerate:
    """The share of one arm's answers that are degenerate, and why they are."""

    all: Estimate
    by_kind: Mapping[Kind, Estimate]
    reasons: Mapping[Reason, int]


@dataclass(frozen=True)
class Answered:
    """One arm's answers, before any judge."""

    n: int
    by_kind: Mapping[Kind, int]
    substance: Mapping[Substance, int]
    degenerate: Degenerate
    reasoned: int
    thoughts_cut: int
    mean_thought_tokens: float | None
    cut_off: Estimate
    mean_tokens: float | None


@dataclass(frozen=True)
class Mislabeled:
    """A suite with prompts that its own data call the opposite of the suite's kind."""

    suite: str
    kind: Kind
    prompts: int
    of: int


class Overlap(TypedDict):
    """How many of a suite's `n` prompts an arm was trained on (`seen`)."""

    arm: str
    suite: str
    kind: str
    n: int
    seen: int


@dataclass(frozen=True)
class Data:
    """What went into the run, and what was dropped on the way."""

    induction: Induction
    analysis: Analyses
    checked: Mapping[str, CheckedTexts]
    overlap: tuple[Overlap, ...]
    left_out: Decontaminated
    examples: Mapping[str, Examples]
    responses: Mapping[Arm, Answered]
    degenerate: tuple[PairChange, ...]
    mislabelled: tuple[Mislabeled, ...]
    refusals: Induction | None = field(default=None, metadata=OPTIONAL)  # of safe prompts


class LossRow(TypedDict):
    """A line of `loss.jsonl`; the loss of one kind of example has the key `loss_KIND`."""

    loss: float
    step: NotRequired[int]
    epoch: NotRequired[float]
    learning_rate: NotRequired[float]
    eval_loss: NotRequired[float | None]


class Trained(TypedDict, total=False):
    """The part of `trained.json` that a report repeats; absent where all examples fitted."""

    examples: int
    cut: int
    left_out: int


@dataclass(frozen=True)
class Training:
    """How training went: loss over the first and the last tenth of the steps, in nats per token.

    `first_by_kind` and `last_by_kind` are over the first tenth and the last quarter of the steps
    that had examples of that kind: a mean over all kinds also moves with the mix of a batch.
    """

    loss: tuple[LossRow, ...]
    steps: int
    first: float
    last: float
    first_by_kind: Mapping[str, Estimate]  # how far a kind is from the model's own text
    last_by_kind: Mapping[str, Estimate]
    examples: int | None = field(default=None, metadata=OPTIONAL)
    cut: int | None = field(default=None, metadata=OPTIONAL)
    left_out: int | None = field(default=None, metadata=OPTIONAL)


# -- the model's own verdict ------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """How well the model's own verdict separates harmful from harmless responses."""

    n: int
    auc: Coefficient
    ece: Coefficient


@dataclass(frozen=True)
class Writing:
    """The analyses that the trained model writes: length, repetition, and the verdicts in them."""

    n: int
    words: float
    repeating: Estimate
    stated: int
    commonest: Estimate
    commonest_verdict: str | None


@dataclass(frozen=True)
class Introspection:
    """The model's own verdicts before and after training, and its analyses afterwards.

    `called_wrong` has the shares of these that say that it was wrong to refuse.
    """

    before: Spoken | None
    after: Spoken | None
    written: Writing | None
    words_learnt: float | None
    called_wrong: Mapping[Label, Estimate] | None = field(default=None, metadata=OPTIONAL)


# -- all of it --------------------------------------------------------------------------------


class Finding(NamedTuple):
    """What a reader should know: the observation, its certainty, and what to try."""

    level: Level
    text: str


class Cost(TypedDict):
    """The cost of one stage, summed over all its runs."""

    stage: str
    seconds: float
    records: int
    prompt_tokens: int
    tokens: int
    tokens_per_second: NotRequired[float]
    money: NotRequired[float]


@dataclass(frozen=True)
class Measurement:
    """Every number of a report; `model` and `method` are None where nothing was trained."""

    schema: int
    name: str
    model: str | None
    method: str | None
    seed: int | None
    judges: Mapping[str, JudgeReport]
    agreement: tuple[Agreement, ...]
    data: Data
    training: Training | None
    introspection: Introspection | None
    environment: Mapping[str, object]
    thoughts: Mapping[str, Mapping[Arm, Mapping[str, Estimate]]]  # see `measure.thoughts`
    findings: tuple[Finding, ...] = ()
    summary: str = ""
    costs: tuple[Cost, ...] = ()
    flips: Flips | None = field(default=None, metadata=OPTIONAL)


def to_json(value: Any) -> Any:
    """Return a result as plain data: objects, lists, texts and numbers; an arm is its name.

    Floats are rounded to 6 places, so that the last bits of another machine do not show.
    """
    if isinstance(value, float):
        return round(value, 6) + 0.0  # no -0.0
    if isinstance(value, Arm):
        return value.name
    if isinstance(value, Estimate | Difference | Finding):
        value = value._asdict()
    elif is_dataclass(value):
        value = {
            each.name: item
            for each in fields(value)
            if (item := getattr(value, each.name)) is not None or not each.metadata
        }
    if isinstance(value, Mapping):
        return {
            key.name if isinstance(key, Arm) else str(key): to_json(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
