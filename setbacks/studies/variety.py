"""How varied answers are, with jackknife intervals over prompts.

Distinct-n (Li et al. 2016, arXiv 1510.03055), and how little the answers resemble one another
(after self-BLEU, Zhu et al. 2018, arXiv 1802.01886; here the mean cosine of word 1- and 2-grams,
which has no order of references to choose).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from setbacks.measure.statistics import Difference, Estimate


class Jackknifed:
    """A statistic of a whole list, and what it is without each element in turn."""

    def __init__(self, value: float, without: Sequence[float]) -> None:
        self.value, self.without = value, without

    def _error(self, without: Any) -> float:
        import numpy as np

        n = len(without)
        return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))

    def estimate(self) -> Estimate:
        """Return the statistic, a share, with its interval."""
        import numpy as np

        half = 1.96 * self._error(np.asarray(self.without))
        low, high = max(self.value - half, 0.0), min(self.value + half, 1.0)
        return Estimate(self.value, low, high, len(self.without))

    def minus(self, other: Jackknifed) -> Difference:
        """Return the difference to the same statistic of a list paired with this one."""
        import numpy as np
        from scipy.stats import norm

        error = self._error(np.asarray(self.without) - np.asarray(other.without))
        value, half = self.value - other.value, 1.96 * error
        p = float(2 * norm.sf(abs(value) / error)) if error else 1.0 if value == 0 else 0.0
        return Difference(value, value - half, value + half, len(self.without), p)


def cut(arms: Sequence[Sequence[Sequence[str]]]) -> list[list[Sequence[str]]]:
    """Cut the answers of all arms to a prompt to the shortest of them.

    Args:
        arms: words by arm and prompt, with the same prompts in the same order.
    """
    least = [min(map(len, row)) for row in zip(*arms, strict=True)]
    return [[words[:n] for words, n in zip(rows, least, strict=True)] for rows in arms]


def variety(answers: Sequence[Sequence[str]]) -> dict[str, Jackknifed]:
    """Measure how varied answers are: distinct-1, distinct-2, and how far apart in words.

    Args:
        answers: the words of each; at least 3.

    Returns:
        Shares in [0, 1]: distinct n-grams of all, and 1 minus the mean pairwise cosine of the
        counts of 1- and 2-grams.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    grams = {n: [[*zip(*(a[i:] for i in range(n)), strict=False)] for a in answers] for n in (1, 2)}
    both = [[*map(str, a), *map(str, b)] for a, b in zip(grams[1], grams[2], strict=True)]
    distinct = {f"distinct_{n}": _distinct(rows) for n, rows in grams.items()}
    if not any(both):
        return distinct | {"unlikeness": Jackknifed(0.0, [0.0] * len(answers))}
    x = CountVectorizer(analyzer=lambda row: row).fit_transform(both).astype(float)
    x = x.toarray() / np.maximum(np.sqrt(x.multiply(x).sum(axis=1)), 1e-12)
    far = 1 - np.asarray(x @ x.T)
    np.fill_diagonal(far, 0)
    n, of_each = len(far), far.sum(axis=1)
    without = (of_each.sum() - 2 * of_each) / ((n - 1) * (n - 2))
    return distinct | {"unlikeness": Jackknifed(float(of_each.sum() / (n * (n - 1))), without)}


def _distinct(rows: Sequence[Sequence[Any]]) -> Jackknifed:
    total = Counter(gram for row in rows for gram in row)
    number, size = len(total), total.total()
    own = [Counter(row) for row in rows]
    without = [
        (number - sum(total[gram] == k for gram, k in row.items())) / max(size - row.total(), 1)
        for row in own
    ]
    return Jackknifed(number / max(size, 1), without)
