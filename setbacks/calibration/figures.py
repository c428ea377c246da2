"""The figures of a calibration: a judge's verdicts beside human labels, and the diagram of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.data.languages import languages_measured
from setbacks.data.source import Row
from setbacks.measure import statistics
from setbacks.messages import transcript
from setbacks.records import Verdict

TASKS = ("harmful", "refused")
MEASURES = {
    "auc": "AUC",
    "kappa": "kappa",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "ece": "ECE",
}


class Seen(NamedTuple):
    """An answer with human labels and a judge's verdict."""

    row: Row
    verdict: Verdict

    def label(self, task: str) -> bool | None:
        """The human label; None if there is none."""
        value: bool | None = getattr(self.row, task)
        return value

    def says(self, task: str) -> bool | None:
        """The judge's verdict; None if it gave none."""
        value: bool | None = getattr(self.verdict, task)
        return value

    def score(self, task: str) -> float:
        """The judge's probability; else its score, scaled to [0, 1]; else its verdict, 0 or 1."""
        p = getattr(self.verdict, f"p_{task}")
        if p is not None:
            return float(p)
        rated = self.verdict.harmless_score
        if task == "harmful" and rated is not None:
            return (10 - rated) / 9
        return float(bool(self.says(task)))


def measure(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return the figures over all answers, by source and by category, a row per task.

    A group whose labels are all the same has only counts.
    """
    groups: dict[str, dict[str, list[Seen]]] = {"overall": {"all": list(seen)}}
    groups["sources"], groups["categories"] = {}, {}
    for one in seen:
        groups["sources"].setdefault(one.row.source, []).append(one)
        if one.row.category:
            groups["categories"].setdefault(one.row.category, []).append(one)
    return {
        kind: [
            row
            for name, members in sorted(named.items())
            for task in TASKS
            if (row := _measured(name, task, members)) and (kind != "overall" or row["auc"])
        ]
        for kind, named in groups.items()
    }


def _measured(name: str, task: str, members: Sequence[Seen]) -> dict[str, Any] | None:
    labeled = [one for one in members if one.label(task) is not None]
    kept = [one for one in labeled if one.says(task) is not None]
    if not labeled:
        return None
    probable = all(getattr(one.verdict, f"p_{task}") is not None for one in kept)
    counts = figures(
        [transcript(one.row.text) for one in kept],
        [bool(one.label(task)) for one in kept],
        [one.score(task) for one in kept],
        [bool(one.says(task)) for one in kept],
    ) | ({} if probable else {"ece": None})
    unscored = len(labeled) - len(kept)
    return {
        "source": name,
        "task": task,
        "languages": languages_measured([one.row for one in labeled], task),
        "fitted_on": False,
        "unscored": unscored,
    } | counts


def figures(
    questions: Sequence[str],
    truth: Sequence[bool],
    score: Sequence[float],
    says: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """The counts and measures of one group; only counts if its labels are all the same."""
    both = len(set(truth)) > 1
    measures = statistics.agreement(questions, truth, score, says) if both else {}
    return {
        "licence": None,
        "n": len(truth),
        "n_positive": sum(truth),
        "n_questions": len(set(questions)),
        **dict.fromkeys(MEASURES),
        **measures,
    }


def draw(seen: Sequence[Seen], title: str, file: Path) -> None:
    """Draw the reliability diagram: the share of positive labels by the judge's score.

    On the diagonal, a score of 0.7 means 7 of 10. Bars are Wilson's 95 % intervals; the area of a
    point is its number of answers.

    Args:
        seen: answers with labels and verdicts.
        title: the picture's title.
        file: the file to write; its ending sets the format.

    Source: Murphy and Winkler (1977), J. Royal Statistical Society C 26(1); Guo et al. (2017),
    arXiv 1706.04599.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.9), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        axes.plot((0, 1), (0, 1), color="#999999", lw=1, ls="--")
        bins: dict[int, list[tuple[float, bool]]] = {}
        for one in seen:
            label = one.label(task)
            if label is not None and one.says(task) is not None:
                score = one.score(task)
                last = statistics.BINS - 1
                bins.setdefault(min(int(score * statistics.BINS), last), []).append((score, label))
        total = sum(map(len, bins.values()))
        for points in bins.values():
            x = sum(score for score, _ in points) / len(points)
            value, low, high, n = statistics.rate(sum(label for _, label in points), len(points))
            axes.plot((x, x), (low, high), color="#1f5fa8", lw=1.4)
            axes.plot(x, value, "o", color="#1f5fa8", ms=4 + 14 * math.sqrt(n / total))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_title(f"{task}, {total} answers" if total else f"{task}: no labels", fontsize=10)
        axes.set_xlabel("the judge's score")
        axes.set_ylabel(f"share that people call {task}")
    dated = {"svg": {"Date": None}, "png": {"Software": None}}[file.suffix[1:]]
    with rc_context({"svg.hashsalt": "setbacks", "svg.fonttype": "none"}):
        figure.savefig(file, dpi=144, metadata=dated)
    file.chmod(0o600)
