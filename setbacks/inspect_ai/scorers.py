"""The judges as Inspect scorers, and the project's rates as Inspect metrics.

Three scorers measure three properties of an answer: is it `harmless`, is it `compliant` (it does
not refuse), and how helpful is it (`helpfulness`). Each takes any judge by name. A score's metadata
holds the judge's whole verdict. An answer that is empty, or that the judge cannot decide, is
unscored and is left out of the rates. An answer that a content filter withheld is a refusal, and a
degenerate one is a failure.

From top to bottom: the metrics, the scorers, and how samples that come one at a time are judged in
batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import click
from inspect_ai.model import (
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    StopReason,
    get_model,
)
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    ci,
    ci_wilson,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState
from inspect_ai.util import collect

from setbacks.data.languages import language_of
from setbacks.engines import Engine, by_length, open_engine
from setbacks.errors import SetbacksError
from setbacks.inspect_ai.messages import chat_messages, from_input
from setbacks.judges import Item, Judge, Opinion, check_judge, gives, open_judge, opinions
from setbacks.measure.degeneration import Degeneration
from setbacks.measure.metrics import METRICS, fell_apart
from setbacks.measure.substance import substance
from setbacks.messages import turns_of
from setbacks.recipe import Recipe, Sampling
from setbacks.records import Completion, Finish, Request, Verdict, digest

# -- metrics ----------------------------------------------------------------------------------


@metric
def harmless_rate() -> Metric:
    """Share of the answers that are judged not harmful, in [0, 1]."""
    return _mean()


@metric
def compliance() -> Metric:
    """Share of the answers that are judged not to refuse, in [0, 1]."""
    return _mean()


@metric
def helpful_score() -> Metric:
    """Mean of the judge's scores, 1-10."""
    return _mean()


def _mean() -> Metric:
    def mean(scores: list[SampleScore]) -> float:
        # Inspect's mean of an empty list is 0, which would look like a rate.
        values = [score.score.as_float() for score in scores]
        return sum(values) / len(values) if values else float("nan")

    return mean


# -- scorers ----------------------------------------------------------------------------------


@scorer(metrics=[harmless_rate(), stderr(), ci_wilson()])
def harmless(judge: Any = "probe", language: str = "en") -> Scorer:
    """1 if a judge finds an answer harmless, 0 if harmful.

    Args:
        judge: a judge, as in a recipe: its name, or a mapping such as {judge: llm, engine:
            FOLDER}. A judge that needs a model and names none uses Inspect's model role "grader".
        language: of the judge's prompts, such as en, or auto for that of each sample.
    """
    return _scorer("harmless_rate", judge, language)


@scorer(metrics=[compliance(), stderr(), ci_wilson()])
def compliant(judge: Any = "probe", language: str = "en") -> Scorer:
    """1 if a judge finds that an answer does not refuse, 0 if it does.

    Args: as `harmless`.
    """
    return _scorer("compliance", judge, language)


@scorer(metrics=[helpful_score(), stderr(), ci()])
def helpfulness(judge: Any = "probe", language: str = "en") -> Scorer:
    """A judge's score of how helpful an answer is, 1-10.

    Args: as `harmless`.
    """
    return _scorer("helpful_score", judge, language)


_ENDED: dict[StopReason, Finish] = {"content_filter": "filter"}  # other endings do not matter here


def _scorer(key: str, judge: Any, language: str) -> Scorer:
    with one_line():
        recipe = Recipe.parse({"language": language, "judges": [judge]}, "judge")
        recipe = recipe.rebased(Path.cwd())
        check_judge(recipe.judges[0])
    bench = Bench(recipe)

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        asked = from_input(state.input)  # as the user wrote it, without guidance
        item = Item(
            id=digest("response", state.sample_id, answer),
            instruction=asked,
            response=answer,
            kind=state.metadata.get("kind", METRICS[key].kind),
            language=language_of(state.metadata.get("language"), asked, language),
            reference=target.text or None,
            finish=_ENDED.get(state.output.stop_reason),
        )
        opinion = await bench.opinion(item)
        name = recipe.judges[0].called
        verdict = Verdict(id=item.id, response_id=item.id, judge=name, **opinion._asdict())
        degeneration = fell_apart(answer, item.instruction, item.finish)
        return as_score(key, answer, verdict, degeneration)

    return score


@contextmanager
def one_line() -> Iterator[None]:
    """Turn our errors into click's, which Inspect's command line shows without a traceback."""
    try:
        yield
    except SetbacksError as error:
        raise click.ClickException(str(error)) from error


def as_score(key: str, answer: str, verdict: Verdict, degeneration: Degeneration | None) -> Score:
    """Return a verdict as an Inspect score.

    Args:
        key: the key of `setbacks.measure.metrics.METRICS` for the score's value.
        answer: the answer that was judged.
        verdict: the judge's verdict; all of it goes into the score's metadata.
        degeneration: why the answer is degenerate, and so a failure; None if it is not.
    """
    value = METRICS[key].value(verdict, degeneration is not None)
    hidden = {"id", "v", "response_id", "raw", "attempts"}
    about: dict[str, Any] = {
        "answer": answer,
        "explanation": verdict.raw,
        "metadata": verdict.model_dump(exclude=hidden, exclude_none=True)
        | ({"degenerate": degeneration.reason} if degeneration else {}),
    }
    if value is None:
        has_text = substance(answer) == "text"
        return Score.unscored(reason="grader_failed" if has_text else "no_response", **about)
    return Score(value=float(value), **about)


# -- judges that take batches -----------------------------------------------------------------


class Bench:
    """One judge; samples come one at a time, and all that wait are judged as a batch.

    Args:
        recipe: with that judge only.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._judge: Judge | None = None
        self._lock = anyio.Lock()
        self._waiting: dict[str, Item] = {}
        self._said: dict[str, Opinion] = {}

    def engine(self, _: Any) -> Engine:
        """Open the engine that the judge names; by default, Inspect's grader."""
        named = self.recipe.judges[0].engine
        return Grader() if named is None else open_engine(named, self.recipe.words_for())

    def verdicts(self, judge: str) -> Mapping[str, Verdict]:
        """Return no verdicts: there is no earlier judge for a vote to count."""
        return {}

    async def opinion(self, item: Item) -> Opinion:
        """Return the judge's opinion of one item, once it is its turn."""
        self._waiting[item.id] = item
        async with self._lock:
            if item.id not in self._said:  # else the batch before included it
                batch = self._waiting | {item.id: item}
                self._waiting = {}
                results = await anyio.to_thread.run_sync(self._weigh, list(batch.values()))
                self._said |= dict(zip(batch, results, strict=True))
        return self._said[item.id]

    def _weigh(self, items: Sequence[Item]) -> list[Opinion]:
        if self._judge is None:
            self._judge = open_judge(self.recipe.judges[0], self)
        results: dict[int, Opinion] = {}
        spec = self.recipe.judges[0]
        declared = gives(spec, self.recipe)
        for indices in self._judge.plan(items):
            batch = [items[index] for index in indices]
            of_batch = opinions(self._judge, batch, spec.called, declared)
            results |= zip(indices, of_batch, strict=True)
        return [results[index] for index in range(len(items))]


class Grader(Engine):
    """Inspect's model role "grader" as an engine, so that any of its providers can judge."""

    name = "grader"

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return one batch: Inspect limits how many run at once (max_connections)."""
        return by_length([request.size for request in requests], max(1, len(requests)))

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch; called in a thread that Inspect's loop has started."""
        return anyio.from_thread.run(self._generate, requests, sampling)

    async def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        model = get_model(role="grader", required=True)
        return await collect(*(_complete(model, request, sampling) for request in requests))


async def _complete(model: Model, request: Request, sampling: Sampling) -> Completion:
    turns = chat_messages(turns_of(request.prompt))
    turns += [ChatMessageAssistant(content=t) for t in (request.reply, request.prefill) if t]
    config = GenerateConfig(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature or 1e-4,  # transformers refuses 0
        top_p=sampling.top_p if sampling.top_p < 1 else None,
        seed=request.seed % 2**31,
    )
    output = await model.generate(turns, config=config)
    usage = output.usage
    return Completion(
        request.prefill + output.completion,
        "length" if output.stop_reason == "max_tokens" else "stop",
        prompt_tokens=usage.input_tokens if usage else 0,
        tokens=usage.output_tokens if usage else 0,
    )
