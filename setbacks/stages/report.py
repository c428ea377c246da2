"""The last stage: from what is in a run folder to `metrics.json` and one page, `report.html`.

The page is a single file that needs no network and no scripts, and shows no harmful text until it
is asked to. Two equal runs give equal pages, but for the section of costs.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError
from setbacks.judges.worth import worth
from setbacks.measure import measure
from setbacks.metrics import KINDS, MAIN, TITLES
from setbacks.records import Analysis, Example, Kind, Mistake, Reading, Response, Verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from rich.table import Table

    from setbacks.runfolder import RunFolder

# The columns of the headline, in the order of a reader's questions.
HEADLINE = (
    "harmless_rate",
    "hijacking_harmless_rate",
    "compliance",
    "balanced_safety",
    "helpful_score",
)
SHOWN = 3  # examples of each kind and choice
LONGEST = 1_500  # characters of a response shown


class Report(NamedTuple):
    """Where the page is, and every number of it."""

    path: Path
    metrics: dict[str, Any]


def report(run: RunFolder) -> Report:
    """Write `metrics.json` and `report.html` of a run, finished or not, if it has verdicts.

    Args:
        run: an open run folder.

    Raises:
        InputError: there are no responses or no verdicts yet, which says which stage comes first;
            or human labels are of answers that are not there, or contradict one another.
    """
    responses, verdicts = collect(run)
    recipe = run.recipe.model_dump(mode="json")
    metrics = measure(
        recipe=recipe,
        environment=run.environment,
        mistakes=run.records("mistakes.jsonl", Mistake),
        analyses=run.records("analyses.jsonl", Analysis),
        examples=run.records("training.jsonl", Example),
        loss=_rows(run.path / "loss.jsonl"),
        trained=next(iter(_rows(run.path / "trained.json")), {}),
        preflight=run.records("preflight.jsonl", Reading),
        introspection=run.records("introspection.jsonl", Reading),
        responses=responses,
        verdicts=verdicts,
        worth={spec.called: worth(spec, run.recipe) for spec in run.recipe.judges},
    )
    metrics["costs"] = [
        row | {"tokens_per_second": round(row["tokens"] / max(row["seconds"], 1e-3), 1)}
        for row in run.costs()
    ]
    page = render(metrics, recipe, examples(responses, verdicts))
    run.write_text("metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return Report(run.write_text("report.html", page), metrics)


def collect(
    run: RunFolder,
) -> tuple[dict[str, list[Response]], dict[tuple[str, str], list[Verdict]]]:
    """Return what a run's arms answered, by arm, and what was said of it, by arm and judge.

    Args:
        run: an open run folder.

    Raises:
        InputError: as `report`.
    """
    responses = {arm: run.records(f"responses/{arm}.jsonl", Response) for arm in run.arms()}
    if not any(responses.values()):
        raise InputError(f"{run.path}: no responses yet; first `setbacks respond RUN`")
    verdicts = {
        (arm, judge): run.records(f"verdicts/{arm}.{judge}.jsonl", Verdict)
        for arm in responses
        for judge in _judges(run.path, arm)
    }
    if not any(verdicts.values()):
        raise InputError(f"{run.path}: no verdicts yet; first `setbacks judge RUN`")
    drawn = _drawn(run.path / "review" / "plan.json")
    for (arm, judge), found in verdicts.items():
        if judge == "human":
            where = run.path / "verdicts" / f"{arm}.human.jsonl"
            verdicts[arm, judge] = _labels(where, found, responses[arm], drawn)
    return responses, verdicts


@cache
def environment_of_pages(package: str = "setbacks.stages", folder: str = "") -> Environment:
    """Return what turns a package's templates into pages: all is escaped and made visible."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        # Whatever the page prints goes through here, so no text can be forgotten.
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(metrics: Mapping[str, Any], recipe: Mapping[str, Any], shown: Mapping[Kind, Any]) -> str:
    """Return the page.

    Args:
        metrics: what `measure` returned, with `costs`.
        recipe: the recipe as plain data.
        shown: what `examples` returned.
    """
    import yaml
    from markupsafe import Markup

    from setbacks.stages import plots

    pages = environment_of_pages()
    pages.filters.update(
        percent=_percent, points=_points, score=_score, p=_p, clock=_clock, prose=_prose
    )
    look = plots.marks([arm for arm in metrics["data"]["responses"]])
    training = metrics["training"]
    return pages.get_template("report.html.jinja").render(
        m=metrics,
        titles=TITLES,
        headline=HEADLINE,
        kinds=KINDS,
        main=MAIN,
        shown=shown,
        glyphs={arm: Markup(plots.glyph(mark)) for arm, mark in look.items()},
        pictures={
            judge: {
                "trade_off": Markup(_clean_svg(plots.trade_off(found["arms"], f"t{i}"))),
                "categories": {
                    kind: Markup(_clean_svg(plots.dots(rows, f"c{i}-{kind}", TITLES[MAIN[kind]])))
                    for kind in KINDS[:3]
                    if len(rows := [r for r in found["by_category"] if r["kind"] == kind]) > 1
                },
            }
            for i, (judge, found) in enumerate(metrics["judges"].items())
        },
        reach={judge: _reach(found["differences"]) for judge, found in metrics["judges"].items()},
        loss=Markup(plots.loss_curve(training["loss"])) if training else None,
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=90),
    )


def examples(
    responses: Mapping[str, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
) -> dict[Kind, list[dict[str, Any]]]:
    """Choose what the page shows: a few prompts of each kind, with every arm's answer.

    The first by id (ids are digests, so this is a draw, and nobody chose it), then the first for
    which a judge's verdict differs between arms.

    Args:
        responses: by arm.
        verdicts: by (arm, judge).
    """
    by_id = {key: {v.response_id: v for v in rows} for key, rows in verdicts.items()}
    prompts: dict[Kind, dict[tuple[str, str], dict[str, Response]]] = {}
    for arm, rows in responses.items():
        for r in rows:
            prompts.setdefault(r.kind, {}).setdefault((r.instruction_id, r.suite), {})[arm] = r

    def badges(arm: str, r: Response) -> list[dict[str, str]]:
        return [
            {"judge": judge} | badge
            for (of, judge), found in by_id.items()
            if of == arm and r.id in found
            for badge in _badges(found[r.id], r.kind)
        ]

    chosen: dict[Kind, list[dict[str, Any]]] = {}
    for kind in KINDS:
        drawn: list[dict[str, Any]] = []
        differing: list[dict[str, Any]] = []
        for _, answers in sorted(prompts.get(kind, {}).items()):
            told = {arm: badges(arm, r) for arm, r in answers.items()}
            differs = len({str([b["text"] for b in found]) for found in told.values()}) > 1
            into = drawn if len(drawn) < SHOWN else differing
            if len(into) >= SHOWN or (into is differing and not differs):
                continue
            r = next(iter(answers.values()))
            into.append(
                {
                    "why": "drawn" if into is drawn else "differs",
                    "id": r.instruction_id,
                    "suite": r.suite,
                    "category": r.category,
                    "instruction": r.instruction,
                    "answers": [
                        {
                            "arm": arm,
                            "text": answer.text[:LONGEST],
                            "more": max(0, len(answer.text) - LONGEST),
                            "badges": told[arm],
                            "harmful": any(b["text"] == "harmful" for b in told[arm]),
                        }
                        for arm, answer in answers.items()
                    ],
                }
            )
        if drawn:
            chosen[kind] = drawn + differing
    return chosen


def headline(metrics: Mapping[str, Any]) -> Table:
    """Return the table of arms for a terminal: rates in %, 95 % intervals below them, n.

    Args:
        metrics: what `measure` returned.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(caption="with 95 % intervals", caption_justify="left")
    table.add_column("Arm", overflow="fold")
    for key in HEADLINE:
        table.add_column(TITLES[key].replace(" ", "\n"), justify="right", no_wrap=True)
    several = len(metrics["judges"]) > 1
    for judge, found in metrics["judges"].items():
        if several:
            table.add_section()
            table.add_row(Text(f"judged by {judge}", style="italic"))
        best = found["best"] or {"arm": None, "supported": False}
        for row in found["arms"]:
            wins = best["supported"] and row["arm"] == best["arm"]
            cells = []
            for key in HEADLINE:
                written = _score if key == "helpful_score" else _percent
                value, interval, n = written(row[key])
                told = [value, interval.replace(" ", ""), f"n {n}"]
                cells.append(Text("\n".join(told) if n and interval else value))
            table.add_row(Text(visible(row["arm"]), style="bold" if wins else ""), *cells)
    return table


def visible(text: str) -> str:
    """Return text with characters that hide or reorder others written out, such as ⟨U+202E⟩.

    Args:
        text: anything that came out of a model or a file.

    Source: Unicode categories Cc, Cf and Cs; Boucher and Anderson (2021), arXiv 2111.00169.
    """
    return "".join(
        f"⟨U+{ord(c):04X}⟩"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        else c
        for c in text
    )


def _clean_svg(svg: str) -> str:
    # Names of arms and categories are in the pictures too.
    return visible(svg)


def _badges(verdict: Verdict, kind: Kind) -> Iterator[dict[str, str]]:
    """What a judge said of one response, in a word each; `tone` is good, bad or none."""
    said = {
        "harmful": (verdict.harmful, ("harmful", "bad"), ("harmless", "good")),
        "refused": (verdict.refused, ("refused", "bad"), ("answered", "good")),
    }
    wanted = ("harmful",) if kind in ("harmful", "hijacking") else ("refused",)
    for key in ("harmful", "refused"):
        value, yes, no = said[key]
        if value is None and key in wanted and not (kind == "helpful" and verdict.helpful_score):
            yield {"text": "unscored", "tone": "none"}
        elif value is not None and (key in wanted or (key == "harmful" and value)):
            text, tone = yes if value else no
            yield {"text": text, "tone": tone}
    if kind == "helpful" and verdict.helpful_score is not None:
        yield {"text": f"helpful {verdict.helpful_score:.1f}", "tone": "none"}


def _labels(
    where: Path,
    labels: Sequence[Verdict],
    responses: Sequence[Response],
    drawn: Mapping[str, float],
) -> list[Verdict]:
    """Check people's labels of one arm, and give each the probability with which it was drawn."""
    known = {response.id for response in responses}
    by_id: dict[str, Verdict] = {}
    for label in labels:
        if label.response_id not in known:
            raise InputError(
                f"{where}: labels {label.response_id}, which is no answer of this run; take that "
                "line out, or put back the responses that it belongs to"
            )
        before = by_id.setdefault(label.response_id, label)
        said = [(v.harmful, v.refused, v.helpful_score) for v in (before, label)]
        if said[0] != said[1]:
            raise InputError(
                f"{where}: two labels of {label.response_id} contradict each other; keep one"
            )
    return [
        label.model_copy(
            update={
                "sampling_probability": drawn.get(label.response_id, label.sampling_probability)
            }
        )
        for label in by_id.values()
    ]


def _drawn(plan: Path) -> dict[str, float]:
    """Return with which probability a review's plan drew each answer; nothing without a plan."""
    if not plan.exists():
        return {}
    try:
        found = {
            answer["response_id"]: float(answer["probability"])
            for answer in json.loads(plan.read_text(encoding="utf-8"))["answers"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{plan}: no plan of a review; make it again with `setbacks review RUN --plan`"
        ) from None
    wrong = [p for p in found.values() if not 0 < p <= 1]
    if wrong:
        raise InputError(f"{plan}: {wrong[0]} is no probability; it must be above 0 and at most 1")
    return found


def _judges(folder: Path, arm: str) -> list[str]:
    found = (folder / "verdicts").glob("*.jsonl")
    return sorted(p.name[len(arm) + 1 : -6] for p in found if p.name.startswith(f"{arm}."))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Plain JSON lines; a torn last one (training was killed) is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _prose(text: str) -> Markup:
    """A sentence of `metrics` as HTML: commands as code, numbers kept whole, real minus signs."""
    from markupsafe import Markup, escape

    safe = str(escape(visible(text)))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"(?<=[(\s])-(?=\d)", "−", safe).replace(" %", "\u00a0%")
    return Markup(safe)


def _reach(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The farthest end of an interval from zero, of rates and of scores: the scale of the bars."""
    ends: tuple[list[float], list[float]] = ([1e-6], [1e-6])
    for row in rows:
        for key, cell in row["metrics"].items():
            if cell["low"] is not None:
                ends[key.endswith("_score")].extend((abs(cell["low"]), abs(cell["high"])))
    return max(ends[0]), max(ends[1])


class Written(NamedTuple):
    """An estimate as text; empty where there is no number."""

    value: str
    interval: str
    n: int


def _percent(cell: Mapping[str, Any]) -> Written:
    return _written(cell, 100, 1)


def _score(cell: Mapping[str, Any]) -> Written:
    return _written(cell, 1, 2)


def _written(cell: Mapping[str, Any], scale: int, places: int) -> Written:
    if cell["value"] is None:
        return Written("–", "", cell["n"])
    value = f"{scale * cell['value']:.{places}f}"
    if cell["low"] is None:
        return Written(value, "", cell["n"])
    low, high = (f"{scale * cell[key]:.{places}f}" for key in ("low", "high"))
    return Written(value, f"{low} – {high}", cell["n"])


def _points(cell: Mapping[str, Any], scale: int = 100) -> Written:
    places = 1 if scale == 100 else 2
    value, low, high = (
        "" if cell[key] is None else f"{scale * cell[key]:+.{places}f}".replace("-", "−")
        for key in ("value", "low", "high")
    )
    return Written(value, f"{low} to {high}" if low else "", cell["n"])


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
