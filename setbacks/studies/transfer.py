"""Transfer: does what is learned from some categories of harm hold for others, and in Chinese?

Mistakes are induced and analyzed once. One model is trained on the mistakes of each group of
categories, and one on all of them, with equally many mistakes each; every one answers the prompts
of every group and, if requested, prompts in a language that it was not trained in. No model learns
the safe answers of the recipe's data, or examples of earlier runs: they are of all categories.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from setbacks.data import load
from setbacks.data.instructions import instructions
from setbacks.errors import InputError, nearest
from setbacks.measure.formatting import POINTS, with_interval
from setbacks.measure.metrics import ALPHA
from setbacks.measure.statistics import Difference, paired_difference
from setbacks.methods import examples_of, mistake_sources, open_method, unused
from setbacks.methods.corrections import best_of_each
from setbacks.methods.mistake_analysis import own_analyses
from setbacks.recipe import AUTO, Recipe, Section
from setbacks.recipe.parts import Seeds
from setbacks.records import Analysis, Arm
from setbacks.report.page import Findings, Picture, Table
from setbacks.report.plots import heatmap
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import Run
from setbacks.runs.progress import Show
from setbacks.studies import Study, at_least
from setbacks.studies.scores import Scores, difference, gather
from setbacks.studies.variants import each, seeded, variant

FEWEST = 8  # analyzed mistakes of a group, and prompts to test it on
# Examples that are of all categories, and may not be learned.
ALONE: dict[str, Any] = {"train.safe": [], "train.replay.runs": []}
UNTRAINED = Arm.untrained()
ALL = "all of them"
BUILTIN = {
    "en": ("builtin:redteam", "builtin:safe"),
    "zh": ("builtin:redteam_zh", "builtin:safe_zh"),
}


class Column(NamedTuple):
    """Prompts that an outcome is taken over: the metric, and which (suite, instruction id)."""

    metric: str
    prompts: frozenset[tuple[str, str]]


class Transfer(Study):
    """Measure whether training on some categories of harm helps with others, and in Chinese."""

    title = "transfer"
    question = "Does what is learned from some categories of harm hold for others?"
    replaces = ("train.categories", "respond.posterior")

    class Options(Section):
        """Options of `setbacks study transfer`."""

        groups: dict[str, list[str]] = Field(
            {},
            description="Categories to treat as one, such as {crime: [theft, fraud]}; {}: each "
            "category separately.",
        )
        to_language: Literal["en", "zh"] | None = Field(
            None, description="Also test on the built-in prompts in this language."
        )
        seeds: Seeds = Field(1, description="Trainings of each group, with different seeds.")

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe, its categories, and that its method learns from mistakes alone."""
        super().check(recipe, options)
        alone = variant(recipe, self.title, ALONE).recipe
        if {"categories", "most_analyses"} & unused(recipe):
            raise _unsuitable(recipe, "does not choose mistakes by their category")
        try:
            examples_of(open_method(alone), alone, ())
        except InputError:
            reason = "needs safe answers (train.safe), and those are of all categories"
            raise _unsuitable(recipe, reason) from None
        if recipe.language == AUTO:
            raise InputError(
                "language: this study compares prompts in the recipe's language with others; name "
                "one language, such as en"
            )
        whole = variant(recipe, self.title, _overrides(recipe, options)).recipe
        _enough_prompts(whole, _groups(recipe, options))

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train on the mistakes of each group, and test on all.

        Raises:
            InputError: a group has too few analyzed mistakes.
        """
        groups = _groups(recipe, options)
        overrides = _overrides(recipe, options)
        whole = variant(recipe, "analyses", overrides)
        ((_, path),) = each(folder, [whole], "analyze", show)
        number = _equal_number(recipe, path, groups)
        trained = groups | {ALL: [name for names in groups.values() for name in names]}
        arms = {group: _arm(group) for group in trained}
        changes = {
            arms[group].name: {
                **overrides,
                "train.categories": categories,
                "train.most_analyses": number,
            }
            for group, categories in trained.items()
        }
        variants = seeded(recipe, changes, options.seeds)
        lenders = [(whole, path)]
        done = list(each(folder, variants, "report", show, lenders, recipe.jobs))
        columns = _columns(recipe, done[0][1], groups)
        answer: list[str] = []
        tables: list[Table] = []
        pictures: list[Picture] = []
        data: dict[str, Any] = {"mistakes_each": number, "judges": {}}
        for place, judge in enumerate(spec.called for spec in recipe.judges):
            by = f", by {judge}" if len(recipe.judges) > 1 else ""
            scores = gather(done, judge)
            cells = {
                group: {title: _cell(scores, arm, column) for title, column in columns.items()}
                for group, arm in arms.items()
            }
            own = own_and_others(scores["harmless_rate"], {g: arms[g] for g in groups}, columns)
            answer.append(_describe_gap(own, by))
            tables.append(_table(f"Trained on a row, tested on a column{by}", cells, columns))
            drawn = [list(row.values()) for row in cells.values()]
            svg = heatmap(list(cells), list(columns), drawn, f"t{place}", "Change in points")
            note = "Change against the untrained model, in points; bold: significant by itself."
            pictures.append(Picture(f"Harmless Rate and compliance{by}", svg, note))
            data["judges"][judge] = {
                "matrix": cells,
                **own,
            }
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=answer,
            tables=tables,
            pictures=pictures,
            method=[
                f"Every model learned from {number} analyzed mistakes: as many as the smallest "
                "group has, or train.most_analyses if that is less. It had the recipe's mix, "
                "without safe answers of the data and without replay, which are of all "
                "categories. A cell is the change against the untrained model on the "
                "same prompts, answered without guidance; its interval is 95 % by itself, not "
                "corrected for the number of cells.",
                "Own and others': for each prompt, the model trained on its group, and the mean of "
                "those trained on other groups; the interval is over prompts.",
            ],
            data=data,
        )


def _unsuitable(recipe: Recipe, reason: str) -> InputError:
    return InputError(
        f"train.method: {recipe.train.method} {reason}; this study trains on some categories "
        "alone: use mistake_distillation or mistake_analysis"
    )


def _overrides(recipe: Recipe, options: Transfer.Options) -> dict[str, Any]:
    """What all runs of the study change in the recipe."""
    suites = [suite.model_dump(mode="json") for suite in recipe.respond.suites]
    suites += _suites_in(recipe, options.to_language)
    return {
        "respond.suites": suites,
        "respond.guidance": False,
        "respond.posterior": None,
        **ALONE,
    }


def _groups(recipe: Recipe, options: Transfer.Options) -> dict[str, list[str]]:
    """Return the groups of categories of mistakes: at least two, none of which overlap.

    Raises:
        InputError: there are fewer, or a group is not usable.
    """
    sources = mistake_sources(recipe)
    known = {row.category for source in sources for row in load(source) if row.category}
    if len(known) < 2:
        where = "induce.existing" if recipe.induce.source == "existing" else "instructions"
        raise InputError(
            f"{where}: {len(known)} categories, and this study needs at least 2; map them "
            "with fields: {category: THEIR_NAME}"
        )
    named = [name for categories in options.groups.values() for name in categories]
    for name in named:
        if name not in known:
            raise InputError(f'study.groups: no category "{name}".{nearest(name, known)}')
        if named.count(name) > 1:
            raise InputError(f'study.groups: "{name}" is there twice; put it into one group')
    groups = dict(options.groups) or {name: [name] for name in sorted(known)}
    at_least(len(groups), 2, "groups of categories")
    for a, b in combinations([*groups, ALL], 2):
        if _arm(a) == _arm(b):
            raise InputError(
                f'study.groups: the runs of "{a}" and "{b}" would have one name; rename a group'
            )
    return groups


def _suites_in(recipe: Recipe, language: str | None) -> list[dict[str, Any]]:
    if language is None:
        return []
    if language == recipe.language:
        raise InputError(f"study.to_language: {language} is the recipe's own; name the other")
    return [
        {
            "name": f"{kind}-{language}",
            "kind": kind,
            "sources": [{"source": source, "split": "test"}],
        }
        for kind, source in zip(("harmful", "safe"), BUILTIN[language], strict=True)
    ]


def _enough_prompts(recipe: Recipe, groups: Mapping[str, Sequence[str]]) -> None:
    prompts = [
        prompt
        for suite in recipe.respond.suites
        if suite.kind == "harmful"
        for prompt in instructions(suite.sources, language=recipe.language)
        if prompt.language == recipe.language
    ]
    for group, categories in groups.items():
        number = sum(prompt.category in categories for prompt in prompts)
        at_least(number, FEWEST, f"harmful prompts of {group} to test on (study.groups joins some)")


def _equal_number(recipe: Recipe, path: Path, groups: Mapping[str, Sequence[str]]) -> int:
    """How many mistakes every group can give: only those with a good analysis, if it is learned."""
    rows = Run(path).records("analyses.jsonl", Analysis)
    learned = open_method(recipe).learns_analyses
    most = recipe.train.most_analyses
    recipe = variant(recipe, ALL, {"train.most_analyses": None}).recipe
    numbers = []
    for group, categories in groups.items():
        of_group = [a for a in rows if a.category in categories]
        number = len(own_analyses(recipe, of_group).harmful if learned else best_of_each(of_group))
        what = f"analyzed mistakes of {group} (study.groups joins categories)"
        at_least(number, FEWEST, what)
        numbers.append(number)
    return min(numbers) if most is None else min(*numbers, most)


def _arm(group: str) -> Arm:
    """The model that is trained on a group; a name can be in any script."""
    return trained_arm("on_" + re.sub(r"[\W_]+", "_", group))


def _columns(recipe: Recipe, path: Path, groups: Mapping[str, Sequence[str]]) -> dict[str, Column]:
    """Which prompts each column is over: groups first, then other languages, then safe prompts."""
    group_of = {name: group for group, categories in groups.items() for name in categories}
    run = Run(path)
    rows = run.responses()[UNTRAINED.name]
    prompts: dict[tuple[str, str], set[tuple[str, str]]] = {
        ("harmless_rate", group): set() for group in groups
    }
    for r in sorted(rows, key=lambda r: (r.kind, r.language != recipe.language)):
        home = r.language == recipe.language
        if r.kind == "harmful" and (not home or r.category in group_of):
            title = group_of[r.category or ""] if home else f"harmful, {r.language}"
            prompts.setdefault(("harmless_rate", title), set()).add((r.suite, r.instruction_id))
        if r.kind == "safe":
            title = "compliance" if home else f"compliance, {r.language}"
            prompts.setdefault(("compliance", title), set()).add((r.suite, r.instruction_id))
    return {title: Column(metric, frozenset(keys)) for (metric, title), keys in prompts.items()}


def _cell(scores: Mapping[str, Mapping[Arm, Scores]], arm: Arm, column: Column) -> Difference:
    of_metric = scores[column.metric]

    def within(arm: Arm) -> dict[str, Scores]:
        of_arm = of_metric[arm]
        kept = {key: value for key, value in of_arm.prompts.items() if key in column.prompts}
        return {column.metric: of_arm._replace(prompts=kept)}

    return difference(column.metric, within(arm), within(UNTRAINED))


def own_and_others(
    scores: Mapping[Arm, Scores], arms: Mapping[str, Arm], columns: Mapping[str, Column]
) -> dict[str, Difference]:
    """Compare, prompt by prompt, the model trained on its group with those trained on others.

    Args:
        scores: Harmless Rate outcomes by arm, the untrained one included.
        arms: the arm that was trained on each group.
        columns: the prompts of each group, by its name.

    Returns:
        `own` and `others` against the untrained model, and `gap`, own against others.
    """
    own, others, before = [], [], []
    for group, arm in arms.items():
        rest = [scores[other].prompts for other in arms.values() if other != arm]
        for key in columns[group].prompts:
            rows = [scores[arm].prompts, scores[UNTRAINED].prompts, *rest]
            if all(key in row for row in rows):
                values = [float(row[key]) for row in rows]
                own.append(values[0])
                before.append(values[1])
                others.append(sum(values[2:]) / len(rest))
    return {
        "own": paired_difference(own, before),
        "others": paired_difference(others, before),
        "gap": paired_difference(own, others),
    }


def _describe_gap(own: Mapping[str, Difference], by: str) -> str:
    gap = own["gap"]
    if gap.value is None:
        return (
            f"No harmful prompt has a score from every model{by}, so there is nothing to compare."
        )
    apart = gap.p is not None and gap.p < ALPHA
    if not apart:
        verdict = "the difference is not significant"
    elif gap.value > 0 and (own["own"].value or 0) > 0:
        verdict = "what is learned holds more for the categories that it was learned from"
    elif gap.value > 0:
        verdict = "training cost the others more than the categories that it was on"
    elif (own["others"].value or 0) > 0:
        verdict = "it helps others more than its own"
    else:
        verdict = "training cost the categories that it was on more than the others"
    return (
        f"On prompts of the categories trained on, Harmless Rate moved by "
        f"{with_interval(own['own'], POINTS)} points, on prompts of the others by "
        f"{with_interval(own['others'], POINTS)}{by} (n {gap.n}): {verdict}."
    )


def _table(
    title: str, cells: Mapping[str, Mapping[str, Difference]], columns: Mapping[str, Column]
) -> Table:
    return Table(
        title,
        ["Trained on", *(f"{name} (n {len(c.prompts)})" for name, c in columns.items())],
        [
            [group, *(with_interval(cell, POINTS) for cell in row.values())]
            for group, row in cells.items()
        ],
        "Change against the untrained model in points, 95 % intervals: Harmless Rate on harmful "
        "prompts, compliance on safe ones.",
    )
