"""The draw of answers for labeling, with known probabilities, also by one plan after another.

Each answer has one random number, and a plan draws it if its probability is larger. A later plan
uses the same numbers, so it draws what the earlier one drew, and more: an answer that both could
draw has the larger of the two probabilities, and labels of both can be used together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from setbacks.measure import statistics
from setbacks.records import digest

FLOOR = 0.5  # share of the labels that are spread evenly


class Cell(NamedTuple):
    """One answer that could be labeled."""

    id: str
    rate: str
    arm: int  # 0 or 1
    judged: float  # the outcome by the judge, or what it expects if it abstains
    doubt: float  # expected squared error of the verdict, in [0, 1]
    labeled: bool
    degenerate: bool  # a failure without a judge or a person
    slope: float = 1.0  # derivative of the difference by its arm's rate
    n: int = 1  # prompts of its rate
    certain: bool = False  # labeled, whatever is drawn
    earlier: float = 0.0  # probability with which an earlier plan drew it; 0 if it did not
    done: float = 0.0  # share labeled of what the earlier plan drew of its arm and rate

    @property
    def is_open(self) -> bool:
        """Whether its label depends on a draw."""
        return not (self.certain or self.degenerate)

    @property
    def is_unlabeled(self) -> bool:
        """Whether a label would add something."""
        return not (self.labeled or self.degenerate)


def after(cells: Sequence[Cell], earlier: Mapping[str, float]) -> list[Cell]:
    """Return the answers with what an earlier plan means for them.

    Where no plan drew answers of an arm and rate, its labels are certain. Where one did, a label of
    an answer that it did not draw is used only if the new plan draws it: whoever labels more after
    a plan labels what it passed over.

    Args:
        cells: the answers.
        earlier: response id -> probability of what an earlier plan drew.
    """
    drawn: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for cell in cells:
        if 0 < earlier.get(cell.id, 0) < 1:
            drawn[cell.rate, cell.arm].append(cell.labeled)
    updated = []
    for cell in cells:
        probability = earlier.get(cell.id, 0.0)
        group = drawn.get((cell.rate, cell.arm), [])
        updated.append(
            cell._replace(
                certain=cell.labeled and (probability == 1 or not group),
                earlier=probability if probability < 1 else 0.0,
                done=sum(group) / len(group) if group else 0.0,
            )
        )
    return updated


def probabilities(cells: Sequence[Cell], number: int) -> list[float]:
    """Return each answer's probability, so that about `number` are drawn, besides certain ones.

    The variance is lowest if the probability is proportional to the root of the doubt, times the
    effect of the answer on the difference (arXiv 2403.03208, section 4).
    """
    pull = [cell.slope / cell.n * cell.doubt**0.5 if cell.is_open else 0.0 for cell in cells]
    even = [1.0 if cell.is_open else 0.0 for cell in cells]
    wish = [
        (1 - FLOOR) * x / max(sum(pull), 1e-12) + FLOOR * y / max(sum(even), 1e-12)
        for x, y in zip(pull, even, strict=True)
    ]
    drawn = [0.0 if cell.is_open else 1.0 for cell in cells]
    left = float(number)
    # A probability above 1 is cut, and the rest goes to the others.
    open_ = {i for i, w in enumerate(wish) if w > 0}
    while open_:
        total = sum(wish[i] for i in open_)
        full = {i for i in open_ if left * wish[i] >= total * (1 - 1e-9)}
        if not full:
            for i in open_:
                drawn[i] = left * wish[i] / total
            break
        for i in full:
            drawn[i] = 1.0
        left -= len(full)
        open_ -= full
    return drawn


def inclusion(cells: Sequence[Cell], drawn: Sequence[float]) -> list[float]:
    """Return the probability that an answer has a label once the drawn ones are labeled.

    It is the larger one of the two plans' probabilities; if people have labeled only a share of
    what the earlier plan drew, what it drew beyond the new plan counts with that share.

    Args:
        cells: the answers.
        drawn: the new plan's probabilities.
    """
    return [
        p + cell.done * max(0.0, cell.earlier - p) for cell, p in zip(cells, drawn, strict=True)
    ]


def draw(
    cells: Sequence[Cell], drawn: Sequence[float], seed: int | str
) -> list[tuple[Cell, float]]:
    """Return the answers of a plan, in its order, each with its probability.

    Args:
        cells: the answers.
        drawn: the new plan's probabilities.
        seed: of the draw; that of an earlier plan.
    """
    chosen = [
        (cell, included)
        for cell, p, included in zip(cells, drawn, inclusion(cells, drawn), strict=True)
        if not cell.degenerate
        and (_uniform("draw", seed, cell.id) < p or (cell.labeled and cell.earlier))
    ]
    chosen.sort(key=lambda pair: _uniform("order", seed, pair[0].id))  # arms and kinds mixed
    return chosen


def number_for(cells: Sequence[Cell], labels: int, seed: int | str) -> int:
    """Return how many answers to draw for a number of new labels.

    Without an earlier plan it is that number, or the next larger one that draws an answer at all.

    Args:
        cells: the answers.
        labels: the number of new labels.
        seed: of the draw.
    """
    again = any(cell.labeled and cell.is_open for cell in cells)
    least = labels if again else 1
    low, high = (0 if again else labels), sum(cell.is_open for cell in cells)
    while low < high:
        middle = (low + high) // 2
        chosen = draw(cells, probabilities(cells, middle), seed)
        if sum(cell.is_unlabeled for cell, _ in chosen) >= least:
            high = middle
        else:
            low = middle + 1
    return high


def error(cells: Sequence[Cell], drawn: Sequence[float], spread: float) -> float:
    """Return the expected standard error of the corrected difference.

    Args:
        cells: the answers.
        drawn: the plan's probabilities.
        spread: variance of the difference over prompts, with all answers labeled.
    """
    unread = sum(
        (cell.slope / cell.n) ** 2 * cell.doubt * (1 / p - 1)
        for cell, p in zip(cells, inclusion(cells, drawn), strict=True)
    )
    return float((spread + unread) ** 0.5)


def enough(cells: Sequence[Cell], spread: float, target: float) -> int:
    """Return the fewest answers to draw that reach the target error; all of them if none do.

    Args:
        cells: the answers.
        spread: as in `error`.
        target: the standard error to reach.
    """
    most = sum(cell.is_open for cell in cells)
    low, high = min(most, 2 * statistics.FEWEST_LABELS), most
    while low < high:
        middle = (low + high) // 2
        if error(cells, probabilities(cells, middle), spread) <= target:
            high = middle
        else:
            low = middle + 1
    return high


def _uniform(*parts: object) -> float:
    """Return a number in [0, 1) that depends only on these parts."""
    return int(digest("review plan", *parts), 16) / 2**64
