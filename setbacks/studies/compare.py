"""Methods as arms at equal data: one table, every pair's difference, one page.

Every method is trained from the same mistakes, the same answers and the same helpful mix, for the
same number of tokens or steps, from one or several seeds. With several, an outcome is the mean over
them: intervals and tests are over prompts, and the spread over seeds is shown beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from setbacks.errors import InputError
from setbacks.measure.differences import corrected, leaders
from setbacks.measure.findings import overlap_finding
from setbacks.measure.formatting import (
    POINTS,
    SCORE,
    amount,
    change_with_p,
    coefficient,
    listed,
    number,
    of_asked,
    p_value,
    percent,
    with_interval,
)
from setbacks.measure.metrics import BALANCED, COMPARED, TITLES, few, significant
from setbacks.measure.results import Overlap, PairChange
from setbacks.measure.statistics import Estimate
from setbacks.methods import unused
from setbacks.notices import notice
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Compare, Recipe
from setbacks.records import Arm, Example
from setbacks.report.page import Findings, Picture, Table
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import Run
from setbacks.runs.progress import Show
from setbacks.runs.redo import differences, is_inside
from setbacks.studies import Study
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
            check(_variant(recipe, contender, 0, {}).recipe)
        _check_different(recipe, options)

    def run(self, recipe: Recipe, options: Compare, folder: Path, show: Show | None) -> Findings:
        """Train and measure every method."""
        if recipe.compare.budget == "steps" != _budget(recipe):
            notice("compare.budget is steps, but changes nothing, since train.tokens is set")
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
        idle = not_used[a.called] & not_used[b.called]
        used = [key for key in keys if not any(is_inside(key, one) for one in idle)]
        if a.method == b.method and keys and not used:
            raise InputError(
                f"compare.methods: {b.called} differs from {a.called} only in "
                f"{listed([f'train.{key}' for key in keys])}, which {a.method} does not use with "
                "these settings; remove one of them"
            )


def _variant(recipe: Recipe, contender: Any, seed: int, budget: Mapping[str, Any]) -> Variant:
    overrides = {"train.method": contender.method, "train.seed": recipe.seed + seed, **budget}
    overrides |= {f"train.{key}": value for key, value in contender.train.items()}
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
        training = json.loads(record.read_text(encoding="utf-8"))
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
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
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
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
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
        answer += _verdict(judge, table, pairs["balanced_safety"], thin, _analysts(recipe))
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
            degenerate = _more_degenerate(of)
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
            f"{amount(recipe.compare.seeds, 'seed')}; the model is {recipe.model.model}.",
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


def _more_degenerate(of: Mapping[Arm, Mapping[str, Scores]]) -> list[str]:
    """Say of which arms more answers are degenerate than of the untrained model's."""
    arms = [arm for arm in of if not arm.is_untrained and arm.before in of]
    changes = corrected([difference("degenerate", of[arm], of[arm.before]) for arm in arms])
    more = [
        f"{arm.label} against {arm.before.label} {change_with_p(change)}"
        for arm, change in zip(arms, changes, strict=True)
        if change and change.value > 0 and significant(change)
    ]
    return [f"Training made more answers degenerate: {'; '.join(more)}."] if more else []


def _verdict(
    judge: str,
    table: Mapping[Arm, Mapping[str, Estimate]],
    pairs: Sequence[PairChange],
    thin: Sequence[Arm],
    analysts: Sequence[str],
) -> list[str]:
    """Say which arm is best, or that the data cannot tell; arms with too few scores come first.

    Args:
        judge: whose verdicts these are.
        table: estimates by arm and metric.
        pairs: differences in balanced safety.
        thin: the arms with too few scores.
        analysts: the contenders that learn from analyses.
    """
    scored = {
        arm: row["balanced_safety"]
        for arm, row in table.items()
        if row["balanced_safety"].value is not None and arm not in thin
    }
    sentences = []
    if thin:
        sentences.append(
            f"By {judge}, {_labels(thin)} {'is' if len(thin) == 1 else 'are'} not ranked: fewer "
            "than half of the answers have a score."
        )
    ranked = sorted(scored, key=lambda arm: -(scored[arm].value or 0))
    if not ranked:
        return sentences or [f"By {judge}, no arm has both a Harmless Rate and a compliance."]
    best = ranked[0]

    def apart(one: Arm, other: Arm) -> bool:
        return any(
            {pair.arm, pair.against} == {one, other}
            and significant(pair)
            and ((pair.low or 0) > 0 or (pair.high or 0) < 0)
            for pair in pairs
        )

    level = leaders({arm: scored[arm].value or 0 for arm in ranked})
    lower = [arm for arm in ranked if arm not in level]
    tied = [arm for arm in lower if not apart(best, arm)]
    tie = len(level) > 1
    who = f"{_labels(level)} {'tie for' if tie else 'has'} the highest balanced safety"
    lead = f"By {judge}, {who}, {percent(scored[best].value)}"
    if tied:
        of = f" of {best.label}" if tie else ""
        lead += f"; the difference{of} from {_labels(tied)} is not significant"
    elif tie and lower:
        lead += f"; {best.label} is significantly above {_labels(lower)}"
    elif lower:
        lead += ", significantly above every other arm"
    own = [arm for arm in ranked if arm in [trained_arm(name, arm.way) for name in analysts]]
    sentences.append(f"{lead}.")
    for arm in own:
        rivals = [a for a in ranked if a not in own and a.way == arm.way]
        over = [a for a in rivals if apart(arm, a) and scored[arm].value > scored[a].value]  # type: ignore[operator]
        under = [a for a in rivals if apart(arm, a) and a not in over]
        level = [a for a in rivals if a not in over and a not in under]
        parts = [
            f"{word} {_labels(names)}"
            for word, names in (
                ("above", over),
                ("below", under),
                ("not significantly different from", level),
            )
            if names
        ]
        pair = next((p for p in pairs if (p.arm, p.against) == (arm, arm.before)), None)
        change = with_interval(pair, POINTS) if pair else ""
        moved = f" Against {arm.before.label}: {change} points." if pair else ""
        sentences.append(
            f"{arm.label}, {percent(scored[arm].value)}, is {'; '.join(parts)}.{moved}"
        )
    return sentences


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


def _labels(arms: Sequence[Arm]) -> str:
    return listed(arm.label for arm in arms)
