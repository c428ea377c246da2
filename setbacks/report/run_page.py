"""The page of one run, and its headline for a terminal.

The page is a single file without network access or scripts. It hides harmful text behind a click.
Two equal runs give equal pages, apart from the section of costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from setbacks.measure.degeneration import Reason
from setbacks.measure.differences import first_places
from setbacks.measure.formatting import (
    NATS,
    POINTS,
    clock,
    coefficient,
    is_score,
    listed,
    number,
    of_asked,
    p_value,
    percent,
    unit_of,
    unit_of_change,
    written,
)
from setbacks.measure.metrics import KINDS, MAIN, TITLES, counted, fell_apart, significant, thin
from setbacks.measure.results import ArmRow, Comparison, JudgeReport, Measurement
from setbacks.measure.substance import part
from setbacks.messages import Prompt, in_brief
from setbacks.records import Arm, Context, Kind, Response, Verdict
from setbacks.report.terminal import WholeWords
from setbacks.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# The columns of the main table, in the order of a reader's questions.
HEADLINE = (
    "harmless_rate",
    "hijacking_harmless_rate",
    "compliance",
    "balanced_safety",
    "helpful_score",
)
# What an answer can be, as the title of a column.
ANSWERED = {
    "text": "Text",
    "refusal": "Refused by the provider",
    "thought": "Only reasoning",
    "nothing": "Nothing",
    "failed": "Failed",
}
# Why an answer is degenerate, in the words of a badge.
DEGENERATE: dict[Reason, str] = {
    "repeats": "repeats itself",
    "parrots": "repeats the prompt",
    "runs_on": "made-up turns",
    "fragment": "fragment",
    "offers": "only offers help",
}
# What the model sees when the flip rate is measured.
SEEN: dict[Context, str] = {
    "none": "the instruction alone",
    "guidance": "guidance",
    "analysis": "guidance and the right analysis",
    "shuffled": "guidance and the analysis of another mistake",
}
SHOWN = 3  # examples of each kind and choice
LONGEST = 1_500  # characters of a response shown


@cache
def environment_of_pages(package: str = "setbacks.report", folder: str = "") -> Environment:
    """Return the Jinja environment of a package's templates: it escapes all text."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        # What all pages share, such as the thread of a conversation, is in this package.
        loader=ChoiceLoader([PackageLoader(package, folder), PackageLoader(__package__, "")]),
        autoescape=True,
        # All text of a page passes here, so that no invisible character stays hidden.
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["brief"] = in_brief
    return environment


@dataclass(frozen=True)
class Badge:
    """A judge's verdict on one answer, in a word; `tone` is good, bad or none."""

    judge: str
    text: str
    tone: str


@dataclass(frozen=True)
class ShownAnswer:
    """One arm's answer.

    Args:
        arm: who answered.
        text: the answer, cut to `LONGEST` characters.
        more: the number of characters left out.
        thought: what the model thought before it, cut likewise; None without a thought.
        badges: the judges' verdicts.
        degenerate: why it does not count as an answer; None where it does.
    """

    arm: Arm
    text: str
    more: int
    thought: str | None
    badges: tuple[Badge, ...]
    degenerate: str | None

    @property
    def harmful(self) -> bool:
        """Whether a judge calls it harmful."""
        return any(badge.text == "harmful" for badge in self.badges)


@dataclass(frozen=True)
class Shown:
    """A prompt of the page; `why` is "drawn", or "differs" where the verdicts on it do."""

    why: str
    id: str
    suite: str
    category: str | None
    instruction: Prompt
    answers: tuple[ShownAnswer, ...]


def render(
    results: Measurement, recipe: Mapping[str, object], shown: Mapping[Kind, Sequence[Shown]]
) -> str:
    """Return the page.

    Args:
        results: what `measure` returned.
        recipe: the recipe as plain data.
        shown: what `examples` returned.
    """
    import yaml
    from markupsafe import Markup

    from setbacks.report import plots

    pages = environment_of_pages()
    pages.filters.update(
        written=written, coefficient=coefficient, number=number, percent=percent, p=p_value,
        clock=clock, of_asked=of_asked, listed=listed, prose=_prose,
    )  # fmt: skip
    look = plots.marks(results.data.responses)
    training = results.training
    return pages.get_template("report.html.jinja").render(
        m=results,
        titles=TITLES,
        headline=HEADLINE,
        kinds=KINDS,
        main=MAIN,
        thin=thin,
        is_score=is_score,
        unit=unit_of,
        unit_of_change=unit_of_change,
        significant=significant,
        level={judge: first_places(report) for judge, report in results.judges.items()},
        undrawn={
            judge: [row.arm.label for row in report.arms if thin(row, "balanced_safety")]
            for judge, report in results.judges.items()
        },
        answered=ANSWERED,
        contexts=SEEN,
        points=POINTS,
        nats=NATS,
        shown=shown,
        glyphs={arm: Markup(plots.glyph(mark)) for arm, mark in look.items()},
        pictures={
            judge: _pictures(report, place)
            for place, (judge, report) in enumerate(results.judges.items())
        },
        reach={judge: _reach(report.differences) for judge, report in results.judges.items()},
        loss=Markup(plots.loss_curve(training.loss)) if training else None,
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=90),
    )


class Pictures(NamedTuple):
    """The pictures of one judge: the trade-off, and the categories of each kind."""

    trade_off: Markup
    categories: dict[Kind, Markup]


def _pictures(report: JudgeReport, place: int) -> Pictures:
    """The pictures of one judge; its place is part of their ids, which are unique in a page."""
    from markupsafe import Markup

    from setbacks.report import plots

    places = [
        plots.Place(row.arm, row.harmless_rate, row.compliance)
        for row in report.arms
        if not thin(row, "balanced_safety")
    ]
    return Pictures(
        trade_off=Markup(visible(plots.trade_off(places, f"t{place}"))),
        categories={
            kind: Markup(visible(plots.dots(rows, f"c{place}-{kind}", TITLES[MAIN[kind]])))
            for kind in KINDS[:3]
            if len(rows := [row for row in report.by_category if row.kind == kind]) > 1
        },
    )


def examples(
    responses: Mapping[Arm, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
) -> dict[Kind, list[Shown]]:
    """Choose what the page shows: a few prompts of each kind, with every arm's answer.

    The first by id (ids are digests, so this is a random draw), then the first on which a judge's
    verdicts differ between arms.

    Args:
        responses: by arm.
        verdicts: by (arm's name, judge).
    """
    by_id = {key: {v.response_id: v for v in rows} for key, rows in verdicts.items()}
    prompts: dict[Kind, dict[tuple[str, str], dict[Arm, Response]]] = {}
    for arm, rows in responses.items():
        for r in rows:
            prompts.setdefault(r.kind, {}).setdefault((r.instruction_id, r.suite), {})[arm] = r

    def badges(arm: Arm, r: Response) -> tuple[Badge, ...]:
        return tuple(
            badge
            for (of, judge), by_response in by_id.items()
            if of == arm.name and r.id in by_response
            for badge in _badges(judge, counted(r, by_response[r.id]), r.kind)
        )

    chosen: dict[Kind, list[Shown]] = {}
    for kind in KINDS:
        drawn: list[Shown] = []
        differing: list[Shown] = []
        for _, answers in sorted(prompts.get(kind, {}).items()):
            of_arm = {arm: badges(arm, r) for arm, r in answers.items()}
            differs = len({tuple(b.text for b in row) for row in of_arm.values()}) > 1
            if len(drawn) < SHOWN:
                drawn.append(_shown("drawn", answers, of_arm))
            elif len(differing) < SHOWN and differs:
                differing.append(_shown("differs", answers, of_arm))
        if drawn:
            chosen[kind] = drawn + differing
    return chosen


def _shown(
    why: str, answers: Mapping[Arm, Response], badges: Mapping[Arm, tuple[Badge, ...]]
) -> Shown:
    r = next(iter(answers.values()))
    return Shown(
        why=why,
        id=r.instruction_id,
        suite=r.suite,
        category=r.category,
        instruction=r.instruction,
        answers=tuple(
            ShownAnswer(
                arm,
                text[:LONGEST],
                max(0, len(text) - LONGEST),
                thought and thought[:LONGEST],
                badges[arm],
                _degenerate(answer),
            )
            for arm, answer in answers.items()
            for thought, text in [_parted(answer)]
        ),
    )


def _parted(answer: Response) -> tuple[str | None, str]:
    """Return a response's thought, if there is one, and its answer."""
    return part(answer.text) if answer.thought is None else (answer.thought, answer.text)


def headline(results: Measurement) -> WholeWords:
    """Return the table of arms for a terminal: rates in %, 95 % intervals below them, n.

    Where degenerate answers move balanced safety, its cell also has the figure as judged. A metric
    for which the run has no prompts gets no column.

    Args:
        results: what `measure` returned.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        caption="with 95 % intervals",
        caption_justify="left",
        collapse_padding=True,  # room for the labels of arms
        pad_edge=False,
    )
    table.add_column(Text("Arm"))
    rows = [row for report in results.judges.values() for row in report.arms]
    metrics = [key for key in HEADLINE if any(row.score(key).asked for row in rows)]
    for key in metrics:
        title = Text(TITLES[key].replace(" ", "\n"))
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(Text("Degenerate"), justify="right", no_wrap=True)
    several = len(results.judges) > 1
    for judge, report in results.judges.items():
        if several:
            table.add_section()
            table.add_row(Text(f"judged by {judge}", style="italic"))
        best = report.best.arm if report.best and report.best.supported else None
        for row in report.arms:
            style = "bold" if row.arm == best else ""
            cells = (Text(_headline_cell(row, key)) for key in metrics)
            share = results.data.responses[row.arm].degenerate.all
            degenerate = Text(_lines(*written(share), f"n {share.n}"))
            table.add_row(Text(visible(row.arm.label), style=style), *cells, degenerate)
    return WholeWords(table)


def _headline_cell(row: ArmRow, key: str) -> str:
    score = row.score(key)
    value, interval = written(score, unit_of(key))
    if not score.asked:
        return value
    lines = [value, interval, f"n {score.n}"]
    judged = written(row.as_judged[key], unit_of(key)).value
    if key == "balanced_safety" and judged != value:
        lines[2:2] = ["as judged", judged]
    if score.n < score.asked:
        lines.append(f"of {score.asked}{' (few)' if thin(row, key) else ''}")
    return _lines(*lines)


def _lines(value: str, interval: str, *others: str) -> str:
    """The text of a narrow cell: an interval without blanks, and no empty line."""
    return "\n".join(filter(None, (value, interval.replace(" ", ""), *others)))


def _badges(judge: str, verdict: Verdict, kind: Kind) -> Iterator[Badge]:
    words = {
        "harmful": (verdict.harmful, ("harmful", "bad"), ("harmless", "good")),
        "refused": (verdict.refused, ("refused", "bad"), ("answered", "good")),
    }
    wanted = "harmful" if kind in ("harmful", "hijacking") else "refused"
    for key, (value, yes, no) in words.items():
        if value is None and key == wanted and not (kind == "helpful" and verdict.helpful_score):
            yield Badge(judge, "unscored", "none")
        elif value is not None and (key == wanted or (key == "harmful" and value)):
            yield Badge(judge, *(yes if value else no))
    if kind == "helpful" and verdict.helpful_score is not None:
        yield Badge(judge, f"helpful {number(verdict.helpful_score, 1)}", "none")


def _degenerate(answer: Response) -> str | None:
    """Why a response does not count as an answer, in a word or two."""
    why = fell_apart(answer.text, answer.instruction, answer.finish, answer.guidance)
    return DEGENERATE[why.reason] if why else None


def _prose(text: str) -> Markup:
    """A sentence of the results as HTML: commands as code, a number and its unit on one line."""
    from markupsafe import Markup, escape

    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(visible(text))))
    return Markup(safe.replace(" %", "\u00a0%"))


def _reach(rows: Sequence[Comparison]) -> dict[bool, float]:
    """The scale of the bars: the interval end farthest from zero, for rates and for scores."""
    reach = {False: 1e-6, True: 1e-6}
    for row in rows:
        for key, cell in row.metrics.items():
            ends = (abs(cell.low or 0), abs(cell.high or 0))
            reach[is_score(key)] = max(reach[is_score(key)], *ends)
    return reach
