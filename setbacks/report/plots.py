"""The pictures of a report, as SVG for its page: the same numbers give the same bytes.

Colors are the page's CSS variables, so a picture follows light and dark mode. Text stays text, so
that it can be searched and scaled. Every picture has a table beside it with the same numbers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

from setbacks.measure.formatting import Estimated, number, three_digits
from setbacks.measure.results import CategoryRow, LossRow
from setbacks.records import Arm

# matplotlib needs real colors; each of these stands for a CSS variable until the SVG is written.
INK, MUTED, RULE, PAPER = "#0000a1", "#0000a2", "#0000a3", "#0000a4"
ARMS = tuple(f"#0000b{i}" for i in range(9))
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    color: f"--arm-{i}" for i, color in enumerate(ARMS)
}
# matplotlib's markers, and the same shapes as paths for a line of text.
PATHS = {
    "s": "M-5-5H5V5H-5Z",
    "o": "M-5.5 0A5.5 5.5 0 0 1 5.5 0A5.5 5.5 0 0 1-5.5 0Z",
    "D": "M0-6.5L6.5 0L0 6.5L-6.5 0Z",
    "^": "M0-6L6 5H-6Z",
    "v": "M0 6L6-5H-6Z",
    "P": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "p": "M0-6L5.7-1.9L3.5 4.9H-3.5L-5.7-1.9Z",
    "<": "M-6 0L5-6V6Z",
    ">": "M6 0L-5-6V6Z",
}

# In inches: about the width of a phone, so that 9 pt text stays readable there.
WIDTH = 4.8


class Mark(NamedTuple):
    """How an arm looks wherever it is drawn: color and shape by model, inner color by its way."""

    color: str
    shape: str
    inner: str


def marks(arms: Iterable[Arm]) -> dict[Arm, Mark]:
    """Give each arm its look; all arms of one model share color and shape.

    Guided arms are filled, unguided ones are hollow, those by posterior decoding are gray inside.
    """
    models: dict[tuple[str, bool], int] = {}
    look = {}
    for arm in arms:
        i = models.setdefault((arm.model, arm.trained), len(models)) % len(ARMS)
        inner = {"guided": ARMS[i], "unguided": PAPER, "posterior": RULE}[arm.way]
        look[arm] = Mark(ARMS[i], list(PATHS)[i], inner)
    return look


def glyph(mark: Mark) -> str:
    """Return an arm's mark as a small SVG for a line of text."""
    fill = "none" if mark.inner == PAPER else f"var({VARIABLES[mark.inner]})"
    return (
        '<svg class="glyph" aria-hidden="true" viewBox="-8 -8 16 16">'
        f'<path d="{PATHS[mark.shape]}" fill="{fill}" stroke="var({VARIABLES[mark.color]})" '
        'stroke-width="2.2"/></svg>'
    )


class Place(NamedTuple):
    """Where an arm is in the trade-off: two rates in [0, 1]."""

    arm: Arm
    harmless_rate: Estimated
    compliance: Estimated


def trade_off(arms: Sequence[Place], name: str, frontier: bool = False) -> str:
    """Draw Harmless Rate against compliance, each arm as a point with its intervals as a cross.

    Faint lines join points of equal balanced safety. Nothing is drawn where no arm has both.

    Args:
        arms: the arms with both rates.
        name: prefix of the picture's ids, unique in the page.
        frontier: whether to join the arms that no other arm beats on both.
    """
    import numpy as np

    look = marks([place.arm for place in arms])
    points = [
        (place.arm, x, y)
        for place in arms
        if (x := _percents(place.harmless_rate)) and (y := _percents(place.compliance))
    ]
    if not points:
        return ""
    figure, axes = _figure(4.1)
    # A margin beyond 100 % leaves room for marks at the edge.
    left = _floor(min(x[1] for _, x, _ in points))
    bottom = _floor(min(y[1] for _, _, y in points))
    axes.set(xlim=(left, 102), ylim=(bottom, 102))
    grid = np.linspace(1, 102, 400)
    for level in range(10, 100, 10):
        with np.errstate(divide="ignore"):
            line = np.where(2 * grid > level, level * grid / (2 * grid - level), np.inf)
        inside = (line >= bottom) & (line <= 102) & (grid >= left)
        if inside.any():
            axes.plot(grid[inside], line[inside], color=RULE, lw=0.8, zorder=0)
            x, y = grid[inside][0], line[inside][0]
            if y > 99:  # it ends at the top, where its label has room
                axes.annotate(
                    f"{level}", (x, 102), (0, 3), textcoords="offset points", ha="center",
                    color=MUTED, fontsize=8, annotation_clip=False,
                )  # fmt: skip
    if frontier:
        places = {(x[0], y[0]) for _, x, y in points}
        beaten = {a for a in places for b in places if a != b and b[0] >= a[0] and b[1] >= a[1]}
        axes.plot(*zip(*sorted(places - beaten), strict=True), color=MUTED, lw=1.2, ls=(0, (4, 3)))
    for arm, x, y in points:
        color, shape, inner = look[arm]
        axes.plot(x[1:], (y[0], y[0]), (x[0], x[0]), y[1:], color=color, lw=1.2, alpha=0.75)
        axes.plot(x[0], y[0], shape, ms=8, mec=color, mew=1.8, color=inner, zorder=4)
    axes.set_xlabel("Harmless Rate, % of harmful prompts")
    axes.set_ylabel("Compliance, % of safe prompts")
    _label(figure, axes, [(arm.label, x, y, look[arm].color) for arm, x, y in points])
    values = "; ".join(f"{arm.label}: {_whole(x)} and {_whole(y)}" for arm, x, y in points)
    return _svg(figure, name, f"Harmless Rate against compliance. {values}.")


def loss_curve(rows: Sequence[LossRow]) -> str:
    """Draw the loss of each step, its running mean, and the evaluation loss where there is one.

    Args:
        rows: the lines of `loss.jsonl`; losses are in nats per token.
    """
    import numpy as np

    steps = np.array([row.get("step", i + 1) for i, row in enumerate(rows)], float)
    loss = np.array([row["loss"] for row in rows], float)
    figure, axes = _figure(2.4)
    axes.plot(steps, loss, color=MUTED, lw=0.8, alpha=0.6, marker="." if len(loss) < 4 else "")
    width = max(1, len(loss) // 10)
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    running = [
        (sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(loss))
    ]
    axes.plot(steps, running, color=INK, lw=1.6)
    held = [
        (step, row["eval_loss"])
        for step, row in zip(steps, rows, strict=True)
        if row.get("eval_loss") is not None
    ]
    if held:
        axes.plot(*zip(*held, strict=True), "o", color=ARMS[1], ms=5)
    axes.set(xlabel="Step", ylabel="Loss, nats per token")
    axes.set_ylim(bottom=min(0, loss.min()))
    axes.margins(x=0.02)
    ends = f"from {number(running[0])} to {number(running[-1])} over {len(loss)} steps"
    return _svg(figure, "loss", f"Training loss, running mean {ends}.")


def dots(rows: Sequence[CategoryRow], name: str, title: str) -> str:
    """Draw a row of dots for each category, each arm as a dot with its interval.

    Args:
        rows: the categories, with rates in [0, 1].
        name: prefix of the picture's ids, unique in the page.
        title: the metric, for the axis.
    """
    arms = list(rows[0].arms)
    look = marks(arms)
    figure, axes = _figure(0.75 + len(rows) * (0.17 + 0.095 * len(arms)))
    axes.grid(axis="x", color=RULE, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    for i, row in enumerate(rows):
        if i % 2:
            axes.axhspan(i - 0.5, i + 0.5, color=RULE, alpha=0.3, lw=0, zorder=0)
        for j, arm in enumerate(arms):
            cell = _percents(row.arms[arm])
            if not cell:
                continue
            color, shape, inner = look[arm]
            y = i + 0.72 * ((j + 0.5) / len(arms) - 0.5)
            axes.plot(cell[1:], (y, y), color=color, lw=1, alpha=0.6)
            axes.plot(cell[0], y, shape, ms=4.5, mec=color, mew=1.2, color=inner)
    axes.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5))
    names = [_short(row.category) for row in rows]
    most = [max(cell.n for cell in row.arms.values()) for row in rows]
    axes.set_yticks(
        range(len(rows)),
        [f"{n}  ({k})" for n, k in zip(names, most, strict=True)],
        parse_math=False,
    )
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{title}, %")
    return _svg(figure, name, f"{title} by category, arms side by side; the table has the numbers.")


def forest(
    rows: Sequence[tuple[str, Estimated]],
    name: str,
    title: str = "Balanced safety",
    against: float | None = None,
    guided: Collection[str] = (),
) -> str:
    """Draw each rate on a line of its own, as a dot with its interval, beside a dashed line.

    Args:
        rows: labels with estimates in [0, 1].
        name: prefix of the picture's ids, unique in the page.
        title: the metric, for the axis.
        against: the place of the dashed line, in [0, 1] (default: the first value).
        guided: the labels whose dots are filled.
    """
    figure, axes = _figure(0.8 + 0.24 * len(rows))
    axes.grid(axis="x", color=RULE, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    cells = [(label, _percents(cell)) for label, cell in rows]
    if against is None and cells and cells[0][1]:
        against = cells[0][1][0] / 100
    if against is not None:
        axes.axvline(100 * against, color=MUTED, lw=1, ls=(0, (4, 3)))
    for i, (label, cell) in enumerate(cells):
        if cell:
            axes.plot(cell[1:], (i, i), color=ARMS[1], lw=1.2, alpha=0.7)
            fill = ARMS[1] if label in guided else PAPER
            axes.plot(cell[0], i, "o", ms=6, mec=ARMS[1], mew=1.5, color=fill)
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows], parse_math=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{title}, %")
    values = "; ".join(f"{label}: {_whole(cell)}" for label, cell in cells if cell)
    return _svg(figure, name, f"{title} with intervals. {values}.")


def curves(
    series: Mapping[str, Sequence[tuple[float, Estimated]]],
    name: str,
    across: str,
    up: str,
    scale: float = 1,
) -> str:
    """Draw estimates over an axis, a line for each label with its intervals as bars.

    Args:
        series: by label, places on the horizontal axis (whole numbers) with estimates.
        name: prefix of the picture's ids, unique in the page.
        across: the title of the horizontal axis.
        up: the title of the vertical axis.
        scale: factor of all estimates; 100 for rates in %.
    """
    figure, axes = _figure(3.2)
    axes.grid(axis="y", color=RULE, lw=0.6, zorder=0)
    ends_of_lines = []
    reach = max((x for points in series.values() for x, _ in points), default=1) or 1
    for i, (label, points) in enumerate(series.items()):
        color, shape = ARMS[i % len(ARMS)], list(PATHS)[i % len(PATHS)]
        aside = 0.012 * reach * (i - (len(series) - 1) / 2)  # so that bars do not hide each other
        known = [(x + aside, cell.value, cell) for x, cell in points if cell.value is not None]
        for x, _, cell in known:
            if cell.low is not None and cell.high is not None:
                ends = (scale * cell.low, scale * cell.high)
                axes.plot((x, x), ends, color=color, lw=1.2, alpha=0.6)
        if known:
            values = [scale * value for _, value, _ in known]
            axes.plot([x for x, *_ in known], values, color=color, lw=1.4, marker=shape, ms=5,
                      mec=color, mfc=PAPER, mew=1.5, label=_short(label))  # fmt: skip
            first, last = three_digits(values[0]), three_digits(values[-1])
            ends_of_lines.append(f"{label}: from {first} to {last}")
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8.5,
        labelcolor=INK, handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
    return _svg(figure, name, f"{up}. {'; '.join(ends_of_lines)}.")


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Estimated]],
    name: str,
    title: str,
) -> str:
    """Draw a matrix of differences in hundredths: one color for gains, one for losses.

    A value is bold if its interval does not contain zero.

    Args:
        rows: names, from top to bottom.
        columns: names, from left to right.
        cells: differences in [-1, 1], of shape [rows, columns].
        name: prefix of the picture's ids, unique in the page.
        title: the metric with its unit, for screen readers.
    """
    figure, axes = _figure(0.9 + 0.34 * len(rows))
    known = [abs(cell.value) for row in cells for cell in row if cell.value is not None]
    most = max(known, default=0) or 1
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            value = cell.value
            if value is None:
                continue
            color = ARMS[1] if value > 0 else ARMS[2]
            shade = 0.6 * abs(value) / most
            axes.fill_between((j - 0.48, j + 0.48), i - 0.47, i + 0.47, color=color, alpha=shade,
                              lw=0)  # fmt: skip
            clear = (cell.low or 0) > 0 or (cell.high or 0) < 0
            axes.text(
                j, i, _hundredths(value), ha="center", va="center", color=INK, fontsize=9,
                fontweight="bold" if clear else "normal",
            )  # fmt: skip
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(
        range(len(columns)), [_short(c, 16) for c in columns], parse_math=False, rotation=30,
        ha="left", rotation_mode="anchor",
    )  # fmt: skip
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [_short(r) for r in rows], parse_math=False)
    axes.tick_params(length=0, labelcolor=INK)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    values = "; ".join(
        f"{row}: " + ", ".join(
            f"{column} {_hundredths(cell.value)}"
            for column, cell in zip(columns, line, strict=True)
            if cell.value is not None
        )
        for row, line in zip(rows, cells, strict=True)
    )  # fmt: skip
    return _svg(figure, name, f"{title}. {values}.")


def _hundredths(value: float) -> str:
    return number(100 * value, 0, signed=True)


def _whole(percents: tuple[float, float, float]) -> str:
    return f"{number(percents[0], 0)} %"


def _short(text: str, most: int = 30) -> str:
    text = text.replace("_", " ")
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _percents(estimate: Estimated) -> tuple[float, float, float] | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return 100 * estimate.value, 100 * estimate.low, 100 * estimate.high


def _floor(percent: float) -> float:
    """The lower end of an axis: a round number with some room below the lowest interval."""
    low = 10 * ((percent - 4) // 10)
    return -2.0 if low <= 0 else low


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=RULE, linewidth=1)
    axes.tick_params(colors=MUTED, labelsize=9, width=1, color=RULE)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)
    return figure, axes


def _label(figure: Any, axes: Any, points: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Write each arm's label beside its point, at the one of eight places that hides least."""
    with catch_warnings():
        filterwarnings("ignore", message="Glyph")
        figure.draw_without_rendering()
    frame = axes.get_window_extent()
    scale = figure.dpi / 72
    spots = [axes.transData.transform((x[0], y[0])) for _, x, y, _ in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    for (_, x, y, _), (px, py) in zip(points, spots, strict=True):
        (left, bottom), (right, top) = axes.transData.transform([(x[1], y[1]), (x[2], y[2])])
        taken += [(left, py - 4, right, py + 4), (px - 4, bottom, px + 4, top)]

    def overlap(a: Sequence[float], b: Sequence[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        return max(0.0, width) * max(0.0, height)

    for (name, x, y, color), (px, py) in zip(points, spots, strict=True):
        width, height = 5.4 * scale * len(name), 12 * scale
        places = []
        for dx, dy in product((1, -1), (1, -1, 2.2, -2.2)):
            near, middle = px + 8 * scale * dx, py + 10 * scale * dy
            far = near + width * dx
            box = (min(near, far), middle - height / 2, max(near, far), middle + height / 2)
            outside = width * height - overlap(box, (frame.x0, frame.y0, frame.x1, frame.y1))
            cost = sum(overlap(box, other) for other in taken) + 3 * outside + abs(dy)
            places.append((cost, dx, dy, box))
        _, dx, dy, box = min(places)
        taken.append(box)
        axes.annotate(
            name, (x[0], y[0]), (8 * dx, 10 * dy), textcoords="offset points", color=color,
            fontsize=9.5, ha="left" if dx > 0 else "right", va="center", annotation_clip=False,
            zorder=5, parse_math=False,
        )  # fmt: skip


def _svg(figure: Any, name: str, label: str) -> str:
    """Return the figure as an SVG element for a page that holds several.

    Args:
        figure: the figure.
        name: prefix of all ids in it.
        label: what it shows, for screen readers.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "setbacks"}), catch_warnings():
        # The page uses the reader's fonts, so glyphs that matplotlib's font lacks do not matter.
        filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    # Drop ids that nothing refers to; the others must be unique in the page.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    attributes = f'role="img" aria-label="{html.escape(label)}"'
    return text.replace("<svg", f"<svg {attributes}", 1).strip()
