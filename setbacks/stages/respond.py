"""Step 4, guided response generation (arXiv 2310.10477, section 3.3).

The model answers every prompt of every suite before and after training, and with
`respond.guidance` also under guidance: p(Y | X, T) is proportional to p(Y | X) p(T | X, Y), so
guidance brings out what training taught.
Posterior decoding applies that formula explicitly; see `setbacks.engines.own_verdict`. In an
evaluation, any models answer, or existing answers are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.data.instructions import instructions
from setbacks.engines.own_verdict import drafts
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError, SetbacksError
from setbacks.measure.degeneration import guidance
from setbacks.messages import Prompt, transcript
from setbacks.methods import Method, open_method, states_probe
from setbacks.models.adapters import check_adapter
from setbacks.models.fingerprint import weights_of
from setbacks.plugins import plugin
from setbacks.prompts import ask
from setbacks.recipe import Engine, Recipe, Suite
from setbacks.records import Arm, Completion, Instruction, Request, Response, digest
from setbacks.runs.arms import planned_arms, untrained_arms, write_arms
from setbacks.runs.journal import read
from setbacks.runs.redo import TRAINING, Redo, Stage
from setbacks.runs.session import Session, planned
from setbacks.runs.weights import check_weights, have_changed
from setbacks.stages.answers import answers
from setbacks.stages.checks import (
    check_chat_of,
    check_conversations,
    check_lengths,
    notice_languages,
)


class Respondent(NamedTuple):
    """What answers as an arm: a model, with or without an adapter; None if answers are given."""

    arm: Arm
    model: Engine | None
    adapter: Path | None = None


class Question(NamedTuple):
    """One prompt of a suite, for one arm."""

    id: str
    suite: Suite
    instruction: Instruction


def respond(run: Session, adapter: Path | None = None) -> dict[str, Sequence[Response]]:
    """Return the responses of every arm, by name.

    Args:
        run: the session.
        adapter: the trained adapter's folder; None in an evaluation.

    Raises:
        InputError: a suite's source is missing, broken or empty, or lacks an answer; or a model or
            an adapter has changed since it answered.
    """
    questions = prompts_of(run.recipe)
    notice_languages(run.recipe, [instruction for _, instruction in questions])
    by_arm: dict[str, Sequence[Response]] = {}
    model = None
    in_order = respondents(run.recipe, adapter)
    write_arms(run.path, [respondent.arm for respondent in in_order])
    for respondent in in_order:
        if respondent.model != model:
            run.release_engines()  # one model in memory at a time
            model = respondent.model
        get = _take if respondent.model is None else _answer
        by_arm[respondent.arm.name] = get(run, respondent, questions)
    return by_arm


def prompts_of(recipe: Recipe) -> list[tuple[Suite, Instruction]]:
    """Return every prompt of a recipe's suites.

    Raises:
        InputError: a suite's source is missing, broken or empty.
    """
    return [
        (suite, instruction)
        for suite in recipe.respond.suites
        for instruction in instructions(suite.sources, language=recipe.language)
    ]


def respondents(recipe: Recipe, adapter: Path | None = None) -> list[Respondent]:
    """Return what answers as each arm of a run, in the order of the arms.

    Args:
        recipe: the run's recipe.
        adapter: the trained adapter's folder; None in an evaluation, which names its own.

    Raises:
        InputError: two arms of an evaluation have one name.
    """
    arms = planned_arms(recipe)
    if not recipe.evaluate:
        return [
            Respondent(arm, recipe.model, adapter if arm.trained else recipe.current)
            for arm in arms
        ]
    evaluated = {spec.name: spec for spec in recipe.evaluate}
    return [
        Respondent(arm, spec.model, None if spec.adapter is None else Path(spec.adapter))
        for arm in arms
        for spec in [evaluated[arm.model]]
    ]


def check(recipe: Recipe) -> None:
    """Look up what the arms need, such as the adapters and answer files of an evaluation.

    Raises:
        InputError: something is missing, two arms have one name, or a model cannot be used.
    """
    posterior, engine = recipe.respond.posterior, recipe.model.engine
    if posterior and posterior.rank_by == "states":
        states_probe.check(recipe)
    elif posterior and not plugin("engines", engine).shows_probabilities:
        raise InputError(
            f"respond.posterior: engine {engine} gives no token probabilities to choose a draft "
            "by; remove it, or set model.engine=local"
        )
    planned_arms(recipe)
    sources = [source for suite in recipe.respond.suites for source in suite.sources]
    prompts_asked = prompts_of(recipe)
    if not recipe.evaluate:
        check_conversations(recipe.model, sources)
        _check_lengths(recipe, prompts_asked)
        return
    for evaluated in recipe.evaluate:
        if evaluated.model is not None and evaluated.adapter is not None:
            check_adapter(evaluated.adapter, evaluated.model.model)
        if evaluated.answers:
            answers(evaluated, prompts_asked)
        check_chat_of(evaluated.model)
        check_conversations(evaluated.model, sources)
    _check_lengths(recipe, prompts_asked)


def _check_lengths(recipe: Recipe, prompts_asked: Sequence[tuple[Suite, Instruction]]) -> None:
    """Check that every prompt fits, guidance included: training comes before the first answer."""
    for respondent in respondents(recipe):
        asked = (_sized(recipe, respondent.arm, one) for _, one in prompts_asked)
        check_lengths(recipe, respondent.model, asked)


def _sized(recipe: Recipe, arm: Arm, instruction: Instruction) -> Request:
    """Return the request of an arm without a seed, which is slow to compute."""
    text = _prompt(recipe, arm, instruction.text, instruction.language)
    return Request(text, 0, recipe.respond.prefill)


def request(recipe: Recipe, arm: Arm, text: Prompt, language: str = "en") -> Request:
    """Return the request to an arm's model for an instruction.

    Args:
        recipe: gives the seed, the words and how a response begins.
        arm: the arm; only its way of answering matters.
        text: the instruction.
        language: of the instruction.
    """
    return Request(
        prompt=_prompt(recipe, arm, text, language),
        # The seed depends only on the instruction, so that arms do not differ by luck.
        seed=int(digest("draw", recipe.seed, digest("instruction", text)), 16),
        prefill=recipe.respond.prefill,
    )


def _prompt(recipe: Recipe, arm: Arm, text: Prompt, language: str) -> Prompt:
    """Return the prompt of an arm for an instruction."""
    if arm.way != "guided":
        return text
    if method := trained_method(recipe, arm):
        return method.guided_prompt(recipe.words_for(language), text)
    return ask(recipe.words_for(language)["guided"], text)


def _own_guidance(recipe: Recipe, arm: Arm, language: str) -> str | None:
    """Return the guidance of an arm, if it is not that of a built-in language pack."""
    if arm.way != "guided":
        return None
    told = transcript(_prompt(recipe, arm, "", language)).strip()
    return None if told in guidance() else told


def trained_method(recipe: Recipe, arm: Arm) -> Method | None:
    """Return the method that trained an arm's model in this run, if the arm is guided."""
    return open_method(recipe) if arm.trained and arm.way == "guided" else None


def _answer(
    run: Session, respondent: Respondent, suite_prompts: Sequence[tuple[Suite, Instruction]]
) -> Sequence[Response]:
    """Have an arm's model answer."""
    recipe = run.recipe
    arm, model, adapter = respondent
    assert model is not None
    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    # The adapter that this run trained is redone together with its answers.
    used = weights_of(model, None if arm.trained else adapter)
    check_weights(run, "respond", (journal.path, run.path / f"probes/{arm.name}.jsonl"), used)
    engine = run.engine(model)
    posterior = recipe.respond.posterior if arm.way == "posterior" else None
    probe = None
    if posterior and posterior.rank_by == "states":
        probes = run.journal(f"probes/{arm.name}.jsonl", StatesProbe)
        probe = states_probe.states_probe(run, "respond", probes, arm.model, adapter)
    sampling = recipe.respond.sampling
    if method := trained_method(recipe, arm):
        room = sampling.max_new_tokens + method.more_tokens(recipe)
        sampling = sampling.model_copy(update={"max_new_tokens": room})
    questions = _questions(recipe, arm, suite_prompts)

    def sized(question: Question) -> Request:
        return _sized(recipe, arm, question.instruction)

    def put(question: Question) -> Request:
        return request(recipe, arm, question.instruction.text, question.instruction.language)

    def record(question: Question, completions: Sequence[Completion]) -> Response:
        kept = completions[0]
        return _response(
            arm,
            question,
            guidance=_own_guidance(recipe, arm, question.instruction.language),
            **split_answer(recipe, arm, kept.text, question.instruction.language),
            thought=kept.thought,
            thought_tokens=kept.thought_tokens,
            thought_cut=kept.thought_cut or None,
            finish=kept.finish,
            prompt_tokens=kept.prompt_tokens,
            tokens=sum(completion.tokens for completion in completions),
            model=engine.name,
            drafts=[completion.text for completion in completions] if posterior else None,
        )

    work = run.work(journal, "respond", planned(engine, questions, sized), arm.name)
    if posterior is None:
        for batch, completions in work.generated(engine, put, sampling, adapter):
            records = [record(q, [one]) for q, one in zip(batch, completions, strict=True)]
            work.commit(batch, records, completions)
    else:
        for batch in work:
            spoken = [question.instruction.language for question in batch]
            requests = [*map(put, batch)]
            ranked = drafts(engine, recipe, posterior, requests, spoken, adapter, probe)
            tried = [[draft.completion for draft in choices] for choices in ranked]
            records = [record(q, choices) for q, choices in zip(batch, tried, strict=True)]
            work.commit(batch, records, chain(*tried))
    return journal.finish()


def _questions(
    recipe: Recipe, arm: Arm, suite_prompts: Sequence[tuple[Suite, Instruction]]
) -> list[Question]:
    return [
        Question(digest("response", recipe.seed, arm.name, suite.name, x.id), suite, x)
        for suite, x in suite_prompts
    ]


def split_answer(
    recipe: Recipe, arm: Arm, text: str, language: str = "en"
) -> dict[str, str | None]:
    """Split an arm's output into its answer (`text`) and the analysis before it, if any."""
    method = trained_method(recipe, arm)
    answer, analysis = method.split(recipe.words_for(language), text) if method else (text, None)
    return {"text": answer, "analysis": analysis}


def _take(
    run: Session, respondent: Respondent, suite_prompts: Sequence[tuple[Suite, Instruction]]
) -> Sequence[Response]:
    """Use the existing answers of an arm."""
    arm = respondent.arm
    evaluated = next(spec for spec in run.recipe.evaluate if spec.name == arm.name)
    rows = answers(evaluated, suite_prompts)
    # The answer is part of the id, so that a changed file is noticed.
    questions = [
        Question(digest("response", arm.name, suite.name, x.id, rows[x.id].response), suite, x)
        for suite, x in suite_prompts
    ]

    journal = run.journal(f"responses/{arm.name}.jsonl", Response)
    work = run.work(journal, "respond", [questions], arm.name)
    for batch in work:
        records = [
            _response(arm, question, text=rows[question.instruction.id].response, model=arm.name)
            for question in batch
        ]
        work.commit(batch, records)
    return journal.finish()


def _response(arm: Arm, question: Question, **fields: Any) -> Response:
    return Response(**_copied(arm, question), **fields)


def _copied(arm: Arm, question: Question) -> dict[str, Any]:
    """Return what a response has of its prompt."""
    return {
        "id": question.id,
        "arm": arm.name,
        "suite": question.suite.name,
        "kind": question.suite.kind,
        "instruction_id": question.instruction.id,
        "instruction": question.instruction.text,
        "reference": question.instruction.answer,
        "category": question.instruction.category,
        "language": question.instruction.language,
        "guided": arm.way == "guided",
        "prompt_harmful": question.instruction.harmful,
    }


def unchanged_arms(redo: Redo) -> list[str]:
    """Return the names of the arms that would answer as they did, if training is redone.

    Raises:
        InputError: a suite's source is missing, broken or empty.
    """
    recipe = redo.recipe
    if redo.first not in TRAINING or redo.changes(STAGE):
        return []
    questions, used = prompts_of(recipe), weights_of(recipe.model, recipe.current)
    return [
        arm.name
        for arm in untrained_arms(recipe)
        if not have_changed(redo.folder, f"responses/{arm.name}.jsonl", used)
        and _are_answers(redo, arm, questions)
    ]


def _are_answers(redo: Redo, arm: Arm, suite_prompts: Sequence[tuple[Suite, Instruction]]) -> bool:
    """Whether an arm has answers, and all are to these prompts, with all that is copied of them."""
    questions = {question.id: question for question in _questions(redo.recipe, arm, suite_prompts)}
    try:
        given = read(redo.folder / "responses" / f"{arm.name}.jsonl", Response)
    except SetbacksError:  # damaged: set aside like the others
        return False
    return bool(given) and all(
        response.id in questions
        and all(
            getattr(response, name) == value
            for name, value in _copied(arm, questions[response.id]).items()
        )
        for response in given
    )


def _more_keys(recipe: Recipe) -> tuple[str, ...]:
    """The words around an instruction: guidance, questions about drafts, and what engines add."""
    posterior = recipe.respond.posterior
    alpaca = any(one.model and one.model.chat_template == "alpaca" for one in recipe.evaluate)
    guided = ("words.*.guided", "words.*.policy.guided", "policy")
    drafted = ("words.*.unguided", "words.*.spoken", "words.*.verdict")
    return (
        *(guided if recipe.respond.guidance else ()),
        *(drafted if posterior and posterior.rank_by == "spoken" else ()),
        # In a run that trains, earlier stages depend on these, too.
        *(("words.*.alpaca",) if alpaca else ()),
        *(("words.*.begin_with",) if recipe.respond.prefill else ()),
    )


STAGE = Stage(
    "respond",
    outputs=("arms.json", "probes", "responses"),
    keys=("respond", "evaluate"),
    check=check,
    stays=lambda redo: [f"{arm}.jsonl" for arm in unchanged_arms(redo)],
    more_keys=_more_keys,
    evaluates=True,
)
