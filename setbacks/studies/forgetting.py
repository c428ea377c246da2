"""Forgetting: what does training cost in ability and in variety?

Before and after, on prompts and answers that no arm was trained on: how likely the model finds the
reference answers (perplexity), the judge's Helpful Score, and how varied its own answers are. Named
tasks come from lm-evaluation-harness, an extra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp, expm1
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from setbacks.data.instructions import instructions
from setbacks.errors import InputError
from setbacks.files import read_json
from setbacks.measure.formatting import FINE_CHANGE, SCORE, with_interval
from setbacks.measure.metrics import ALPHA, TITLES
from setbacks.measure.statistics import Difference, Estimate, holm, mean, paired_difference
from setbacks.methods import example
from setbacks.recipe import Recipe, Section
from setbacks.recipe.parts import unique
from setbacks.records import Arm, Example
from setbacks.report.page import Findings, Picture, Table
from setbacks.report.plots import heatmap
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.session import Session
from setbacks.studies import Study, at_least, check_methods, methods_of
from setbacks.studies.likelihood import read
from setbacks.studies.scores import Scores, difference, estimate, gather
from setbacks.studies.variants import Variant, each, variant
from setbacks.studies.variety import Jackknifed, cut, variety
from setbacks.text import words_of

FEWEST = 10  # helpful prompts with an answer; with fewer, only a ruined model would be noticed
UNTRAINED = Arm.untrained()
# In the table of changes up is better, for every measure.
SHOWN = {
    "likelihood": "log-likelihood",
    "helpful_score": TITLES["helpful_score"],
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "unlikeness": "unlikeness",
}
METHOD = (
    "Perplexity is e to the mean over prompts of each answer's own mean loss, the "
    "prompt given. Distinct-n falls with length, so the answers of all models to a "
    "prompt are cut to the shortest before variety is measured; unlikeness is 1 minus "
    "the mean cosine of two answers' word 1- and 2-grams. Intervals of variety are by "
    "jackknife over prompts. All intervals and tests are over prompts, not over trainings: each "
    "method was trained once."
)
UNSCORED = "No judge of the recipe gives Helpful Scores; `llm` does."


class Forgetting(Study):
    """Measure what training costs in ability and in variety."""

    title = "forgetting"
    question = "What does training cost in ability and in variety?"
    replaces = ("respond.posterior",)

    class Options(Section):
        """Options of `setbacks study forgetting`."""

        methods: Annotated[list[str] | None, unique()] = Field(
            None,
            description="Methods to compare with the untrained model; null: the recipe's, and "
            "`sft`.",
            min_length=1,
        )
        tasks: Annotated[list[str], unique()] = Field(
            [],
            description="Tasks of lm-evaluation-harness; needs `pip install 'setbacks[lm-eval]'`.",
        )
        task_folder: str | None = Field(
            None, description="Folder with your task files for `tasks`."
        )
        task_limit: int | None = Field(
            None, ge=1, description="Maximum number of questions per task; null: all."
        )

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe with each method, the helpful prompts, and the names of the tasks.

        Raises:
            InputError: there are too few helpful prompts with answers, some are trained on, or
                tasks are named and the harness is not installed or does not know them.
        """
        check_methods(recipe, options.methods)
        if options.tasks:
            _task_manager(options)
        _held_out(_variants(recipe, options)[0].recipe)

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train each method, and measure its ability and variety against the untrained model's."""
        variants = _variants(recipe, options)
        held_out = _held_out(variants[0].recipe)
        done = list(each(folder, variants, "judge", show, jobs=recipe.jobs))
        models = _measure(options, done, held_out, show)
        scores = _helpful_scores(recipe, done)
        answers = cut([model.answers for model in models.values()])
        spread = dict(zip(models, map(variety, answers), strict=True))
        values = _values(models, spread, scores)
        changes = _changes(models, spread, scores)
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=[describe_changes(changes)],
            tables=_tables(values, changes, len(held_out)),
            pictures=[_picture(values[UNTRAINED], changes)],
            method=[METHOD, *([] if scores else [UNSCORED])],
            data={
                "held_out": len(held_out),
                "values": {arm.name: row for arm, row in values.items()},
                "changes": {arm.name: row for arm, row in changes.items()},
            },
        )


# -- measurements -----------------------------------------------------------------------------


class Measured(NamedTuple):
    """What was measured of one model."""

    likelihoods: list[float]  # of the held-out answers, in nats per token
    answers: list[list[str]]  # its own answers, as words
    tasks: dict[str, list[float]]  # scores of each question, by task and metric


def _variants(recipe: Recipe, options: Forgetting.Options) -> list[Variant]:
    """A run for each method, on the recipe's helpful suites or the built-in test prompts."""
    suites = [s.model_dump(mode="json") for s in recipe.respond.suites if s.kind == "helpful"]
    builtin = {"source": "builtin:helpful", "split": "test", "shuffle": 0, "limit": 40}
    overrides = {
        "respond.suites": suites or [{"name": "helpful", "kind": "helpful", "sources": [builtin]}],
        "respond.guidance": False,
        "respond.posterior": None,
    }
    return [
        variant(recipe, f"{name}.0", {**overrides, "train.method": name})
        for name in methods_of(recipe, options.methods)
    ]


def _held_out(recipe: Recipe) -> list[Example]:
    """The reference answers of a variant's suites, which no method may learn from."""
    prompts = [i for s in recipe.respond.suites for i in instructions(s.sources)]
    answered = {i.id: i for i in prompts if i.answer}
    at_least(len(answered), FEWEST, "helpful prompts with an answer")
    if both := {i.id for i in prompts} & {i.id for i in instructions(recipe.train.helpful)}:
        raise InputError(
            f"{len(both)} helpful prompts of respond.suites are in train.helpful too; keep "
            "them apart, with split: train and split: test for instance"
        )
    return [example("helpful", i.text, i.answer or "", [i.id]) for i in answered.values()]


def _measure(
    options: Forgetting.Options,
    done: Sequence[tuple[Variant, Path]],
    held_out: Sequence[Example],
    show: Show | None,
) -> dict[Arm, Measured]:
    """Measure the untrained model and every trained one, the untrained model first."""
    models: dict[Arm, Measured] = {}
    for trained, path in done:
        method = trained.recipe.train.method
        with RunFolder(path) as folder, Session(folder, show) as run:
            adapters = {UNTRAINED: run.recipe.current, trained_arm(method): run.path / "adapter"}
            by_name = {arm.name: adapter for arm, adapter in adapters.items()}
            likelihoods = read(run, by_name, held_out)
            responses = folder.responses()
            for arm, adapter in adapters.items():
                rows = sorted(responses[arm.name], key=lambda r: (r.suite, r.instruction_id))
                answers = [words_of(r.text) for r in rows]
                if arm in models:  # the untrained model does the tasks only once
                    tasks = models[arm].tasks
                else:
                    tasks = _tasks(run, options, arm, adapter) if options.tasks else {}
                models[arm] = Measured(likelihoods[arm.name], answers, tasks)
    return models


def _helpful_scores(
    recipe: Recipe, done: Sequence[tuple[Variant, Path]]
) -> dict[str, Mapping[Arm, Scores]]:
    """The Helpful Scores of every arm, for each judge that gives any, by the column's name."""
    by_judge = {spec.called: gather(done, spec.called)["helpful_score"] for spec in recipe.judges}
    scored = {judge: scores for judge, scores in by_judge.items() if scores[UNTRAINED].prompts}
    return {
        "helpful_score" + (f" by {judge}" if len(scored) > 1 else ""): scores
        for judge, scores in scored.items()
    }


def _values(
    models: Mapping[Arm, Measured],
    spread: Mapping[Arm, Mapping[str, Jackknifed]],
    scores: Mapping[str, Mapping[Arm, Scores]],
) -> dict[Arm, dict[str, Estimate]]:
    """Every measure of every model."""
    return {
        arm: {
            "perplexity": _perplexity(model.likelihoods),
            **{name: statistic.estimate() for name, statistic in spread[arm].items()},
            **{
                name: estimate("helpful_score", {"helpful_score": by_arm[arm]})
                for name, by_arm in scores.items()
            },
            **{name: mean(results) for name, results in model.tasks.items()},
        }
        for arm, model in models.items()
    }


def _changes(
    models: Mapping[Arm, Measured],
    spread: Mapping[Arm, Mapping[str, Jackknifed]],
    scores: Mapping[str, Mapping[Arm, Scores]],
) -> dict[Arm, dict[str, Difference]]:
    """The change of every measure by training, prompt by prompt."""
    before = models[UNTRAINED]
    return {
        arm: {
            "likelihood": paired_difference(model.likelihoods, before.likelihoods),
            **{
                name: statistic.minus(spread[UNTRAINED][name])
                for name, statistic in spread[arm].items()
            },
            **{
                name: difference(
                    "helpful_score",
                    {"helpful_score": by_arm[arm]},
                    {"helpful_score": by_arm[UNTRAINED]},
                )
                for name, by_arm in scores.items()
            },
            **{
                name: paired_difference(_outcomes(results), _outcomes(before.tasks[name]))
                for name, results in model.tasks.items()
            },
        }
        for arm, model in models.items()
        if arm != UNTRAINED
    }


# -- tables and picture -----------------------------------------------------------------------


def _tables(
    values: Mapping[Arm, Mapping[str, Estimate]],
    changes: Mapping[Arm, Mapping[str, Difference]],
    number: int,
) -> list[Table]:
    return [
        Table(
            "Before and after",
            ["Model", *map(_title, values[UNTRAINED])],
            [
                [arm.label, *(with_interval(v, SCORE) for v in row.values())]
                for arm, row in values.items()
            ],
            f"Perplexity of {number} held-out answers (lower is better), and the "
            "model's own answers; 95 % intervals over prompts.",
        ),
        Table(
            "Change against the untrained model, prompt by prompt",
            ["Model", *map(_title, _measures(changes))],
            [
                [arm.label, *(with_interval(d, FINE_CHANGE) for d in row.values())]
                for arm, row in changes.items()
            ],
            "Up is better. Log-likelihood in nats a token; the others as above.",
        ),
    ]


def _picture(
    before: Mapping[str, Estimate], changes: Mapping[Arm, Mapping[str, Difference]]
) -> Picture:
    cells = [
        [relative(before.get(name), change) for name, change in row.items()]
        for row in changes.values()
    ]
    return Picture(
        "Change in % of the untrained model's value",
        heatmap(
            [arm.label for arm in changes],
            [_title(name) for name in _measures(changes)],
            cells,
            "f",
            "Change in %",
        ),
        "Log-likelihood: change of a token's likelihood. Up is better; bold: beyond "
        "chance by itself.",
    )


def _measures(changes: Mapping[Arm, Mapping[str, Difference]]) -> list[str]:
    """The measures of the table of changes, the same for every model."""
    return list(next(iter(changes.values())))


def _title(name: str) -> str:
    head, by, judge = name.partition(" by ")
    return SHOWN.get(head, head) + by + judge


def describe_changes(changes: Mapping[Arm, Mapping[str, Difference]]) -> str:
    """Say what moved beyond noise, all tests corrected together (Holm)."""
    tests = [(arm, name, d) for arm, row in changes.items() for name, d in row.items()]
    corrected = holm([1.0 if d.p is None else d.p for *_, d in tests])
    lost: list[str] = []
    gained: list[str] = []
    for (arm, name, d), p in zip(tests, corrected, strict=True):
        if p < ALPHA:
            moved = f"{_title(name)} of {arm.label} {with_interval(d, FINE_CHANGE)}"
            (lost if (d.value or 0) < 0 else gained).append(moved)
    losses = f"Lost beyond noise: {', '.join(lost)}." if lost else "No loss beyond noise."
    return losses + (f" Gained: {', '.join(gained)}." if gained else "")


# -- statistics -------------------------------------------------------------------------------


def _perplexity(values: Sequence[float]) -> Estimate:
    loss = mean([-value for value in values])
    value, low, high = (None if end is None else exp(end) for end in loss[:3])
    return Estimate(value, low, high, loss.n)


def relative(base: Estimate | None, change: Difference) -> Difference:
    """Return a change as a share of the value before; without a base it is one of logarithms.

    Args:
        base: the value before; None for the change of a logarithm.
        change: the change.
    """

    def scaled(end: float | None) -> float | None:
        if end is None or base is None:
            return None if end is None else expm1(end)
        return end / base.value if base.value else None

    value, low, high = map(scaled, change[:3])
    return Difference(value, low, high, change.n, change.p)


# -- named tasks ------------------------------------------------------------------------------


def _task_manager(options: Forgetting.Options) -> Any:
    """The harness's task manager, which knows every task that is named."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            "study.tasks: lm-evaluation-harness is not installed; pip install 'setbacks[lm-eval]'"
        ) from None
    manager = TaskManager(include_path=options.task_folder)
    if unknown := [task for task in options.tasks if not manager.match_tasks([task])]:
        raise InputError(f'study.tasks: the harness knows no "{unknown[0]}" (`lm-eval ls tasks`)')
    return manager


def _tasks(
    run: Session, options: Forgetting.Options, arm: Arm, adapter: Path | None
) -> dict[str, list[float]]:
    """Return an arm's results on the named tasks, saved or new."""
    settings = options.model_dump(mode="json", exclude={"methods"})
    path = run.path / f"tasks-{arm.name}.json"
    if path.exists():
        saved = read_json(path, "delete it, and the same command writes it again")
        if saved["told"] == settings:
            return dict(saved["found"])
    results = harness(run.recipe, options, adapter)
    run.write_text(path.name, json.dumps({"told": settings, "found": results}) + "\n")
    return results


def harness(
    recipe: Recipe, options: Forgetting.Options, adapter: Path | None = None
) -> dict[str, list[float]]:
    """Run tasks of lm-evaluation-harness on a model.

    Args:
        recipe: names the model.
        options: the tasks.
        adapter: a PEFT folder; None for the untrained model.

    Returns:
        The score of each question, in the questions' order, by task and metric.

    Raises:
        InputError: the harness is not installed, does not know a task, or a task does not score
            each question.
    """
    manager = _task_manager(options)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from setbacks.models.adapters import attached
    from setbacks.models.loading import load_model, load_tokenizer

    model = load_model(recipe.model)
    if adapter is not None:
        model = attached(model, adapter)
    results = simple_evaluate(
        model=HFLM(
            pretrained=model.eval(),
            tokenizer=load_tokenizer(recipe.model),
            batch_size=recipe.train.batch_size,
        ),
        tasks=options.tasks,
        task_manager=manager,
        limit=options.task_limit,
        bootstrap_iters=0,  # the intervals here are of the questions' own scores
        random_seed=recipe.seed,
    )
    scores: dict[str, list[float]] = {}
    for task, rows in results["samples"].items():
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            for metric in row["metrics"]:
                if isinstance(row[metric], int | float):
                    scores.setdefault(f"{task} {metric}", []).append(float(row[metric]))
        if not any(title.startswith(f"{task} ") for title in scores):
            raise InputError(f"study.tasks: {task} does not score each question; name another")
    return scores


def _outcomes(values: Sequence[float]) -> list[bool] | list[float]:
    """Right and wrong as such, so that they are tested as such."""
    return [v == 1 for v in values] if {*values} <= {0.0, 1.0} else list(values)
