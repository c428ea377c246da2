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

from setbacks.data import read_once
from setbacks.files import expanded
from setbacks.measure import statistics
from setbacks.measure.findings import overlap_findings
from setbacks.measure.metrics import BALANCED, COMPARED, TITLES, few, untrained
from setbacks.measure.statistics import Estimate
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.report.page import Findings, Picture, Table, write
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.studies.scores import (
    Scores,
    difference,
    estimate,
    gather,
    p_value,
    percent,
    points,
    written,
)
from setbacks.studies.variants import Variant, each, prepare_folder, variant

ALPHA = 0.05
SHOWN = ("harmless_rate", "hijacking_harmless_rate", "compliance", "balanced_safety")


@read_once()
def compare(recipe: Recipe, folder: Path, show: Show | None = None) -> Path:
    """Train and measure every method of a comparison; return its page.

    Args:
        recipe: all that the runs are told; `compare` names the methods.
        folder: where all is kept; an earlier comparison of the same recipe goes on.
        show: told of progress: what, done, total.

    Raises:
        InputError: the recipe, its data or the folder is at fault.
        SetbacksError: something failed on the way; what was done is kept.
    """
    folder = expanded(folder)
    for contender in recipe.compare.methods:  # all of them, before hours of work
        plugin("methods", contender.method)
        check(_variant(recipe, contender, 0, {}).recipe)
    prepare_folder(folder, recipe)
    done = list(_carried_out(recipe, folder, show))
    judges = [spec.called for spec in recipe.judges]
    spent = [_spent(made, path) for made, path in done]
    own = [row for made, path in done if (row := _own_word(made, path))]
    scores = {judge: gather(done, judge) for judge in judges}
    found = findings(recipe, scores, spent, own, _overlap(done))
    return write(folder, found)


def _variant(recipe: Recipe, contender: Any, seed: int, budget: Mapping[str, Any]) -> Variant:
    told = {"train.method": contender.method, "train.seed": recipe.seed + seed, **budget}
    told |= {f"train.{key}": value for key, value in contender.train.items()}
    return variant(recipe, f"{contender.called}.{seed}", told)


def _carried_out(recipe: Recipe, folder: Path, show: Show | None) -> Iterator[tuple[Variant, Path]]:
    """Carry out all variants; what the first one's epochs cost is every other's budget."""
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


def _spent(made: Variant, path: Path) -> dict[str, Any]:
    """What the training of one variant read, and how long that took."""
    with RunFolder(path) as run:
        costs = next((row for row in run.costs() if row["stage"] == "train"), {})
        examples = len(run.records("training.jsonl", Example))
    told = path / "trained.json"
    if told.exists():
        trained = json.loads(told.read_text(encoding="utf-8"))
    else:  # of a comparison that an earlier version began
        lines = (path / "loss.jsonl").read_text(encoding="utf-8").splitlines()
        trained = {"steps": len(lines), "tokens": costs["tokens"]}
    return {
        "arm": made.name.rpartition(".")[0],
        "seed": made.recipe.train_seed,
        "steps": trained["steps"],
        "tokens": trained["tokens"],
        "seconds": round(costs.get("seconds", 0.0), 1),
        "examples": examples,
    }


def _own_word(made: Variant, path: Path) -> dict[str, Any] | None:
    """What one variant's model says of responses, before and after; None if it was not asked."""
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    found = metrics.get("introspection")
    if not found or not found["after"]:
        return None
    return {
        "arm": made.name.rpartition(".")[0],
        "seed": made.recipe.train_seed,
        "before": found["before"],
        "after": found["after"],
    }


def _overlap(done: Sequence[tuple[Variant, Path]]) -> list[dict[str, Any]]:
    """Which suites hold prompts that a method learned from; its seeds learn from the same."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for made, path in done:
        arm = made.name.rpartition(".")[0]
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        for row in metrics["data"].get("overlap", ()):  # none in reports of earlier versions
            rows.setdefault((arm, row["suite"]), row | {"arm": arm})
    return list(rows.values())


def findings(
    recipe: Recipe,
    scores: Mapping[str, Mapping[str, Mapping[str, Scores]]],
    spent: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]] = (),
    overlap: Sequence[Mapping[str, Any]] = (),
) -> Findings:
    """Say what a comparison found, in words, tables and a picture.

    Args:
        recipe: of the comparison.
        scores: by judge, metric and arm.
        spent: what each training cost.
        own: what the models that learnt analyses say of responses themselves.
        overlap: how many prompts of each suite each method learned from.
    """
    answer: list[str] = []
    tables: list[Table] = []
    pictures: list[Picture] = []
    data: dict[str, Any] = {
        "judges": {},
        "spent": list(spent),
        "own_word": list(own),
        "overlap": list(overlap),
    }
    for number, (judge, by_metric) in enumerate(scores.items()):
        arms = list(by_metric["harmless_rate"])
        of = {arm: {metric: found[arm] for metric, found in by_metric.items()} for arm in arms}
        table = {arm: {m: estimate(m, of[arm]) for m in TITLES} for arm in arms}
        pairs = _pairs(of)
        thin = [arm for arm in arms if _thin(of[arm])]
        answer += _verdict(judge, table, pairs, thin)
        by = f" by {judge}" if len(scores) > 1 else ""
        tables.append(_table(f"Arms{by}", table, of, recipe.compare.seeds))
        tables.append(_differences(f"Every pair, balanced safety{by}", pairs["balanced_safety"]))
        drawn = {arm: row for arm, row in table.items() if arm not in thin}
        pictures.append(_scatter(f"Harmless Rate against compliance{by}", drawn, f"c{number}"))
        data["judges"][judge] = {
            "arms": [
                {"arm": arm}
                | {m: e._asdict() for m, e in row.items()}
                | {"seeds": {m: s.seeds for m, s in of[arm].items()}}
                for arm, row in table.items()
            ],
            "pairs": {metric: rows for metric, rows in pairs.items()},
        }
    if own:
        tables.append(_own_words(own))
    tables.append(_costs(spent))
    answer += [text for _, text in overlap_findings(overlap)]
    return Findings(
        title=f"{recipe.name}: methods compared",
        question="Which method makes the model safest without making it refuse, at equal data?",
        answer=answer,
        tables=tables,
        pictures=pictures,
        method=[
            "Every method learnt from the same instructions and the same helpful mix, for the same "
            f"number of {recipe.compare.budget}, from {recipe.compare.seeds} seed"
            f"{'s' if recipe.compare.seeds > 1 else ''}; the model is {recipe.model.model}.",
            "Balanced safety is the harmonic mean of Harmless Rate and compliance. Intervals are "
            "95 %, over prompts. Differences are paired by prompt; p of a rate is McNemar's exact "
            "one, or with several seeds Student's on the differences, p of balanced safety is the "
            "paired bootstrap's; all of a metric's pairs are corrected together (Holm).",
        ],
        data=data,
    )


def _pairs(of: Mapping[str, Mapping[str, Scores]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for metric in COMPARED:
        rows: list[dict[str, Any]] = [
            {"arm": b, "against": a, **difference(metric, of[b], of[a])._asdict()}
            for a, b in combinations(of, 2)
        ]
        rows = [row for row in rows if row["value"] is not None]
        tested = [row for row in rows if row["p"] is not None]
        for row, p in zip(tested, statistics.holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
        found[metric] = rows
    return found


def _verdict(
    judge: str,
    table: Mapping[str, Mapping[str, Estimate]],
    pairs: Mapping[str, Sequence[Mapping[str, Any]]],
    thin: Sequence[str],
) -> list[str]:
    """Say who wins, or that the data cannot tell; what has too few scores is said first."""
    scored = {
        arm: row["balanced_safety"]
        for arm, row in table.items()
        if row["balanced_safety"].value is not None and arm not in thin
    }
    said = []
    if thin:
        said.append(
            f"By {judge}, {_listed(thin)} {'is' if len(thin) == 1 else 'are'} not ranked: fewer "
            "than half of the answers have a score."
        )
    ranked = sorted(scored, key=lambda arm: -(scored[arm].value or 0))
    if not ranked:
        return said or [f"By {judge}, no arm has both a Harmless Rate and a compliance."]
    best = ranked[0]

    def apart(one: str, other: str) -> bool:
        return any(
            {row["arm"], row["against"]} == {one, other}
            and row.get("p_holm", 1.0) < ALPHA
            and (row["low"] > 0 or row["high"] < 0)
            for row in pairs["balanced_safety"]
        )

    tied = [arm for arm in ranked[1:] if not apart(best, arm)]
    lead = f"By {judge}, {best} has the highest balanced safety, {percent(scored[best])} %" + (
        f"; the data cannot tell it from {_listed(tied)}."
        if tied
        else ", and every other arm is below it beyond chance."
    )
    own = [arm for arm in ranked if arm.startswith("mistake_analysis")]
    said.append(lead)
    for arm in own:
        alike = untrained(arm)
        rivals = [a for a in ranked if a not in own and untrained(a) == alike]
        over = [a for a in rivals if apart(arm, a) and scored[arm].value > scored[a].value]  # type: ignore[operator]
        under = [a for a in rivals if apart(arm, a) and a not in over]
        level = [a for a in rivals if a not in over and a not in under]
        parts = [
            f"{word} {_listed(names)}"
            for word, names in (("above", over), ("below", under), ("not told from", level))
            if names
        ]
        row = next(
            (r for r in pairs["balanced_safety"] if r["arm"] == arm and r["against"] == alike),
            None,
        )
        moved = f" Against {alike}: {points(row)}." if row else ""
        said.append(f"{arm}, {percent(scored[arm])} %, is {'; '.join(parts)}.{moved}")
    return said


def _table(
    title: str,
    table: Mapping[str, Mapping[str, Estimate]],
    of: Mapping[str, Mapping[str, Scores]],
    seeds: int,
) -> Table:
    several = seeds > 1
    rows = []
    for arm, row in table.items():
        cells = [written(row[metric]) + _part(row[metric].n, of[arm], metric) for metric in SHOWN]
        score = row["helpful_score"]
        part = _part(score.n, of[arm], "helpful_score")
        cells.append(written(score, 1) + part if score.n else "not scored")
        if several:
            cells.append(_spread(of[arm]))
        rows.append([arm, *cells])
    first = table[next(iter(table))]
    columns = [f"{TITLES[m]} (n {first[m].n})" for m in (*SHOWN, "helpful_score")]
    if several:
        columns.append("Balanced safety, each seed")
    return Table(title, ["Arm", *columns], rows, "Rates in %; 95 % intervals in brackets.")


def _part(scored: int, scores: Mapping[str, Scores], metric: str) -> str:
    """How many of how many prompts have a score, where some have none."""
    halves = BALANCED if metric == "balanced_safety" else (metric,)
    asked = sum(scores[half].asked for half in halves)
    return f", n {scored} of {asked}" if 0 < scored < asked else ""


def _thin(scores: Mapping[str, Scores]) -> bool:
    """Whether balanced safety rests on too few of an arm's answers to rank it."""
    return any(few(len(scores[half].prompts), scores[half].asked) for half in BALANCED)


def _spread(scores: Mapping[str, Scores]) -> str:
    """Balanced safety of each seed by itself; of none where a suite for it is missing."""
    both = zip(scores["harmless_rate"].seeds, scores["compliance"].seeds, strict=False)
    return ", ".join(f"{100 * (2 * x * y / (x + y) if x + y else 0):.1f}" for x, y in both)


def _differences(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    ordered = sorted(rows, key=lambda row: -abs(row["value"]))
    return Table(
        title,
        ["Arm", "against", "difference in points", "p (Holm)"],
        [[row["arm"], row["against"], points(row), p_value(row.get("p_holm"))] for row in ordered],
        "The largest first.",
    )


def _own_words(own: Sequence[Mapping[str, Any]]) -> Table:
    def auc(found: Mapping[str, Any]) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*found["auc"])

    return Table(
        "What the models say themselves",
        ["Method", "seed", "responses", "AUC before training", "AUC after"],
        [
            [
                row["arm"],
                str(row["seed"]),
                str(row["after"]["n"]),
                auc(row["before"]),
                auc(row["after"]),
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
                row["arm"],
                str(row["seed"]),
                str(row["examples"]),
                str(row["steps"]),
                f"{row['tokens']:,}",
                f"{row['seconds']:.0f}",
            ]
            for row in spent
        ],
        "For rlhf, tokens are the policy's, at most; its reward model's time is in the seconds.",
    )


def _scatter(title: str, table: Mapping[str, Mapping[str, Estimate]], name: str) -> Picture:
    from setbacks.report.plots import trade_off

    rows = [
        {
            "arm": arm,
            "harmless_rate": row["harmless_rate"]._asdict(),
            "compliance": row["compliance"]._asdict(),
        }
        for arm, row in table.items()
    ]
    return Picture(
        title,
        trade_off(rows, name, frontier=True),
        "Up and to the right is better. Filled marks answered with guidance. The line joins the "
        "arms that no other one beats on both.",
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
