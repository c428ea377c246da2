"""A probe that ranks drafts by the hidden states of the model that wrote them.

Ours. A linear probe (logistic regression) learns harm from the run's own data: its mistakes against
harmless answers. The probe must not merely recognize a prompt: mistakes answer harmful prompts, and
benign answers answer harmless ones, but all drafts answer one prompt. So harmless answers to the
*same* instructions are needed too, and the figure that counts is the share of pairs within a prompt
that the probe orders rightly. Neither a judge nor human labels are needed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from setbacks.data.instructions import benign_answers, instructions
from setbacks.engines import Engine
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.judges.probe import FOLDS, balanced, fit, held_out_scores
from setbacks.measure.formatting import coefficient
from setbacks.measure.statistics import agreement, mean_rate
from setbacks.measure.substance import answer, substance
from setbacks.messages import Prompt
from setbacks.methods import answered, mistake_sources, open_method
from setbacks.notices import notice
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.records import Correction, Mistake, OwnAnswer, Request, digest, same_prompt
from setbacks.runs.folder import Run
from setbacks.runs.redo import StageName
from setbacks.runs.session import Session

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

FEWEST = 20  # instructions with a mistake and a harmless answer: with fewer, no figure is certain
MOST = 1_000  # answers of each kind; more take time and hardly change a linear probe
DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # layers to choose from, as shares of all
STRENGTH = 1e-3  # inverse strength of the regularization
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


def known_answers(recipe: Recipe, run: Run | Session, *, learned: bool = True) -> list[Answer]:
    """Return the answers of a run that are known to be harmful or harmless.

    Its mistakes are harmful. Benign answers (`analyze.contrast`) and safe answers (`train.safe`)
    are harmless, and so are the model's own answers that passed their checks for training.

    Args:
        recipe: the run's recipe.
        run: the run.
        learned: with the answers that the model wrote for its training.
    """
    known = [
        Answer(one.instruction, one.response, True)
        for one in run.records("mistakes.jsonl", Mistake)
        if one.outcome == "mistake" and one.kind == "harmful"
    ]
    harmless = [*benign_answers(recipe.analyze.contrast), *answered("safe", recipe.train.safe)]
    known += [Answer(row.text, row.answer or "", False) for row in harmless]
    if learned:
        own = [
            *run.records("corrections.jsonl", Correction),
            *run.records("benign.jsonl", OwnAnswer),
        ]
        known += [
            Answer(one.instruction, one.answer, False) for one in own if one.outcome == "kept"
        ]
    return [
        one._replace(response=answer(one.response))
        for one in known
        if substance(one.response) == "text"
    ]


def _untested(recipe: Recipe, known: Sequence[Answer]) -> list[Answer]:
    """Leave out answers to prompts of the suites, also if `decontaminate` is off."""
    tested = {
        same_prompt(row.text)
        for suite in recipe.respond.suites
        for row in instructions(suite.sources)
    }
    return [one for one in known if same_prompt(one.instruction) not in tested]


def states_probe(
    run: Session,
    stage: StageName,
    file: str,
    model: str,
    adapter: Path | None,
    *,
    learned: bool = True,
) -> StatesProbe:
    """Return the probe of a model's states; fit it and record it unless the run has it.

    Args:
        run: the session.
        stage: the stage that time is counted for.
        file: the journal of the probe, in the run folder.
        model: name of the arm or model, for people.
        adapter: a PEFT folder to read with; None for the base model.
        learned: as for `known_answers`.

    Raises:
        InputError: there are too few mistakes with a harmless answer to the same instruction.
    """
    recipe = run.recipe
    known = _sample(_untested(recipe, known_answers(recipe, run, learned=learned)))
    mistakes = {same_prompt(one.instruction) for one in known if one.harmful}
    both = mistakes & {same_prompt(one.instruction) for one in known if not one.harmful}
    if len(both) < FEWEST:
        raise _too_few(run.path, len(both), len(mistakes), "instructions of mistakes")
    id_ = digest("states probe", recipe.seed, model, *(part for one in known for part in one))
    journal = run.journal(file, StatesProbe)
    work = run.work(journal, stage, [[Piece(id_)]], f"probe of {model}")
    for batch in work:
        engine = run.engine(recipe.model)
        probe = _fit(id_, engine.name, known, _read(engine, known, adapter))
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
        f"{probe.harmless} harmless answers, on prompts that it was not fitted on"
    )


def _sample(known: Sequence[Answer]) -> list[Answer]:
    """Take at most `MOST` answers of each kind, first those to instructions that have both."""
    prompts = {
        harmful: {same_prompt(one.instruction) for one in known if one.harmful == harmful}
        for harmful in (True, False)
    }
    both = prompts[True] & prompts[False]

    def order(one: Answer) -> tuple[bool, str]:
        return same_prompt(one.instruction) not in both, digest(*one)

    distinct = sorted(dict.fromkeys(known), key=order)
    return [
        one
        for harmful in (True, False)
        for one in [one for one in distinct if one.harmful == harmful][:MOST]
    ]


def _read(engine: Engine, known: Sequence[Answer], adapter: Path | None) -> np.ndarray:
    """Return the states of every answer, [answers, depths, hidden size]."""
    import numpy as np

    requests = [Request(one.instruction, seed=0, reply=one.response) for one in known]
    states: dict[int, np.ndarray] = {}
    for batch in engine.plan(requests):
        read = engine.states([requests[index] for index in batch], DEPTHS, adapter)
        states |= zip(batch, read, strict=True)
    return np.stack([states[index] for index in range(len(known))])


# Fitting ------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Answers as arrays: their states, label, instruction and weight."""

    x: np.ndarray  # [answers, depths, hidden size]
    y: np.ndarray
    group: np.ndarray
    weight: np.ndarray

    def at(self, index: np.ndarray) -> Rows:
        """Return some of the rows."""
        return Rows(*(array[index] for array in self))

    def scores(self, depth: int) -> np.ndarray:
        """Return each row's log-odds of harm by a probe of one layer that was not fitted on it."""
        return held_out_scores(self.x[:, depth], self.y, _folds(self), STRENGTH, self.weight)


def _fit(id_: str, model: str, known: Sequence[Answer], x: np.ndarray) -> StatesProbe:
    """Fit a probe and measure it by cross-validation over prompts.

    The layer is chosen again in each fold, on the answers that the fold fits: the best of several
    layers on the very answers that choose it would look better than it is.
    """
    import numpy as np
    from scipy.special import expit

    names = [same_prompt(one.instruction) for one in known]
    group = np.unique(np.array(names, object), return_inverse=True)[1]
    y = np.array([one.harmful for one in known], int)
    paired = np.isin(group, group[y == 1]) & np.isin(group, group[y == 0])
    # Where a prompt has both kinds, they weigh the same, so that the prompt says nothing.
    kind = np.where(paired, "both kinds", "one kind")
    rows = Rows(x, y, group, balanced(y, kind))
    scores = np.zeros(len(y))
    for fitted, held_out in _folds(rows):
        depth = _best_depth(rows.at(fitted))
        fold = [(fitted, held_out)]
        fold_scores = held_out_scores(x[:, depth], y, fold, STRENGTH, rows.weight)
        scores[held_out] = fold_scores[held_out]
    depth = _best_depth(rows)
    labels = y.astype(bool).tolist()
    head = fit(x[:, depth], labels, group.astype(str).tolist(), kind.tolist(), STRENGTH)
    within = mean_rate([*_ordered(rows, scores)], 1)
    assert within.value is not None and within.low is not None and within.high is not None
    return StatesProbe(
        id=id_,
        model=model,
        depth=DEPTHS[depth],
        weight=[float(f"{value:.7g}") for value in head.weight],
        bias=head.bias,
        mistakes=int(y.sum()),
        harmless=int((1 - y).sum()),
        prompts=within.n,
        auc=agreement(names, labels, expit(scores).tolist())["auc"],
        auc_within_prompts=[round(value, 3) for value in (within.value, within.low, within.high)],
    )


def _best_depth(rows: Rows) -> int:
    """Return the number of the layer that orders the pairs of most prompts rightly."""
    import numpy as np

    shares = [np.mean([*_ordered(rows, rows.scores(d))]) for d in range(len(DEPTHS))]
    return int(np.argmax(shares))


def _folds(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows to fit on and those held out; no prompt is in both."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    yield from folds.split(rows.x, rows.y, rows.group)


def _ordered(rows: Rows, scores: np.ndarray) -> Iterator[float]:
    """Yield the share of well-ordered pairs of each prompt that has both kinds of answers."""
    by_prompt: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for group, label, score in zip(rows.group, rows.y, scores, strict=True):
        by_prompt[group][label].append(score)
    for harmless, harmful in by_prompt.values():
        if harmless and harmful:
            pairs = [(high > low) + (high == low) / 2 for high in harmful for low in harmless]
            yield sum(pairs) / len(pairs)
