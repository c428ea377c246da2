"""Forgetting: what does training cost in ability and in variety?

Before and after, on prompts and answers that no arm was trained on: how likely the model finds the
reference answers (perplexity), the judge's Helpful Score, and how varied its own answers are:
distinct-n (Li et al. 2016, arXiv 1510.03055) and how little they resemble one another (after
self-BLEU, Zhu et al. 2018, arXiv 1802.01886; here the mean cosine of word 1- and 2-grams, which has
no order of references to choose). Named tasks come from lm-evaluation-harness, an extra.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp, expm1
from pathlib import Path
from typing import Any

from pydantic import Field

from setbacks.data.instructions import instructions
from setbacks.errors import InputError
from setbacks.measure.formatting import FINE_CHANGE, SCORE, with_interval
from setbacks.measure.metrics import ALPHA, TITLES
from setbacks.measure.statistics import Difference, Estimate, holm, mean, paired_difference
from setbacks.methods import example
from setbacks.recipe import Recipe, Section
from setbacks.records import Arm, Example, Instruction
from setbacks.report.page import Findings, Picture, Table
from setbacks.report.plots import heatmap
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.session import Session
from setbacks.studies import Study, at_least
from setbacks.studies.likelihood import read
from setbacks.studies.scores import difference, estimate, gather
from setbacks.studies.variants import each, variant
from setbacks.text import words_of

FEWEST = 10  # helpful prompts with an answer: below, nothing but ruin would be seen
UNTRAINED = Arm.untrained()
# In the table of changes up is better, for every measure.
SHOWN = {
    "likelihood": "log-likelihood",
    "helpful_score": TITLES["helpful_score"],
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "unlikeness": "unlikeness",
}


class Forgetting(Study):
    """Measure what training costs in ability and in variety."""

    title = "forgetting"
    question = "What does training cost in ability and in variety?"

    class Options(Section):
        """Options of `setbacks study forgetting`."""

        methods: list[str] = Field(
            ["mistake_analysis", "sft"],
            description="Methods to compare with the untrained model.",
            min_length=1,
        )
        tasks: list[str] = Field(
            [],
            description="Tasks of lm-evaluation-harness; needs `pip install 'setbacks[lm-eval]'`.",
        )
        task_folder: str | None = Field(
            None, description="Folder with your task files for `tasks`."
        )
        task_limit: int | None = Field(
            None, ge=1, description="Maximum number of questions per task; null: all."
        )

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train each method, and measure its ability and variety against the untrained model's.

        Raises:
            InputError: there are too few helpful prompts with answers, some are trained on, or
                tasks are named and the harness is not installed or does not know them.
        """
        if options.tasks:
            _known(options)
        suites = [s.model_dump(mode="json") for s in recipe.respond.suites if s.kind == "helpful"]
        held_out = {"source": "builtin:helpful", "split": "test", "shuffle": 0, "limit": 40}
        overrides = {
            "respond.suites": suites
            or [{"name": "helpful", "kind": "helpful", "sources": [held_out]}],
            "respond.guidance": False,
            "respond.posterior": None,
        }
        variants = [
            variant(recipe, f"{m}.0", {**overrides, "train.method": m}) for m in options.methods
        ]
        asked = [i for s in variants[0].recipe.respond.suites for i in instructions(s.sources)]
        held = list({i.id: i for i in asked if i.answer}.values())
        at_least(len(held), FEWEST, "helpful prompts with an answer")
        if both := {i.id for i in asked} & {i.id for i in instructions(recipe.train.helpful)}:
            raise InputError(
                f"{len(both)} helpful prompts of respond.suites are in train.helpful too; keep "
                "them apart, with split: train and split: test for instance"
            )
        done = list(each(folder, variants, "judge", show, jobs=recipe.jobs))
        likely: dict[Arm, list[float]] = {}
        texts: dict[Arm, list[list[str]]] = {}
        tasks: dict[Arm, dict[str, list[float]]] = {}
        trained = [Arm.of_method(method) for method in options.methods]
        for after, (_, path) in zip(trained, done, strict=True):
            with RunFolder(path) as opened, Session(opened, show) as run:
                arms = {UNTRAINED: None, after: run.path / "adapter"}
                adapters = {arm.name: adapter for arm, adapter in arms.items()}
                likelihoods = read(run, adapters, [_example(i) for i in held])
                responses = opened.responses()
                for arm, adapter in arms.items():
                    likely[arm] = likelihoods[arm.name]
                    rows = sorted(responses[arm.name], key=lambda r: (r.suite, r.instruction_id))
                    texts[arm] = [words_of(r.text) for r in rows]
                    if options.tasks and arm not in tasks:
                        tasks[arm] = _tasks(run, options, arm, adapter)
        spread = {
            arm: variety(rows) for arm, rows in zip(texts, cut(list(texts.values())), strict=True)
        }
        values: dict[Arm, dict[str, Estimate]] = {
            arm: {
                "perplexity": _perplexity(likely[arm]),
                **{name: found.estimate() for name, found in spread[arm].items()},
            }
            for arm in texts
        }
        changes: dict[Arm, dict[str, Difference]] = {
            arm: {
                "likelihood": paired_difference(likely[arm], likely[UNTRAINED]),
                **{
                    name: found.minus(spread[UNTRAINED][name])
                    for name, found in spread[arm].items()
                },
            }
            for arm in trained
        }
        judged = {spec.called: gather(done, spec.called)["helpful_score"] for spec in recipe.judges}
        scored = {judge: scores for judge, scores in judged.items() if scores[UNTRAINED].prompts}
        for judge, scores in scored.items():
            title = "helpful_score" + (f" by {judge}" if len(scored) > 1 else "")
            by_arm = {arm: {"helpful_score": scores[arm]} for arm in texts}
            for arm, row in values.items():
                row[title] = estimate("helpful_score", by_arm[arm])
            for arm, moved in changes.items():
                moved[title] = difference("helpful_score", by_arm[arm], by_arm[UNTRAINED])
        for title in tasks.get(UNTRAINED, {}):
            for arm, row in values.items():
                row[title] = mean(tasks[arm][title])
            for arm, moved in changes.items():
                moved[title] = paired_difference(
                    *(_outcomes(tasks[a][title]) for a in (arm, UNTRAINED))
                )
        columns = list(changes[trained[0]])
        cells = [
            [relative(values[UNTRAINED].get(name), d) for name, d in row.items()]
            for row in changes.values()
        ]
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=[describe_changes(changes)],
            tables=[
                Table(
                    "Before and after",
                    ["Model", *map(_title, values[UNTRAINED])],
                    [
                        [a.label, *(with_interval(v, SCORE) for v in row.values())]
                        for a, row in values.items()
                    ],
                    f"Perplexity of {len(held)} held-out answers (lower is better), and the "
                    "model's own answers; 95 % intervals over prompts.",
                ),
                Table(
                    "Change against the untrained model, prompt by prompt",
                    ["Model", *map(_title, columns)],
                    [
                        [a.label, *(with_interval(d, FINE_CHANGE) for d in row.values())]
                        for a, row in changes.items()
                    ],
                    "Up is better. Log-likelihood in nats a token; the others as above.",
                ),
            ],
            pictures=[
                Picture(
                    "Change in % of the untrained model's value",
                    heatmap(
                        [arm.label for arm in trained],
                        [_title(c) for c in columns],
                        cells,
                        "f",
                        "Change in %",
                    ),
                    "Log-likelihood: change of a token's likelihood. Up is better; bold: beyond "
                    "chance by itself.",
                )
            ],
            method=[
                "Perplexity is e to the mean over prompts of each answer's own mean loss, the "
                "prompt given. Distinct-n falls with length, so the answers of all models to a "
                "prompt are cut to the shortest before variety is measured; unlikeness is 1 minus "
                "the mean cosine of two answers' word 1- and 2-grams. Intervals of variety are by "
                "jackknife over prompts.",
                *([] if scored else ["No judge of the recipe gives Helpful Scores; `llm` does."]),
            ],
            data={
                "held_out": len(held),
                "values": {arm.name: row for arm, row in values.items()},
                "changes": {arm.name: row for arm, row in changes.items()},
            },
        )


def _example(asked: Instruction) -> Example:
    return example("helpful", asked.text, asked.answer or "", [asked.id])


def _perplexity(values: Sequence[float]) -> Estimate:
    found = mean([-value for value in values])
    value, low, high = (None if end is None else exp(end) for end in found[:3])
    return Estimate(value, low, high, found.n)


class Jackknifed:
    """A statistic of a whole list, and what it is without each element in turn."""

    def __init__(self, value: float, without: Sequence[float]) -> None:
        self.value, self.without = value, without

    def _error(self, without: Any) -> float:
        import numpy as np

        n = len(without)
        return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))

    def estimate(self) -> Estimate:
        """Return the statistic, a share, with its interval."""
        import numpy as np

        half = 1.96 * self._error(np.asarray(self.without))
        low, high = max(self.value - half, 0.0), min(self.value + half, 1.0)
        return Estimate(self.value, low, high, len(self.without))

    def minus(self, other: Jackknifed) -> Difference:
        """Return the difference to the same statistic of a list paired with this one."""
        import numpy as np
        from scipy.stats import norm

        error = self._error(np.asarray(self.without) - np.asarray(other.without))
        value, half = self.value - other.value, 1.96 * error
        p = float(2 * norm.sf(abs(value) / error)) if error else 1.0 if value == 0 else 0.0
        return Difference(value, value - half, value + half, len(self.without), p)


def cut(arms: Sequence[Sequence[Sequence[str]]]) -> list[list[Sequence[str]]]:
    """Cut the answers of all arms to a prompt to the shortest of them.

    Args:
        arms: words by arm and prompt, with the same prompts in the same order.
    """
    least = [min(map(len, row)) for row in zip(*arms, strict=True)]
    return [[words[:n] for words, n in zip(rows, least, strict=True)] for rows in arms]


def variety(answers: Sequence[Sequence[str]]) -> dict[str, Jackknifed]:
    """Measure how varied answers are: distinct-1, distinct-2, and how far apart in words.

    Args:
        answers: the words of each; at least 3.

    Returns:
        Shares in [0, 1]: distinct n-grams of all, and 1 minus the mean pairwise cosine of the
        counts of 1- and 2-grams.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    grams = {n: [[*zip(*(a[i:] for i in range(n)), strict=False)] for a in answers] for n in (1, 2)}
    both = [[*map(str, a), *map(str, b)] for a, b in zip(grams[1], grams[2], strict=True)]
    found = {f"distinct_{n}": _distinct(rows) for n, rows in grams.items()}
    if not any(both):
        return found | {"unlikeness": Jackknifed(0.0, [0.0] * len(answers))}
    x = CountVectorizer(analyzer=lambda row: row).fit_transform(both).astype(float)
    x = x.toarray() / np.maximum(np.sqrt(x.multiply(x).sum(axis=1)), 1e-12)
    far = 1 - np.asarray(x @ x.T)
    np.fill_diagonal(far, 0)
    n, of_each = len(far), far.sum(axis=1)
    without = (of_each.sum() - 2 * of_each) / ((n - 1) * (n - 2))
    return found | {"unlikeness": Jackknifed(float(of_each.sum() / (n * (n - 1))), without)}


def _distinct(rows: Sequence[Sequence[Any]]) -> Jackknifed:
    total = Counter(gram for row in rows for gram in row)
    number, size = len(total), total.total()
    own = [Counter(row) for row in rows]
    without = [
        (number - sum(total[gram] == k for gram, k in row.items())) / max(size - row.total(), 1)
        for row in own
    ]
    return Jackknifed(number / max(size, 1), without)


def relative(base: Estimate | None, found: Difference) -> Difference:
    """Return a change as a share of the value before; without a base it is one of logarithms.

    Args:
        base: the value before; None for the change of a logarithm.
        found: the change.
    """

    def scaled(end: float | None) -> float | None:
        if end is None or base is None:
            return None if end is None else expm1(end)
        return end / base.value if base.value else None

    value, low, high = map(scaled, found[:3])
    return Difference(value, low, high, found.n, found.p)


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


def _title(name: str) -> str:
    head, by, judge = name.partition(" by ")
    return SHOWN.get(head, head) + by + judge


# -- named tasks ------------------------------------------------------------------------------


def _known(options: Forgetting.Options) -> Any:
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
    """Have an arm do the named tasks, or take up what it did of the very same ones."""
    asked = options.model_dump(mode="json", exclude={"methods"})
    kept = run.path / f"tasks-{arm.name}.json"
    if kept.exists():
        held = json.loads(kept.read_text(encoding="utf-8"))
        if held["told"] == asked:
            return dict(held["found"])
    found = harness(run.recipe, options, adapter)
    run.write_text(kept.name, json.dumps({"told": asked, "found": found}) + "\n")
    return found


def harness(
    recipe: Recipe, options: Forgetting.Options, adapter: Path | None = None
) -> dict[str, list[float]]:
    """Carry out tasks of lm-evaluation-harness with a model.

    Args:
        recipe: names the model.
        options: the tasks.
        adapter: a PEFT folder; None for the untrained model.

    Returns:
        By task and metric, what each question scored, in the questions' order.

    Raises:
        InputError: the harness is not installed, does not know a task, or the task's metrics are of
            the whole and not of each question.
    """
    manager = _known(options)
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
    found: dict[str, list[float]] = {}
    for task, rows in results["samples"].items():
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            for metric in row["metrics"]:
                if isinstance(row[metric], int | float):
                    found.setdefault(f"{task} {metric}", []).append(float(row[metric]))
        if not any(title.startswith(f"{task} ") for title in found):
            raise InputError(f"study.tasks: {task} does not score each question; name another")
    return found


def _outcomes(values: Sequence[float]) -> list[bool] | list[float]:
    """Right and wrong as such, so that they are tested as such."""
    return [v == 1 for v in values] if {*values} <= {0.0, 1.0} else list(values)
