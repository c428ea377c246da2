"""The loop: rounds of training on a deployed model's failures, accepted only through the gate.

A round is an ordinary run. The current model, which is the last accepted one, makes the mistakes;
what it did wrong in production is added; training continues its adapter and replays earlier rounds'
examples. The gate compares both models on validation prompts. What does not pass ends the loop, and
the current model stays. The test prompts are answered once, at the end, and decide nothing.

    LOOP/recipe.yaml        the recipe, with its section `loop`
    LOOP/stream-1.jsonl     the prompts that play production traffic before round 1
    LOOP/stream-1/          a run: the current model answers them
    LOOP/setbacks-1.jsonl   the failures among its answers
    LOOP/round-1/           a run: mistakes, training, and the answers to validation prompts
    LOOP/loop.json          the decisions
    LOOP/final/             a run: the accepted models answer the test prompts
    LOOP/report.html        the page; `findings.json` has its numbers

Each file follows from the recipe and from files before it: a killed loop ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from setbacks.data import Source, read_once
from setbacks.errors import InputError
from setbacks.files import expanded, kind_of, own_folder, write_atomic
from setbacks.judges import gives
from setbacks.loop.gate import Claim, Gate, claim, gate
from setbacks.loop.gate.report import lines
from setbacks.loop.rounds.derived import changed, derived, evaluated
from setbacks.loop.rounds.page import findings
from setbacks.loop.rounds.state import Outcome, Round, read_rounds, write_rounds
from setbacks.loop.rounds.traffic import play
from setbacks.measure import Measurement
from setbacks.measure.findings import answers
from setbacks.measure.formatting import change_with_p
from setbacks.measure.metrics import BALANCED, METRICS, significant
from setbacks.notices import notice
from setbacks.pipeline import check, run_until
from setbacks.recipe import Loop, Recipe, Replay
from setbacks.report.page import write
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import Run
from setbacks.runs.progress import Show
from setbacks.runs.redo import described
from setbacks.training import processes


@read_once()
def carry_out(recipe: Recipe, folder: Path, show: Show | None = None) -> Path:
    """Run the rounds of a recipe, or resume them; return the page.

    Args:
        recipe: with its section `loop`. In an earlier loop's folder it may plan more rounds.
        folder: of the loop.
        show: called with (what, done, total).

    Raises:
        InputError: the recipe, its data or the folder is at fault.
        SetbacksError: something failed on the way; progress is saved.
    """
    folder, recipe = expanded(folder).absolute(), recipe.rebased(Path.cwd())
    _check(recipe)
    recipe = _prepare(folder, recipe)
    rounds = _decided_again(recipe, folder, read_rounds(folder))
    while number := _next(recipe.loop, rounds):
        rounds = [*rounds, _round(recipe, folder, number, rounds, show)]
        write_rounds(folder, rounds)
    final = _evaluate(recipe, folder, rounds, show)
    return write(folder, findings(recipe, folder, rounds, final))


def _decided_again(recipe: Recipe, folder: Path, rounds: list[Round]) -> list[Round]:
    """Return the rounds, with another decision about the last one if it was undecided.

    People may have labeled its answers since; the same labels give the same decision.
    """
    if not rounds or rounds[-1].outcome != "undecided":
        return rounds
    *earlier, last = rounds
    path = str(folder / last.name)
    decided = gate(path, path, _claims(recipe.loop))
    again = {"outcome": _outcome(decided, last.alarms), "evidence": _evidence(decided)}
    rounds = [*earlier, last.model_copy(update=again)]
    write_rounds(folder, rounds)
    return rounds


def _next(loop: Loop, rounds: Sequence[Round]) -> int | None:
    """Return the number of the round to run next; None if the loop has ended.

    A round without setbacks does not end it: the next one may have some.
    """
    passed = not rounds or rounds[-1].outcome in ("accepted", "no setbacks")
    stopped = not passed and loop.planned <= rounds[-1].planned
    return None if stopped or len(rounds) >= loop.planned else len(rounds) + 1


# One round


def _round(
    recipe: Recipe, folder: Path, number: int, rounds: Sequence[Round], show: Show | None
) -> Round:
    """Run a round, and decide about it."""
    on_progress = _labeled(show, f"round {number}/{recipe.loop.planned}")
    accepted = [folder / f"round-{one.number}" for one in rounds if one.accepted]
    current = accepted[-1] / "adapter" if accepted else recipe.current
    failures = play(recipe, folder, number, current, on_progress)
    setbacks = [*recipe.loop.harvest[number - 1 : number]]
    setbacks += [Source(source=str(failures))] if failures else []
    setbacks = _learnable(_recipe_of(recipe, number, current, accepted, []), setbacks)
    if not setbacks and _learns_from_setbacks_alone(recipe):
        return Round(number=number, planned=recipe.loop.planned, outcome="no setbacks")
    path = folder / f"round-{number}"
    of_round = _recipe_of(recipe, number, current, accepted, setbacks)
    report = run_until(of_round, path, "report", on_progress=on_progress)
    decided = gate(str(path), str(path), _claims(recipe.loop))
    alarms = list(_alarms(report.results))
    return Round(
        number=number,
        planned=recipe.loop.planned,
        outcome=_outcome(decided, alarms),
        evidence=_evidence(decided),
        alarms=alarms,
    )


def _learnable(of_round: Recipe, setbacks: Sequence[Source]) -> list[Source]:
    """Return the sources that have a setback to learn from; give a notice of the others.

    Args:
        of_round: the recipe of the round, which names the prompts that are held out.
        setbacks: what went wrong in production.
    """
    decontamination = Decontamination(of_round)
    learnable = []
    for source in setbacks:
        path = Path(source.source)
        if path.is_file() and not path.stat().st_size:  # a harvest without setbacks
            notice(f"{path}: empty, so nothing is learned from it")
        elif decontamination.has_learnable(source):
            learnable.append(source)
    return learnable


def _recipe_of(
    recipe: Recipe,
    number: int,
    current: Path | None,
    accepted: Sequence[Path],
    setbacks: Sequence[Source],
) -> Recipe:
    """Return the recipe of a round.

    Args:
        recipe: of the loop.
        number: of the round; each has another seed, and so another draw of mistakes.
        current: the adapter of the current model.
        accepted: the folders of the accepted rounds.
        setbacks: what the current model did wrong in production.
    """
    induce = recipe.induce
    if setbacks:
        source = "existing" if induce.source == "existing" else "both"
        induce = changed(induce, source=source, existing=[*induce.existing, *setbacks])
    earlier = [*recipe.train.replay.runs, *map(str, accepted)]
    tested = [source for suite in recipe.respond.suites for source in suite.sources]
    replay = changed(recipe.train.replay, runs=earlier, share=recipe.loop.replay)
    return derived(
        recipe,
        f"round {number}",
        seed=recipe.seed + number - 1,
        adapter=current and str(current),
        induce=induce,
        train=changed(recipe.train, replay=replay),
        held_out=[*recipe.held_out, *tested],
        respond=changed(recipe.respond, suites=recipe.loop.validation),
    )


def _learns_from_setbacks_alone(recipe: Recipe) -> bool:
    """Whether a round has nothing to learn from if nothing went wrong in production."""
    return recipe.induce.source == "existing" and not recipe.induce.existing


def _claims(loop: Loop) -> list[Claim]:
    return [claim(text, True) for text in loop.gate.better] + [
        claim(text, False) for text in loop.gate.no_worse
    ]


def _evidence(decided: Gate) -> list[str]:
    return [line.removeprefix("- ") for line in lines(decided)[1:]]


def _outcome(decided: Gate, alarms: Sequence[str]) -> Outcome:
    if decided.decision == "fail":
        return "worse"
    if decided.decision == "undecided":
        return "undecided"
    return "alarm" if alarms else "accepted"


def _alarms(results: Measurement) -> Iterator[str]:
    """Yield the warnings that no better rate makes up for.

    The trained model fell apart, or gave no answers, or the prompts that decide were trained on.
    """
    for pair in results.data.degenerate:
        by_training = pair.arm.trained and pair.against == pair.arm.before
        if by_training and significant(pair) and (pair.value or 0) > 0:
            yield f"More degenerate answers after training: {change_with_p(pair)}."
    for alarm in (answers.not_answered, answers.overlap):
        yield from (finding.text for finding in alarm(results) if finding.level == "warning")


# The end


def _evaluate(
    recipe: Recipe, folder: Path, rounds: Sequence[Round], show: Show | None
) -> Measurement:
    """Have the model before the loop and every accepted one answer the test prompts."""
    arms = [evaluated("before", recipe, recipe.current)]
    for one in rounds:
        if one.accepted:
            name = f"round-{one.number}"
            arms.append(evaluated(name, recipe, folder / name / "adapter"))
    evaluation = derived(recipe, "test", evaluate=arms)
    path = folder / "final"
    # Another accepted round is one more arm; the earlier answers move to `superseded/`.
    grown = (path / "recipe.yaml").exists() and Run(path).recipe != evaluation
    redo = "respond" if grown else None
    report = run_until(evaluation, path, "report", redo=redo, on_progress=_labeled(show, "test"))
    measurement: Measurement = report.results
    return measurement


def _labeled(show: Show | None, label: str) -> Show | None:
    """Return progress that says which part of the loop it belongs to."""
    return show and (lambda what, done, total: show(f"{label}: {what}", done, total))


# Checks


def _check(recipe: Recipe) -> None:
    """Check, before any work, whether a recipe makes a loop."""
    if recipe.evaluate:
        raise InputError("setbacks loop: the recipe is an evaluation, which trains nothing")
    if processes.count() > 1:
        raise InputError("setbacks loop: runs in one process; start it without a launcher")
    if recipe.train.start is not None:
        raise InputError(
            "train.start: every round of a loop continues the accepted adapter; to begin with this "
            "one, name it as `adapter`"
        )
    replay = recipe.train.replay
    if replay.share not in (recipe.loop.replay, Replay().share):
        raise InputError(
            "train.replay.share: in a loop, loop.replay sets the number of replayed examples; "
            "remove one of the two"
        )
    if not (claims := _claims(recipe.loop)):
        raise InputError("loop.gate: name a metric, such as better: [balanced_safety]")
    kinds = {suite.kind for suite in recipe.loop.validation}
    judge = recipe.judges[0]
    given = gives(judge, recipe)
    for one in claims:
        for metric in BALANCED if one.metric == "balanced_safety" else (one.metric,):
            if given is not None and metric not in given:
                raise InputError(
                    f"loop.gate: {one.metric} needs {metric}, which the judge {judge.called} does "
                    "not give; the first of `judges` decides, so name another, or other metrics"
                )
            if (kind := METRICS[metric].kind) not in kinds:
                raise InputError(
                    f"loop.gate: {one.metric} needs prompts of kind {kind} in loop.validation; add "
                    "a suite, or name other metrics"
                )


def _prepare(folder: Path, recipe: Recipe) -> Recipe:
    """Make the folder of a loop, private to its owner, with its recipe; return the recipe.

    In a folder that an earlier version began, fields that it did not have stay off.

    Raises:
        InputError: the folder is something else, or holds the loop of another recipe.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        if kind_of(folder) not in ("loop", None):
            raise InputError(f"{folder}: holds no loop; choose another folder with --out")
        recipe = recipe.resuming(path)
        _check_same(folder, Recipe.load(path, of_run=True), recipe)
    else:
        _check_data(recipe)
        own_folder(folder, path.name, "a loop")
    write_atomic(path, recipe.to_yaml().encode())
    return recipe


def _check_data(recipe: Recipe) -> None:
    """Look up everything that the first round and the test need."""
    setbacks = _learnable(_recipe_of(recipe, 1, recipe.current, [], []), recipe.loop.harvest[:1])
    if not setbacks and _learns_from_setbacks_alone(recipe):  # they are not there yet
        recipe = recipe.model_copy(update={"induce": changed(recipe.induce, source="induced")})
    check(_recipe_of(recipe, 1, recipe.current, [], setbacks))
    check(derived(recipe, "test", evaluate=[evaluated("before", recipe, recipe.current)]))


def _check_same(folder: Path, held: Recipe, given: Recipe) -> None:
    """Check that a recipe differs from the one in the folder only in that it plans more rounds."""
    known = len(held.loop.harvest)
    more = {"rounds": given.loop.rounds, "harvest": given.loop.harvest}
    if given.loop.harvest[:known] == held.loop.harvest and given.loop.planned >= held.loop.planned:
        held = held.model_copy(update={"loop": changed(held.loop, **more), "jobs": given.jobs})
    if changes := described(held.model_dump(mode="json"), given.model_dump(mode="json")):
        raise InputError(
            f"{folder}: holds the loop of another recipe ({changes}); only more "
            "loop.rounds and further sources at the end of loop.harvest continue a loop; choose "
            "another folder with --out"
        )
