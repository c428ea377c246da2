"""A run's responses as Inspect logs, which its viewer opens and its scorers can score again.

One log for each arm and suite, with the scores of every judge, people included, that decides what
the suite measures. The logs hold harmful text, as the run does: only their owner can read them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalPlan,
    EvalSample,
    EvalSpec,
    EvalStats,
    recompute_metrics,
    write_eval_log,
)
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    StopReason,
)

from setbacks.inspect_ai.messages import as_input, chat_messages
from setbacks.inspect_ai.scorers import as_score
from setbacks.judges import gives
from setbacks.measure.metrics import MAIN, METRICS, counted, fell_apart
from setbacks.messages import turns_of, with_system
from setbacks.prompts import ask
from setbacks.recipe import Recipe
from setbacks.records import Arm, Kind, Response, Verdict, digest
from setbacks.runs.folder import Run
from setbacks.runs.results import collect

ENDED: dict[str | None, StopReason] = {
    "stop": "stop",
    "length": "max_tokens",
    "filter": "content_filter",
    "refusal": "content_filter",
}


def write(run: Run, place: Path) -> None:
    """Write a run's responses as logs, ``ARM.SUITE.eval``.

    Args:
        run: the run; it is only read.
        place: a folder for the logs.

    Raises:
        InputError: there are no responses or no verdicts yet.
    """
    responses, verdicts = collect(run)
    for arm in run.arms():
        of_arm = {judge: of_judge for (of, judge), of_judge in verdicts.items() if of == arm.name}
        written = (run.path / "responses" / f"{arm.name}.jsonl").stat().st_mtime
        when = datetime.fromtimestamp(written, UTC)
        for log in logs(run.recipe, arm, responses[arm.name], of_arm, when):
            write_eval_log(log, place / f"{arm.name}.{log.eval.task}.eval")


def logs(
    recipe: Recipe,
    arm: Arm,
    responses: Sequence[Response],
    verdicts: Mapping[str, Sequence[Verdict]],
    when: datetime,
) -> Iterator[EvalLog]:
    """Yield a log for each suite that an arm has answered.

    Args:
        recipe: of the run.
        arm: one of the run's.
        responses: of that arm.
        verdicts: on them, by judge.
        when: the responses were made.
    """
    by_judge = {judge: {v.response_id: v for v in own} for judge, own in verdicts.items()}
    declared = {spec.called: gives(spec, recipe) for spec in recipe.judges}
    system = _system(recipe, arm)
    for suite in dict.fromkeys(response.suite for response in responses):
        answered = [response for response in responses if response.suite == suite]
        first = answered[0]
        judges = [
            judge
            for judge, own in by_judge.items()
            if _says(
                MAIN[first.kind],
                [own[r.id] for r in answered if r.id in own],
                declared.get(judge),
            )
        ]
        log = EvalLog(
            status="success",
            eval=EvalSpec(
                created=when.isoformat(),
                run_id=digest("inspect", recipe.to_yaml()),
                task_id=digest("inspect", recipe.to_yaml(), arm.name, suite),
                task=suite,
                dataset=EvalDataset(
                    name=suite,
                    samples=len(answered),
                    sample_ids=[response.instruction_id for response in answered],
                ),
                model=_model(arm.name),
                config=EvalConfig(),
                packages={name: metadata.version(name) for name in ("setbacks", "inspect_ai")},
                metadata={
                    "run": recipe.name,
                    "arm": arm.name,
                    "label": arm.label,
                    "trained": arm.trained,
                    "way": arm.way,
                    "model": first.model,
                    "guided": first.guided,
                    "kind": first.kind,
                },
                scorers=[{"name": judge, "metrics": _metrics(first.kind)} for judge in judges],
            ),
            plan=EvalPlan(config=_config(recipe, first)),
            samples=[
                _sample(recipe, system, response, {j: by_judge[j].get(response.id) for j in judges})
                for response in answered
            ],
            stats=EvalStats(model_usage=_usage(answered)),
        )
        recompute_metrics(log)
        yield log


def _model(arm: str) -> str:
    """An arm's name as an Inspect model, of the provider `none`: nothing is generated again."""
    return f"none/{arm}"


def _says(key: str, verdicts: Sequence[Verdict], declared: Collection[str] | None) -> bool:
    """Whether a judge decides what a suite measures, as far as that is known."""
    if declared is not None:
        return key in declared and bool(verdicts)
    given = {name for name, m in METRICS.items() for v in verdicts if m.of(v) is not None}
    return key in given or bool(verdicts and not given)


def _metrics(kind: Kind) -> list[dict[str, str]]:
    """The metrics of a suite's scorer, by their names in Inspect."""
    main = METRICS[MAIN[kind]]
    interval = "ci_wilson" if main.is_rate else "ci"
    own = "harmless_rate" if main.kind in ("harmful", "hijacking") else MAIN[kind]
    names = (f"setbacks/{own}", "inspect_ai/stderr", f"inspect_ai/{interval}")
    return [{"name": name} for name in names]


def _config(recipe: Recipe, response: Response) -> GenerateConfig:
    """How tokens were drawn; unknown for answers from a file."""
    if response.finish is None:
        return GenerateConfig()
    sampling = recipe.respond.sampling
    return GenerateConfig(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )


def _system(recipe: Recipe, arm: Arm) -> str | None:
    """The system prompt of an arm's model; None if there is none or the model is unknown."""
    if not recipe.evaluate:
        return recipe.model.system
    models = [spec.model for spec in recipe.evaluate if spec.name == arm.model]
    return models[0].system if models and models[0] else None


def _sample(
    recipe: Recipe,
    system: str | None,
    response: Response,
    verdicts: Mapping[str, Verdict | None],
) -> EvalSample:
    guided = recipe.words_for(response.language)["guided"]
    instruction = response.instruction
    model = _model(response.arm)
    prompt = ask(guided, instruction) if response.guided else instruction
    reply = ChatMessageAssistant(content=_content(response), model=model, source="generate")
    usage = _usage([response])
    return EvalSample(
        uuid=response.id,
        id=response.instruction_id,
        epoch=1,
        input=as_input(instruction),
        target=response.reference or "",
        messages=[*chat_messages(with_system(turns_of(prompt), system)), reply],
        output=ModelOutput(
            model=model,
            choices=[
                ChatCompletionChoice(
                    message=reply, stop_reason=ENDED.get(response.finish, "unknown")
                )
            ],
            usage=usage.get(model),
        ),
        scores={
            judge: as_score(
                MAIN[response.kind],
                response.text,
                counted(response, verdict),
                fell_apart(response.text, response.instruction, response.finish, response.guidance),
            )
            for judge, verdict in verdicts.items()
            if verdict is not None
        },
        metadata={
            "kind": response.kind,
            "category": response.category,
            "language": response.language,
        },
        model_usage=usage,
    )


def _content(response: Response) -> str | list[Content]:
    """The text of an answer; with the thought before it, if there was one."""
    if response.thought is None:
        return response.text
    return [ContentReasoning(reasoning=response.thought), ContentText(text=response.text)]


def _usage(responses: Sequence[Response]) -> dict[str, ModelUsage]:
    """Tokens read and generated, by model; empty if they are unknown."""
    known = [(r.prompt_tokens, r.tokens) for r in responses]
    read = sum(prompt for prompt, _ in known if prompt is not None)
    generated = sum(tokens for _, tokens in known if tokens is not None)
    if not read + generated:
        return {}
    thought = [r.thought_tokens for r in responses if r.thought_tokens is not None]
    usage = ModelUsage(
        input_tokens=read,
        output_tokens=generated,
        total_tokens=read + generated,
        reasoning_tokens=sum(thought) if thought else None,
    )
    return {_model(responses[0].arm): usage}
