"""Alarms about training: mistakes, analyses, the loss, and the model's own verdicts."""

from __future__ import annotations

from collections.abc import Iterator

from setbacks.measure.flips import Flips
from setbacks.measure.formatting import change_with_p, coefficient, number, percent
from setbacks.measure.metrics import significant
from setbacks.measure.results import Finding, Measurement, Spoken
from setbacks.records import CONTEXTS

FEW_MISTAKES = 0.5  # share of instructions that gave a mistake
FEW_ANALYSES = 0.4  # share of candidates that passed
BOILERPLATE = 0.4  # of the loss on answers
NEAR_CHANCE = 0.6  # an AUC below is too weak to learn from
REPEATING = 0.1  # share of analyses that repeat themselves
ONE_VERDICT, FEWEST_STATED = 0.85, 20  # share of one verdict; analyses that state one
SEEN = 0.5  # share of refusals that the model should at least call wrong
SHORT = 0.5  # of the length of the analyses that the model learned from


def few_mistakes(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where few instructions gave a mistake."""
    share = results.data.induction.instructions_with_mistake
    if share.value is not None and share.value < FEW_MISTAKES:
        yield Finding(
            "warning",
            f"Few mistakes: {percent(share.value)} of {share.n} instructions gave one. Try more "
            "attempts, a higher temperature, or existing mistakes (`induce.source: both`).",
        )


def few_refusals(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where few safe prompts gave a refusal."""
    refusals = results.data.refusals
    share = refusals.instructions_with_mistake if refusals else None
    if share and share.value is not None and share.value < FEW_MISTAKES:
        yield Finding(
            "warning",
            f"Few refusals: {percent(share.value)} of {share.n} safe prompts gave one. Try more "
            "attempts (`induce.attempts`), or refusals from data (`induce.source: both`).",
        )


def few_analyses(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where few candidate analyses pass, with the check that fails most."""
    passed, failures = results.data.analysis.passed, results.data.analysis.failures
    if passed.value is not None and passed.value < FEW_ANALYSES:
        most = max(failures, key=lambda name: failures[name]) if failures else None
        why = f"; most fail on {most} ({failures[most]})" if most else ""
        yield Finding(
            "warning",
            f"Few analyses pass: {percent(passed.value)} of {passed.n} candidates{why}. Try more "
            "candidates, the prefill, or a stronger analyst (`analyze.analyst`).",
        )


def boilerplate(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where analyses became far easier to predict than answers."""
    kinds = results.training.last_by_kind if results.training else {}
    if "analysis" not in kinds or "helpful" not in kinds:
        return
    own, other = kinds["analysis"], kinds["helpful"]
    if own.high is not None and other.value is not None and own.high < BOILERPLATE * other.value:
        yield Finding(
            "warning",
            "Memorized boilerplate: over the last quarter of the steps the loss on analyses is "
            f"{number(own.value)} (95 % interval {number(own.low)} to {number(own.high)}), on "
            f"helpful answers {number(other.value)}: the analyses are too much alike. Try more "
            "varied ones: a higher temperature, no prefill, another analyst, or fewer epochs.",
        )


def long_examples(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where training examples were longer than the limit."""
    training = results.training
    if training and training.cut is not None and training.left_out is not None:
        yield Finding(
            "warning",
            f"{training.cut + training.left_out} of {training.examples} training examples are "
            f"longer than `train.max_length`: {training.cut} were cut, which removes their end of "
            f"turn, and {training.left_out} were left out. A model that learns from cut examples "
            "may not stop. Try a larger `train.max_length`, or leave out long examples.",
        )


def loss_did_not_fall(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the loss ended no lower than it began, for every kind of example."""
    training = results.training
    if not training or len(training.loss) < 2:
        return
    means = {
        kind: (first.value, training.last_by_kind[kind].value)
        for kind, first in training.first_by_kind.items()
    } or {"": (training.first, training.last)}
    known = {kind: (b, e) for kind, (b, e) in means.items() if b is not None and e is not None}
    if known and all(end >= begin for begin, end in known.values()):
        each = ", ".join(
            f"{kind} {number(begin, 3)} at first, {number(end, 3)} at last".strip()
            for kind, (begin, end) in known.items()
        )
        yield Finding(
            "warning",
            f"The loss did not fall ({each}): the model learned little. Try a higher learning rate "
            "or more epochs.",
        )


def near_chance(spoken: Spoken | None, what: str = "mistakes and benign responses") -> str | None:
    """Return a warning where a model's spoken verdict is near chance; else None.

    Args:
        spoken: what `setbacks.measure.spoken` returned for the untrained model.
        what: what it judged, in the plural.
    """
    if spoken is None or spoken.auc.low is None:
        return None
    if spoken.auc.value >= NEAR_CHANCE and spoken.auc.low > 0.5:
        return None
    return (
        f"The untrained model's spoken verdict on {spoken.n} {what} is "
        f"near chance (AUC {coefficient(spoken.auc)}; 0.5 is chance): mistake analysis cannot "
        "work yet on this model. Try a stronger analyst (`analyze.analyst`), a verdict that comes "
        "first and weighs more (`train.verdict: first`, `train.verdict_weight`), more contrast, or "
        "a larger model; `setbacks study discrimination` shows what its hidden states hold."
    )


def verdict_near_chance(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the untrained model's spoken verdict is near chance."""
    warning = near_chance(results.introspection.before if results.introspection else None)
    if warning:
        yield Finding("warning", warning)


def flip_finding(flips: Flips | None) -> Finding | None:
    """Return what the flip rates say about the content of the analyses; None without rates.

    Args:
        flips: what `setbacks.measure.flip_report` returned.
    """
    if flips is None:
        return None
    change = flips.of("analysis", "shuffled")
    none, guided, right, other = (percent(flips.rates[context].value) for context in CONTEXTS)
    seen = (
        f"of {flips.n} mistakes, the right analysis turns {right} into harmless "
        f"refusals, which training would learn, and the analysis of another mistake {other}: "
        f"{change_with_p(change)}"
    )
    if significant(change) and (change.low or 0) > 0:
        return Finding("good", f"What the analyses say helps the teacher: {seen}.")
    return Finding(
        "warning",
        f"Nothing shows that what the analyses say helps the teacher: {seen}. Guidance alone turns "
        f"{guided}, and the instruction alone {none}. Do not expect training to gain from what the "
        "analyses say; `train.context: guidance` needs none. Try a stronger analyst "
        "(`analyze.analyst`) or a larger model.",
    )


def flip_rate(results: Measurement) -> Iterator[Finding]:
    """Yield what the flip rates say about the content of the analyses."""
    if finding := flip_finding(results.flips):
        yield finding


def verdict_moved(results: Measurement) -> Iterator[Finding]:
    """Yield whether training moved the AUC of the model's own verdict out of its interval."""
    spoken = results.introspection
    if not spoken or not spoken.before or not spoken.after:
        return
    before, after = spoken.before.auc, spoken.after.auc
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return
    seen = f"AUC {coefficient(before)} before, {coefficient(after)} after"
    if after.high < before.value and after.value < before.low:
        yield Finding(
            "warning",
            f"Training made the model's own verdict worse: {seen}. Try more contrast "
            "(`train.mix.contrast`), a lower learning rate, or fewer steps.",
        )
    elif after.low > before.value and after.value > before.high:
        yield Finding("good", f"Training made the model's own verdict better: {seen}.")


def analyses_repeat(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the trained model's analyses repeat themselves."""
    written = results.introspection.written if results.introspection else None
    if written and written.repeating.low is not None and written.repeating.low > REPEATING:
        yield Finding(
            "warning",
            f"The analyses decay: {percent(written.repeating.value)} of the {written.n} that the "
            "trained model writes repeat themselves (95 % interval from "
            f"{percent(written.repeating.low)}). Try fewer steps, or a lower learning rate.",
        )


def one_verdict(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the trained model's analyses all state the same verdict."""
    written = results.introspection.written if results.introspection else None
    common = written.commonest if written else None
    if not written or not common or common.low is None:
        return
    if common.n >= FEWEST_STATED and common.low > ONE_VERDICT:
        yield Finding(
            "warning",
            f"The verdict is always the same: {percent(common.value)} of the {common.n} analyses "
            f"that state one say {written.commonest_verdict}, although the responses are of both "
            "kinds. Try more contrast (`train.mix.contrast`), including safe look-alikes and "
            "refusals.",
        )


def refusals_not_seen(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the trained model seldom says that it was wrong to refuse."""
    called_wrong = results.introspection.called_wrong if results.introspection else None
    share = called_wrong["refusal"] if called_wrong else None
    if share and share.high is not None and share.high < SEEN:
        yield Finding(
            "warning",
            f"The model does not see its refusals: {percent(share.value)} of the {share.n} "
            "analyses that it writes of refused safe requests say that it was wrong to refuse "
            f"(95 % interval up to {percent(share.high)}). Try more of them (`induce.refusals`, "
            "`train.mix.refusal`).",
        )


def short_analyses(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the trained model's analyses are much shorter than those it learned."""
    analyses = results.introspection
    if not analyses or not analyses.written or not analyses.words_learnt:
        return
    written, learned = analyses.written, analyses.words_learnt
    if written.words < SHORT * learned:
        yield Finding(
            "warning",
            "The analyses have collapsed in length: the trained model writes "
            f"{number(written.words, 0)} words (median of {written.n}), and learned from "
            f"{number(learned, 0)}. Try fewer epochs, or longer analyses "
            "(`analyze.min_words`).",
        )
