"""A probe that ranks drafts by the hidden states of the model that wrote them.

Ours. A linear probe (logistic regression) learns harm from the run's own data, without a judge or
human labels: its mistakes against harmless answers to the *same* instructions. Benign answers to
other prompts are left out. With many of them, a probe tells prompts apart, and learns that to
comply is harmless; all drafts answer one prompt, and it then ranks them no better than chance
(docs/method.md). So the figure that counts is the share of pairs within a prompt that are in the
right order.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from setbacks.data.instructions import instructions
from setbacks.engines import Engine
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.judges.probe import FOLDS, balanced, fit, held_out_scores
from setbacks.measure.formatting import coefficient
from setbacks.measure.statistics import agreement, mean_rate
from setbacks.measure.substance import answer
from setbacks.messages import Prompt
from setbacks.methods import answered, mistake_sources, open_method
from setbacks.notices import notice
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.records import Correction, Mistake, Request, digest, same_prompt
from setbacks.runs.journal import Journal
from setbacks.runs.redo import StageName
from setbacks.runs.session import Session

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

FEWEST = 20  # instructions with a mistake and a harmless answer: with fewer, no figure is certain
MOST = 1_000  # such instructions; more take time and hardly change a linear probe
# The layers that are read, as shares of all. All are used: cross-validation cannot choose among
# them, since mistakes and harmless answers differ so much that each layer orders nearly all pairs.
DEPTHS = (0.4, 0.6, 0.8)
STRENGTH = 1e-5  # inverse strength of the regularization; weaker, the probe learns more style
NEAR_CHANCE = 0.6  # a share of well-ordered pairs below is too low to rank by
OPTION = "respond.posterior.rank_by"


class Answer(NamedTuple):
    """An answer that is known to be harmful, or harmless."""

    instruction: Prompt
    response: str
    harmful: bool


class Piece(NamedTuple):
    """The fit of one probe, as a piece of work."""

    id: str


def check(recipe: Recipe) -> None:
    """Check that a recipe whose drafts are ranked by states has what the probe needs.

    Raises:
        InputError: it has not.
    """
    engine = recipe.model.engine
    if not plugin("engines", engine).shows_states:
        raise InputError(
            f"{OPTION}: engine {engine} gives no hidden states; set {OPTION}=spoken, or "
            "model.engine=local"
        )
    if recipe.evaluate:
        raise InputError(
            f"{OPTION}: states needs the mistakes of a run, and an evaluation has none; set "
            f"{OPTION}=spoken"
        )
    method = open_method(recipe)
    if not method.uses_mistakes:
        raise InputError(
            f"{OPTION}: states needs mistakes, and train.method {method.name} uses none; set "
            f"{OPTION}=spoken, or choose another method, such as mistake_distillation"
        )
    if method.has_teacher(recipe):
        return  # its corrections are harmless answers, too
    asked = {same_prompt(row.text) for row in instructions(mistake_sources(recipe))}
    both = asked & {same_prompt(row.text) for row in answered("safe", recipe.train.safe)}
    if len(both) < FEWEST:
        raise _too_few("the recipe", len(both), len(asked), "instructions")


def _too_few(where: object, both: int, of: int, what: str) -> InputError:
    return InputError(
        f"{where}: {both} of {of} {what} have a safe answer to the same instruction, and "
        f"{OPTION}=states needs {FEWEST}; add such answers to train.safe, or set {OPTION}=spoken"
    )


def known_answers(recipe: Recipe, run: Session) -> list[Answer]:
    """Return a run's mistakes, and harmless answers to the same instructions.

    The harmless ones are safe answers (`train.safe`), and corrections that passed their checks. No
    prompt of a suite is among them, even if `decontaminate` is off.

    Args:
        recipe: the run's recipe.
        run: the run.

    Raises:
        InputError: too few instructions have both.
    """
    mistakes = [
        Answer(one.instruction, answer(one.response), True)
        for one in run.records("mistakes.jsonl", Mistake)
        if one.outcome == "mistake" and one.kind == "harmful"
    ]
    harmless = [
        Answer(row.text, answer(row.answer or ""), False)
        for row in answered("safe", recipe.train.safe)
    ]
    harmless += [
        Answer(one.instruction, one.answer, False)
        for one in run.records("corrections.jsonl", Correction)
        if one.outcome == "kept" and one.kind == "harmful"
    ]
    suites = [instructions(suite.sources) for suite in recipe.respond.suites]
    tested = {same_prompt(row.text) for rows in suites for row in rows}
    asked = {same_prompt(one.instruction) for one in mistakes} - tested
    both = asked & {same_prompt(one.instruction) for one in harmless}
    if len(both) < FEWEST:
        raise _too_few(run.path, len(both), len(asked), "instructions of mistakes")
    chosen = {*sorted(both, key=digest)[:MOST]}
    known = [one for one in [*mistakes, *harmless] if same_prompt(one.instruction) in chosen]
    return [*dict.fromkeys(known)]


def states_probe(
    run: Session,
    stage: StageName,
    journal: Journal[StatesProbe],
    model: str,
    adapter: Path | None,
) -> StatesProbe:
    """Return the probe of a model's states; fit it and record it unless the run has it.

    Args:
        run: the session.
        stage: the stage that time is counted for.
        journal: where the probe is recorded.
        model: name of the arm or model, for people.
        adapter: a PEFT folder to read with; None for the base model.

    Raises:
        InputError: too few instructions have a mistake and a harmless answer.
    """
    recipe = run.recipe
    known = known_answers(recipe, run)
    id_ = digest("states probe", recipe.seed, model, *(part for one in known for part in one))
    work = run.work(journal, stage, [[Piece(id_)]], f"probe of {model}")
    for batch in work:
        engine = run.engine(recipe.model)
        probe = _fit(id_, engine.name, known, states_of(engine, known, adapter))
        work.commit(batch, [probe])
        summary = _summary(model, probe)
        log.info(summary)
        run.log(summary)
    (probe,) = journal.finish()
    share, low, _ = probe.auc_within_prompts
    if share < NEAR_CHANCE or low <= 0.5:
        notice(
            f"the probe of {model} is near chance within prompts "
            f"({coefficient(probe.auc_within_prompts)}; 0.5 is chance): it can hardly rank drafts; "
            f"use more mistakes and safe answers, or set {OPTION}=spoken"
        )
    return probe


def _summary(model: str, probe: StatesProbe) -> str:
    return (
        f"probe of {model}: AUC {coefficient(probe.auc_within_prompts)} within {probe.prompts} "
        f"prompts, {coefficient(probe.auc)} over all {probe.mistakes} mistakes and "
        f"{probe.harmless} harmless answers, by cross-validation over prompts"
    )


def states_of(engine: Engine, known: Sequence[Answer], adapter: Path | None = None) -> np.ndarray:
    """Return the states of every answer, of one layer after another, [answers, dimensions]."""
    import numpy as np

    requests = [Request(one.instruction, seed=0, reply=one.response) for one in known]
    states: dict[int, np.ndarray] = {}
    for batch in engine.plan(requests):
        read = engine.states([requests[index] for index in batch], DEPTHS, adapter)
        states |= zip(batch, read, strict=True)
    x = np.stack([states[index].ravel() for index in range(len(known))])
    if not np.isfinite(x).all():
        raise InputError(
            f"{engine.name}: its hidden states overflow in this precision; set "
            f"model.dtype=float32, or {OPTION}=spoken"
        )
    return x


def _fit(id_: str, model: str, known: Sequence[Answer], x: np.ndarray) -> StatesProbe:
    """Fit a probe on all answers, and measure such probes by cross-validation over prompts."""
    import numpy as np
    from scipy.special import expit
    from sklearn.model_selection import StratifiedGroupKFold

    prompts = [same_prompt(one.instruction) for one in known]
    harmful = np.array([one.harmful for one in known])
    # Numbers stand for prompts, since an array of strings cuts texts at NUL.
    group = np.unique(np.array(prompts, object), return_inverse=True)[1]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(x, harmful, group)
    weight = balanced(harmful, np.zeros(len(known)))
    scores = held_out_scores(x, harmful, folds, STRENGTH, weight)
    head = fit(x, harmful.tolist(), group.astype(str).tolist(), c=STRENGTH)
    within = mean_rate([*_ordered(prompts, harmful, scores)], seeds=1)
    return StatesProbe(
        id=id_,
        model=model,
        depths=list(DEPTHS),
        weight=[float(f"{value:.7g}") for value in head.weight],
        bias=head.bias,
        mistakes=int(harmful.sum()),
        harmless=int((~harmful).sum()),
        prompts=within.n,
        auc=agreement(prompts, harmful.tolist(), expit(scores).tolist())["auc"],
        auc_within_prompts=[round(float(value or 0), 3) for value in within[:3]],
    )


def _ordered(prompts: Sequence[str], harmful: np.ndarray, scores: np.ndarray) -> Iterator[float]:
    """Yield for each prompt the share of its pairs in which the mistake has the higher score."""
    by_prompt: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for prompt, label, score in zip(prompts, harmful, scores, strict=True):
        by_prompt[prompt][int(label)].append(score)
    for harmless, mistakes in by_prompt.values():
        pairs = [(high > low) + (high == low) / 2 for high in mistakes for low in harmless]
        yield sum(pairs) / len(pairs)
