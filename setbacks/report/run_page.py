"""The page of one run, and its headline for a terminal.

The page is a single file that needs no network and no scripts, and shows no harmful text until it
is asked to. Two equal runs give equal pages, but for the section of costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from setbacks.measure.formatting import clock, p_value, percent, points, score
from setbacks.measure.metrics import KINDS, MAIN, TITLES, counted, thin
from setbacks.records import Kind, Response, Verdict
from setbacks.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from rich.table import Table

# The columns of the headline, in the order of a reader's questions.
HEADLINE = (
    "harmless_rate",
    "hijacking_harmless_rate",
    "compliance",
    "balanced_safety",
    "helpful_score",
)
# What an answer can be, in the words of a table's head.
ANSWERED = {
    "text": "Text",
    "refusal": "Refused by the provider",
    "thought": "Only reasoning",
    "nothing": "Nothing",
    "failed": "Failed",
}
SHOWN = 3  # examples of each kind and choice
LONGEST = 1_500  # characters of a response shown


@cache
def environment_of_pages(package: str = "setbacks.report", folder: str = "") -> Environment:
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

    from setbacks.report import plots

    pages = environment_of_pages()
    pages.filters.update(
        percent=percent, points=points, score=score, p=p_value, clock=clock, prose=_prose
    )
    look = plots.marks([arm for arm in metrics["data"]["responses"]])
    training = metrics["training"]
    return pages.get_template("report.html.jinja").render(
        m=metrics,
        titles=TITLES,
        headline=HEADLINE,
        kinds=KINDS,
        main=MAIN,
        thin=thin,
        undrawn={
            judge: [row["arm"] for row in found["arms"] if thin(row, "balanced_safety")]
            for judge, found in metrics["judges"].items()
        },
        answered=ANSWERED,
        shown=shown,
        glyphs={arm: Markup(plots.glyph(mark)) for arm, mark in look.items()},
        pictures={
            judge: {
                "trade_off": Markup(_clean_svg(plots.trade_off(_comparable(found), f"t{i}"))),
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
            for badge in _badges(counted(r, found[r.id]), r.kind)
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

    Where degenerate answers move balanced safety, it has the figure without them as failures, too.

    Args:
        metrics: what `measure` returned.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(caption="with 95 % intervals", caption_justify="left")
    table.add_column("Arm", overflow="fold")
    for key in HEADLINE:
        table.add_column(TITLES[key].replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("Degen-\nerate", justify="right", no_wrap=True)
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
                written = score if key == "helpful_score" else percent
                value, interval, n = written(row[key])
                told = [value, interval.replace(" ", ""), f"n {n}"]
                judged = percent(row["as_judged"][key])[0] if key == "balanced_safety" else value
                if judged != value:
                    told[2:2] = ["as judged", judged]
                if n < (asked := row[key]["asked"]):
                    told.append(f"of {asked}{' (few)' if thin(row, key) else ''}")
                cells.append(Text("\n".join(filter(None, told)) if asked else value))
            degenerate = metrics["data"]["responses"][row["arm"]]["degenerate"]["all"]
            value, interval, n = percent(degenerate)
            told = [value, interval.replace(" ", ""), f"n {n}"]
            cells.append(Text("\n".join(filter(None, told))))
            table.add_row(Text(visible(row["arm"]), style="bold" if wins else ""), *cells)
    return table


def _comparable(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A judge's rows of arms, without the numbers of those of which too little is scored."""
    hidden = {"harmless_rate": {"value": None}}
    return [row | hidden if thin(row, "balanced_safety") else row for row in found["arms"]]


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
                ends[key.endswith("score")].extend((abs(cell["low"]), abs(cell["high"])))
    return max(ends[0]), max(ends[1])
