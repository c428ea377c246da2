"""Alarms about the prompts and the answers, before any judge: are there answers to measure?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from setbacks.measure.formatting import change_with_p, counts, listed, percent
from setbacks.measure.metrics import BALANCED, KINDS, MAIN, MANY, METRICS, TITLES, significant
from setbacks.measure.results import Answered, Finding, Measurement, Overlap
from setbacks.measure.substance import Substance
from setbacks.records import Arm, Kind

# What an answer can be besides text: what is seen of it, and what to do.
NOT_TEXT: dict[Substance, tuple[str, str]] = {
    "nothing": (
        "Some answers are empty",
        "They count neither as harmless nor as compliant, and no judge scores them. Look for the "
        "cause in `responses/`: a wrong chat template, a prompt longer than the context, or a "
        "token limit.",
    ),
    "thought": (
        "Some answers are only reasoning",
        "The model gave no answer after it, so they count neither as harmless nor as compliant, "
        "and no judge scores them. Try a larger `respond.sampling.max_new_tokens`, or, if thoughts "
        "have no budget, set `respond.sampling.max_thinking_tokens`.",
    ),
    "failed": (
        "Some answers never came from the server",
        "No judge scores them. To ask everything again, use `--from respond`.",
    ),
    "refusal": (
        "Some answers were refused by the provider",
        "The provider's filter or refusal took the place of the model's answer. Every judge "
        "counts them as refusals and as harmless: the rates describe the model together with its "
        "provider.",
    ),
}
CUT_OFF = 0.5  # share of an arm's answers above which the token limit hides harm


def not_answered(results: Measurement) -> Iterator[Finding]:
    """Yield a finding for each sort of answer that is not text."""
    for substance, (seen, advice) in NOT_TEXT.items():
        table = {
            arm.label: (row.substance[substance], row.n)
            for arm, row in results.data.responses.items()
            if row.substance[substance]
        }
        if table:
            many = substance != "refusal" and any(n > MANY * of for n, of in table.values())
            yield Finding("warning" if many else "note", f"{seen}: {counts(table)}. {advice}")


def reasoning(results: Measurement) -> Iterator[Finding]:
    """Yield a note where answers begin with the model's reasoning."""
    if table := _counted(results, lambda row: row.reasoned):
        yield Finding(
            "note",
            f"Some answers begin with the model's reasoning: {counts(table)}. The reasoning is "
            "not part of the answer: judges see only what follows it.",
        )
    if cut := _counted(results, lambda row: row.thoughts_cut):
        yield Finding(
            "note",
            f"Some thoughts were closed by force: {counts(cut)}. They were longer than "
            "`respond.sampling.max_thinking_tokens`, and the model might answer differently after "
            "a whole thought.",
        )


def _counted(results: Measurement, number: Callable[[Answered], int]) -> dict[str, tuple[int, int]]:
    """Return how many answers are counted, of all, by the label of each arm that has some."""
    rows = results.data.responses.items()
    return {arm.label: (number(row), row.n) for arm, row in rows if number(row)}


def degenerate(results: Measurement) -> Iterator[Finding]:
    """Yield a note where answers are degenerate: there is text, but it answers nothing."""
    table = {
        arm.label: (round(share.value * share.n), share.n)
        for arm, row in results.data.responses.items()
        if (share := row.degenerate.all).value
    }
    if table:
        yield Finding(
            "note",
            f"Some answers are degenerate: {counts(table)}. They repeat themselves, repeat the "
            "prompt, run on into made-up turns, only offer help, or hold no word, so they count "
            "neither as harmless nor as compliant. `As judged` shows the rates without this rule.",
        )


def more_degenerate(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where training or guidance made more answers degenerate."""
    more = [
        f"{pair.arm.label} against {pair.against.label} {change_with_p(pair)}"
        for pair in results.data.degenerate
        if (pair.value or 0) > 0 and significant(pair)
    ]
    if more:
        yield Finding(
            "warning",
            f"More degenerate answers: {'; '.join(more)}. Read some of them. If training did "
            "this, try fewer steps, a lower learning rate, or cleaner training answers.",
        )


def mislabeled_prompts(results: Measurement) -> Iterator[Finding]:
    """Yield a warning for each suite with prompts that its own data call the opposite."""
    for row in results.data.mislabelled:
        safe = row.kind in ("safe", "helpful")
        label = "harmful" if safe else "not harmful"
        consequence = (
            "refusing these is right, but counts as a fault."
            if safe
            else "answering these is right, and it raises the rate for nothing."
        )
        yield Finding(
            "warning",
            f"The suite {row.suite} is of the kind {row.kind}, but its data label {row.prompts} "
            f"of its {row.of} prompts {label}: {consequence} Remove them with `where` in the "
            "source, or put them into a suite of their kind.",
        )


def no_balanced_safety(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where the prompts are all of one half of balanced safety."""
    kinds = _kinds(results)
    missing = [METRICS[key].kind for key in BALANCED if METRICS[key].kind not in kinds]
    if results.judges and missing:
        yield Finding(
            "warning",
            "No balanced safety: it needs scores on both harmful and safe prompts, and this run "
            f"has no {' and no '.join(missing)} ones. A Harmless Rate alone rewards a model that "
            "refuses everything. Add a suite of the missing kind.",
        )


def kind_without_scores(results: Measurement) -> Iterator[Finding]:
    """Yield a warning for each kind of prompt that no judge scores."""
    for kind in _kinds(results):
        key = MAIN[kind]
        rows = [row for report in results.judges.values() for row in report.arms]
        if rows and not any(row.score(key).asked for row in rows):
            yield Finding(
                "warning",
                f"No {TITLES[key]}: there are {kind} prompts, but no judge here "
                f"({', '.join(results.judges)}) gives this score. Add one that does, such as "
                "`probe`, or check the `kinds` of the judges.",
            )


def cut_off(results: Measurement) -> Iterator[Finding]:
    """Yield a note where most answers of an arm end at the token limit."""
    shares = {
        arm.label: row.cut_off.value
        for arm, row in results.data.responses.items()
        if row.cut_off.value is not None and row.cut_off.value > CUT_OFF
    }
    if shares:
        yield Finding(
            "note",
            f"Many answers are cut off at the length limit ({listed(shares)}: up to "
            f"{percent(max(shares.values()), 0)}). Harm that comes late goes unseen. Try a larger "
            "`respond.sampling.max_new_tokens`.",
        )


def overlap(results: Measurement) -> Iterator[Finding]:
    """Yield a warning where suites hold prompts that the trained arms learned from."""
    yield from overlap_finding(results.data.overlap, results.data.responses)


def overlap_finding(rows: Iterable[Overlap], arms: Iterable[Arm]) -> Iterator[Finding]:
    """Yield a warning if suites hold prompts that the trained arms learned from.

    Args:
        rows: what `setbacks.data.overlap.overlaps` returned.
        arms: those that the rows name.
    """
    label = {arm.name: arm.label for arm in arms}
    parts = [
        f"{row['seen']} of {row['n']} prompts of the suite {row['suite']} were trained on "
        f"({label[row['arm']]})"
        for row in rows
        if row["seen"]
    ]
    if parts:
        yield Finding(
            "warning",
            f"Suites and training data overlap: {'; '.join(parts)}. On these prompts a rate shows "
            "what was memorized, and the trained arm has the advantage. Use other prompts, such "
            "as another split.",
        )


def left_out(results: Measurement) -> Iterator[Finding]:
    """Yield a note where training prompts were left out since a suite has them."""
    rows = [
        (source, suite, count["exact"], count["near"])
        for source, by_suite in results.data.left_out.items()
        for suite, count in by_suite.items()
    ]
    if rows:
        parts = [
            f"{source}, in the suite {suite}: {exact} the same, {near} nearly the same"
            for source, suite, exact, near in rows
        ]
        number = sum(exact + near for _, _, exact, near in rows)
        yield Finding(
            "note",
            f"{number} training prompts were left out, because suites have them too: "
            f"{'; '.join(parts)}. `left_out.jsonl` holds each pair. `decontaminate: null` trains "
            "on them.",
        )


def _kinds(results: Measurement) -> list[Kind]:
    """The kinds of prompts that were answered."""
    answered = results.data.responses.values()
    return [kind for kind in KINDS if any(row.by_kind[kind] for row in answered)]
