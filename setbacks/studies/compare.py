"""Methods as arms at equal data: one table, every pair's difference, one page.

Every method is trained from the same mistakes, the same answers and the same helpful mix, for the
same number of tokens or steps, from one or several seeds. With several, an outcome is the mean over
them: intervals and tests are over prompts, and the spread over seeds is shown beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from setbacks.errors import InputError
from setbacks.measure.differences import corrected
from setbacks.measure.findings import overlap_finding
from setbacks.measure.formatting import (
    POINTS,
    SCORE,
    amount,
    coefficient,
    listed,
    number,
    of_asked,
    p_value,
    with_interval,
)
from setbacks.measure.metrics import BALANCED, COMPARED, TITLES, few
from setbacks.measure.results import Overlap, PairChange
from setbacks.measure.statistics import Estimate
from setbacks.methods import unused
from setbacks.notices import notice
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Compare, Recipe
from setbacks.recipe.reading import merge
from setbacks.records import Arm, Example
from setbacks.report.page import Findings, Picture, Table
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import Run, read_data
from setbacks.runs.progress import Show
from setbacks.runs.redo import differences, is_inside
from setbacks.studies import Study
from setbacks.studies.ranking import more_degenerate, ranking
from setbacks.studies.scores import (
    Scores,
    as_judged,
    balanced_by_seed,
    difference,
    estimate,
    gather,
    unsteady,
)
from setbacks.studies.variants import Variant, each, variant

EQUAL = "every arm has the same budget of tokens or steps"
# Keys of an arm's `train` by which its data or its budget differ from the others'.
UNEQUAL = ("tokens", "steps", "mix", "helpful", "helpful_from", "safe", "replay", "start")
SHOWN = ("harmless_rate", "hijacking_harmless_rate", "compliance", "balanced_safety")


class Comparison(Study):
    """Compare training methods at equal data; `setbacks compare` runs it."""

    title = "methods compared"
    question = "Which method makes the model safest without making it refuse, at equal data?"

    @classmethod
    def options(cls, recipe: Recipe) -> Compare:
        """Return the section `compare` of a recipe, which `setbacks compare` reads."""
        return recipe.compare

    def check(self, recipe: Recipe, options: Compare) -> None:
        """Check the recipe of each method's run; the recipe's own method may not be among them.

        Raises:
            InputError: a method, the recipe or its data is wrong.
        """
        for contender in options.methods:
            plugin("methods", contender.method)
            if contender.called.casefold() == Arm.untrained().name:
                raise InputError(
                    f"compare.methods: {contender.called} is the name of the untrained model, an "
                    "arm of every comparison; choose another"
                )
            check(_variant(recipe, contender, 0, {}).recipe)
        _check_different(recipe, options)

    def run(self, recipe: Recipe, options: Compare, folder: Path, show: Show | None) -> Findings:
        """Train and measure every method."""
        if recipe.compare.budget == "steps" != _budget(recipe):
            notice("compare.budget is steps, but changes nothing, since train.tokens is set")
        for place, arm in enumerate(options.methods):
            if "epochs" in arm.train and (place or recipe.train.tokens or recipe.train.steps):
                notice(f"compare.methods: {arm.called}: train.epochs changes nothing: {EQUAL}")
        done = list(_carried_out(recipe, folder, show))
        judges = [spec.called for spec in recipe.judges]
        spent = [_spent(trained, path) for trained, path in done]
        own = [row for trained, path in done if (row := _own_word(trained, path))]
        scores = {judge: gather(done, judge) for judge in judges}
        return findings(recipe, scores, spent, own, _overlap(done))


def _check_different(recipe: Recipe, options: Compare) -> None:
    """Refuse arms, or seeds of an arm, that would be the same model.

    Raises:
        InputError: an arm sets the seed of all its trainings, or two arms differ only in keys that
            their method does not use.
    """
    not_used = {arm.called: unused(_variant(recipe, arm, 0, {}).recipe) for arm in options.methods}
    for arm in options.methods:
        if options.seeds > 1 and "seed" in arm.train:
            raise InputError(f"compare.methods: {arm.called}: train.seed makes all seeds the same")
    for a, b in combinations(options.methods, 2):
        keys = [key for key, *_ in differences(a.train, b.train)]
        # The epochs of the first arm set the budget of all; those of another change nothing.
        idle = not_used[a.called] & not_used[b.called] | {"epochs"}
        used = [key for key in keys if not any(is_inside(key, one) for one in idle)]
        if a.method == b.method and keys and not used:
            raise InputError(
                f"compare.methods: {b.called} differs from {a.called} only in "
                f"{listed([f'train.{key}' for key in keys])}, which {a.method} does not use with "
                "these settings and an equal budget; remove one of them"
            )


def _variant(recipe: Recipe, contender: Any, seed: int, budget: Mapping[str, Any]) -> Variant:
    overrides = {"train.method": contender.method, "train.seed": recipe.seed + seed, **budget}
    # An arm that sets one key of a section, such as `lora: {r: 8}`, keeps the recipe's others.
    ours = recipe.train.model_dump(mode="json")
    overrides |= {
        f"train.{key}": merge(ours.get(key), value) for key, value in contender.train.items()
    }
    return variant(recipe, f"{contender.called}.{seed}", overrides)


def _budget(recipe: Recipe) -> str:
    """Return what is equal for all methods: what `train` limits, or else `compare.budget`."""
    train = recipe.train
    if train.tokens is None and train.steps is None:
        return recipe.compare.budget
    return "tokens" if train.steps is None else "steps"


def _carried_out(recipe: Recipe, folder: Path, show: Show | None) -> Iterator[tuple[Variant, Path]]:
    """Run all variants; the epochs of the first one set the budget of the others."""
    first, *others = recipe.compare.methods
    budget: dict[str, Any] = {}
    leading = _variant(recipe, first, 0, {})
    if recipe.train.tokens is None and recipe.train.steps is None:
        ((_, path),) = each(folder, [leading], "train", show)
        spent = _spent(leading, path)
        budget[f"train.{recipe.compare.budget}"] = spent[recipe.compare.budget]
    rest = [
        _variant(recipe, contender, seed, budget)
        for seed in range(recipe.compare.seeds)
        for contender in (first, *others)
        if (contender, seed) != (first, 0)
    ]
    yield from each(folder, [leading, *rest], "report", show, jobs=recipe.jobs)


def _spent(trained: Variant, path: Path) -> dict[str, Any]:
    """What the training of one variant cost: examples, steps, tokens and time."""
    run = Run(path)
    costs = next((row for row in run.costs() if row["stage"] == "train"), {})
    examples = len(run.records("training.jsonl", Example))
    record = path / "trained.json"
    if record.exists():
        training = read_data(path, record.name, "train")
    else:  # of a comparison that an earlier version started
        lines = (path / "loss.jsonl").read_text(encoding="utf-8").splitlines()
        training = {"steps": len(lines), "tokens": costs["tokens"]}
    return {
        "arm": trained.arm,
        "seed": trained.recipe.train_seed,
        "steps": training["steps"],
        "tokens": training["tokens"],
        "seconds": round(costs.get("seconds", 0.0), 1),
        "examples": examples,
    }


def _own_word(trained: Variant, path: Path) -> dict[str, Any] | None:
    """How well one variant's model judges responses, before and after; None if not measured."""
    metrics = read_data(path, "metrics.json", "report")
    introspection = metrics.get("introspection")
    if not introspection or not introspection["after"]:
        return None
    return {
        "arm": trained.arm,
        "seed": trained.recipe.train_seed,
        "before": introspection["before"],
        "after": introspection["after"],
    }


def _overlap(done: Sequence[tuple[Variant, Path]]) -> list[Overlap]:
    """Which suites hold prompts that a method learned from; its seeds learn from the same."""
    rows: dict[tuple[str, str], Overlap] = {}
    for trained, path in done:
        arm = trained.arm
        metrics = read_data(path, "metrics.json", "report")
        overlap: list[Overlap] = metrics["data"].get("overlap", [])  # not in earlier versions
        for row in overlap:
            rows.setdefault((arm, row["suite"]), {**row, "arm": arm})
    return list(rows.values())


def findings(
    recipe: Recipe,
    scores: Mapping[str, Mapping[str, Mapping[Arm, Scores]]],
    spent: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]] = (),
    overlap: Sequence[Overlap] = (),
) -> Findings:
    """Present a comparison in words, tables and a picture.

    Args:
        recipe: of the comparison.
        scores: by judge, metric and arm.
        spent: what each training cost.
        own: the verdicts of the models that learned from analyses.
        overlap: how many prompts of each suite each method learned from.
    """
    answer: list[str] = []
    degenerate: list[str] = []
    tables: list[Table] = []
    pictures: list[Picture] = []
    data: dict[str, Any] = {
        "judges": {},
        "spent": list(spent),
        "own_word": list(own),
        "overlap": list(overlap),
    }
    for place, (judge, by_metric) in enumerate(scores.items()):
        arms = list(by_metric["harmless_rate"])
        of = {arm: {metric: by_arm[arm] for metric, by_arm in by_metric.items()} for arm in arms}
        table = {arm: {m: estimate(m, of[arm]) for m in TITLES} for arm in arms}
        pairs = _pairs(of)
        thin = [arm for arm in arms if _thin(of[arm])]
        answer += ranking(judge, table, pairs["balanced_safety"], thin, _analysts(recipe))
        answer += unsteady(of, pairs["balanced_safety"])
        by = f" by {judge}" if len(scores) > 1 else ""
        tables.append(_table(f"Arms{by}", table, of, recipe.compare.seeds))
        tables.append(_differences(f"Every pair, balanced safety{by}", pairs["balanced_safety"]))
        drawn = {arm: row for arm, row in table.items() if arm not in thin}
        pictures.append(_scatter(f"Harmless Rate against compliance{by}", drawn, f"c{place}"))
        data["judges"][judge] = {
            "arms": [
                {"arm": arm.name}
                | dict(row)
                | {
                    "balanced_safety_as_judged": estimate("balanced_safety", as_judged(of[arm])),
                    "degenerate": estimate("degenerate", of[arm])._asdict(),
                }
                | {"seeds": {m: s.seeds for m, s in of[arm].items()}}
                for arm, row in table.items()
            ],
            "pairs": {metric: rows for metric, rows in pairs.items()},
        }
        if place == 0:  # the answers are the same for every judge
            degenerate = more_degenerate(of)
    answer += degenerate
    if own:
        tables.append(_own_words(own))
    tables.append(_costs(spent))
    learners = [trained_arm(contender.called) for contender in recipe.compare.methods]
    answer += [finding.text for finding in overlap_finding(overlap, learners)]
    return Findings(
        title=f"{recipe.name}: {Comparison.title}",
        question=Comparison.question,
        answer=[*dict.fromkeys(answer)],
        tables=tables,
        pictures=pictures,
        method=[
            "Every method learned from the same instructions and the same helpful mix, for the "
            f"same number of {_budget(recipe)}, from "
            f"{amount(recipe.compare.seeds, 'seed')}; the model is {recipe.model.model}."
            f"{_exceptions(recipe)}",
            "Balanced safety is the harmonic mean of Harmless Rate and compliance. Intervals are "
            "95 %, over prompts. Differences are paired by prompt; p of a rate is McNemar's exact "
            "one, or with several seeds Student's on the differences, p of balanced safety is the "
            "paired bootstrap's; all of a metric's pairs are corrected together (Holm).",
        ],
        data=data,
    )


def _analysts(recipe: Recipe) -> list[str]:
    """The contenders that learn from analyses of mistakes."""
    return [
        contender.called
        for contender in recipe.compare.methods
        if plugin("methods", contender.method).learns_analyses
    ]


def _pairs(of: Mapping[Arm, Mapping[str, Scores]]) -> dict[str, list[PairChange]]:
    """The difference of every two arms, by metric, where there is one."""
    arms = list(combinations(of, 2))
    pairs = {}
    for metric in COMPARED:
        changes = corrected([difference(metric, of[b], of[a]) for a, b in arms])
        pairs[metric] = [
            PairChange.of(b, a, change)
            for (a, b), change in zip(arms, changes, strict=True)
            if change
        ]
    return pairs


def _exceptions(recipe: Recipe) -> str:
    """Say which arms differ in their data or their budget, since their own `train` says so."""
    own = {arm.called: [k for k in UNEQUAL if k in arm.train] for arm in recipe.compare.methods}
    named = [
        f"{trained_arm(name).label} ({', '.join(f'train.{key}' for key in keys)})"
        for name, keys in own.items()
        if keys
    ]
    return f" Exceptions, by their own settings: {'; '.join(named)}." if named else ""


def _table(
    title: str,
    table: Mapping[Arm, Mapping[str, Estimate]],
    of: Mapping[Arm, Mapping[str, Scores]],
    seeds: int,
) -> Table:
    several = seeds > 1
    rows = []
    for arm, row in table.items():
        cells = [with_interval(row[m]) + _part(row[m].n, of[arm], m) for m in SHOWN]
        score = row["helpful_score"]
        part = _part(score.n, of[arm], "helpful_score")
        cells.append(with_interval(score, SCORE) + part)
        if several:
            cells.append(", ".join(number(100 * one, 1) for one in balanced_by_seed(of[arm])))
        cells.append(with_interval(estimate("balanced_safety", as_judged(of[arm]))))
        cells.append(with_interval(estimate("degenerate", of[arm])))
        rows.append([arm.label, *cells])
    first = table[next(iter(table))]
    columns = [f"{TITLES[m]} (n {first[m].n})" for m in (*SHOWN, "helpful_score")]
    if several:
        columns.append("Balanced safety, each seed")
    columns += ["Balanced safety as judged", "Degenerate answers"]
    note = (
        "Rates in %; 95 % intervals in brackets. Degenerate answers repeat themselves, repeat the "
        "prompt, run on into made-up turns, or hold no word. They count as failures; as judged is "
        "balanced safety without this rule."
    )
    return Table(title, ["Arm", *columns], rows, note)


def _part(scored: int, scores: Mapping[str, Scores], metric: str) -> str:
    """How many of how many prompts have a score, where some have none."""
    halves = BALANCED if metric == "balanced_safety" else (metric,)
    asked = sum(scores[half].asked for half in halves)
    return f", n {of_asked(scored, asked)}" if 0 < scored < asked else ""


def _thin(scores: Mapping[str, Scores]) -> bool:
    """Whether balanced safety rests on too few of an arm's answers to rank it."""
    return any(few(len(scores[half].prompts), scores[half].asked) for half in BALANCED)


def _differences(title: str, pairs: Sequence[PairChange]) -> Table:
    ordered = sorted(pairs, key=lambda pair: -abs(pair.value or 0))
    return Table(
        title,
        ["Arm", "against", "difference in points", "p (Holm)"],
        [
            [
                pair.arm.label,
                pair.against.label,
                with_interval(pair, POINTS),
                p_value(pair.p_holm),
            ]
            for pair in ordered
        ],
        "The largest first.",
    )


def _own_words(own: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "What the models say themselves",
        ["Method", "seed", "responses", "AUC before training", "AUC after"],
        [
            [
                trained_arm(row["arm"]).label,
                str(row["seed"]),
                str(row["after"]["n"]),
                coefficient(row["before"]["auc"]),
                coefficient(row["after"]["auc"]),
            ]
            for row in own
        ],
        "How well the spoken verdict tells mistakes from benign responses; 0.5 is a coin.",
    )


def _costs(spent: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "What each training spent",
        ["Method", "seed", "examples", "steps", "tokens", "seconds"],
        [
            [
                trained_arm(row["arm"]).label,
                str(row["seed"]),
                str(row["examples"]),
                str(row["steps"]),
                f"{row['tokens']:,}",
                number(row["seconds"], 0),
            ]
            for row in spent
        ],
        "For RLHF, tokens are the policy's, at most; its reward model's time is in the seconds.",
    )


def _scatter(title: str, table: Mapping[Arm, Mapping[str, Estimate]], name: str) -> Picture:
    from setbacks.report.plots import Place, trade_off

    places = [Place(arm, row["harmless_rate"], row["compliance"]) for arm, row in table.items()]
    return Picture(
        title,
        trade_off(places, name, frontier=True),
        "Up and to the right is better. Filled marks answered with guidance. The line joins the "
        "arms that no other one beats on both.",
    )
