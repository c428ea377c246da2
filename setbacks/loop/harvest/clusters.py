"""Groups of similar prompts, each named by its most typical words, for a person to look at.

Words are what spaces separate; in scripts without spaces, pairs of neighboring characters. The
groups are those of k-means on TF-IDF, reduced by latent semantic analysis, as in scikit-learn's
guide to clustering texts: every prompt is in one group, and the same prompts give the same groups.

Source: https://scikit-learn.org/stable/auto_examples/text/plot_document_clustering.html
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from setbacks.text import is_unspaced, words_of

if TYPE_CHECKING:
    import numpy as np

FEWEST = 10  # texts; fewer are one group
MOST = 30  # groups
DIMENSIONS = 100
NAMED_BY = 3  # words
ALL = "all"


def clusters(texts: Sequence[str]) -> list[str]:
    """Return the name of each text's group."""
    if len(texts) < FEWEST:
        return [ALL] * len(texts)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer=_terms, max_df=0.5, min_df=2, max_features=20_000, sublinear_tf=True
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no term is in two texts
        return [ALL] * len(texts)
    number = min(MOST, round((len(texts) / 2) ** 0.5))
    with warnings.catch_warnings():  # fewer groups than asked for are fine
        warnings.simplefilter("ignore", ConvergenceWarning)
        groups = KMeans(number, n_init=4, random_state=0).fit_predict(_reduced(weights))
    return _names(groups, weights, vectorizer.get_feature_names_out())


def _terms(text: str) -> list[str]:
    """Return the words of a text; of unspaced scripts, pairs of neighbors."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = words_of(text)
    neighbors = zip(words, words[1:], strict=False)
    pairs = [a + b for a, b in neighbors if is_unspaced(a) and is_unspaced(b)]
    spaced = (w for w in words if not is_unspaced(w) and len(w) > 2 and not w.isdigit())
    return pairs + [word for word in spaced if word not in ENGLISH_STOP_WORDS]


def _reduced(weights: Any) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    dimensions = min(DIMENSIONS, min(weights.shape) - 1)
    if dimensions < 2:
        return normalize(weights.toarray())
    return normalize(TruncatedSVD(dimensions, random_state=0).fit_transform(weights))


def _names(groups: np.ndarray, weights: Any, terms: Sequence[str]) -> list[str]:
    """Return the name of each text's group: the terms that are heavier in it than elsewhere."""
    import numpy as np

    everywhere = np.asarray(weights.mean(axis=0)).ravel()
    names: dict[int, str] = {}
    for group in map(int, np.unique(groups)):
        extra = np.asarray(weights[groups == group].mean(axis=0)).ravel() - everywhere
        typical = [i for i in np.argsort(-extra, kind="stable")[:NAMED_BY] if extra[i] > 0]
        name = ", ".join(str(terms[i]) for i in typical) or "other"
        names[group] = name if name not in names.values() else f"{name} ({group + 1})"
    return [names[int(group)] for group in groups]
