"""Fit the heads of the offline judge that ship with the package.

Only labels under permissive licenses are used; `judge_labels.py` names them, and the files that the
folder of public data must hold. Run it from the root of the repository:

    python research/fit_probe.py --data ../shared/data --states FOLDER

The features of each answer are stored in FOLDER, source by source, so that an interrupted run
resumes; reading 15,000 answers takes half an hour to an hour on one core. The script writes
setbacks/judges/probe.safetensors, and prints and writes to research/results/fit_probe.json how the
regularization was chosen, and what each source of labels brings. `judge_agreement.py` then measures
the result. A quarter of the questions of `MEASURED` is held out of all of this, for both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from judge_agreement import held_out
from judge_labels import SETS, Example, examples
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from setbacks.judges import Item, probe
from setbacks.judges.probe import FOLDS, HEADS, VERSION, Head, Probe, features, fit, save
from setbacks.records import digest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "research" / "results" / "fit_probe.json"
MEASURED = ("xstest", "hh-rlhf", "refusals")  # also measured, on questions that are held out
SOURCES = {
    "harmful": ("xstest", "hh-rlhf", "own", *(name for name in SETS if name != "refusals")),
    "refused": ("xstest", "refusals", "own"),
    "helpful": ("quality", "babble"),
}
STRENGTHS = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)  # inverse, of the regularization
COMPONENTS = 512  # to choose, features are rotated to their first principal components
LEAST = 20  # labels of each kind for a source to count in the choice


class Rows(NamedTuple):
    """The rows of a task that are fitted on, their features rotated."""

    x: np.ndarray  # shape (n, d)
    z: np.ndarray  # shape (n, COMPONENTS)
    y: np.ndarray
    question: np.ndarray
    source: np.ndarray


def seen(rows: Sequence[Example], folder: Path) -> np.ndarray:
    """Return the features of all examples, shape (n, d), made as the judge makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    x: np.ndarray | None = None
    for name in sorted({row.source for row in rows}):
        index = [i for i, row in enumerate(rows) if row.source == name]
        items = [Item(str(i), rows[i].prompt, rows[i].response) for i in index]
        key = digest(probe.FEATURES, *(digest(item.instruction, item.response) for item in items))
        file = folder / f"{name}-{key}.npy"
        if not file.exists():
            np.save(file, _read(items, name).astype(np.float16))
        read = np.load(file).astype(np.float32)
        x = np.zeros((len(rows), read.shape[1]), np.float32) if x is None else x
        x[index] = read
    assert x is not None
    return x


def _read(items: Sequence[Item], name: str) -> np.ndarray:
    start = time.monotonic()
    by_item: list[Any] = [None] * len(items)
    for batch in Probe().plan(items):
        read = features([(items[i].instruction, items[i].response) for i in batch])
        for index, row in zip(batch, read, strict=True):
            by_item[index] = row
    print(f"{name}: {len(items)} answers read in {time.monotonic() - start:.0f} s", flush=True)
    return np.array(by_item)


def of_task(task: str, rows: Sequence[Example], x: np.ndarray) -> Rows:
    """Return the rows that a head may be fitted on."""
    index = [
        i
        for i, row in enumerate(rows)
        if row.source in SOURCES[task]
        and getattr(row, task) is not None
        and not (row.source in MEASURED and held_out(row.question))
    ]
    scaled = StandardScaler().fit_transform(x[index])
    _, vectors = np.linalg.eigh(scaled.T @ scaled)
    return Rows(
        x[index],
        scaled @ vectors[:, ::-1][:, :COMPONENTS],
        np.array([bool(getattr(rows[i], task)) for i in index]),
        np.array([rows[i].question for i in index]),
        np.array([rows[i].source for i in index]),
    )


# The choice --------------------------------------------------------------------------------------


def scores(rows: Rows, c: float, on: np.ndarray) -> np.ndarray:
    """Return the scores of all rows by a model that is fitted on some."""
    weight = probe._balanced(rows.y[on].astype(int), rows.source[on])
    model = LogisticRegression(C=c, max_iter=500, tol=1e-3)
    score: np.ndarray = model.fit(rows.z[on], rows.y[on], sample_weight=weight).decision_function(
        rows.z
    )
    return score


def within(rows: Rows, c: float) -> dict[str, float]:
    """Return the AUC of each source by models fitted on other questions, of all sources."""
    fold = np.array(
        [
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2).digest()) % FOLDS
            for name in rows.question
        ]
    )
    score = np.zeros(len(rows.y))
    for number in range(FOLDS):
        score[fold == number] = scores(rows, c, fold != number)[fold == number]
    return by_source(rows, lambda source: score)


def across(rows: Rows, c: float) -> dict[str, float]:
    """Return the AUC of each source by a model fitted on all other sources."""
    return by_source(rows, lambda source: scores(rows, c, rows.source != source))


def by_source(rows: Rows, score_of: Callable[[str], np.ndarray]) -> dict[str, float]:
    """Return the AUC of each source that has enough labels of both kinds.

    Of preferences it is the share of pairs that are ranked as people did.
    """
    found = {}
    for source in sorted(set(rows.source)):
        there = rows.source == source
        if min(np.sum(there & rows.y), np.sum(there & ~rows.y)) < LEAST:
            continue
        score = score_of(source)
        if source == "hh-rlhf":
            other = np.flatnonzero(there & ~rows.y)
            found[source] = float(np.mean(score[other + 1] > score[other]))
        else:
            found[source] = float(roc_auc_score(rows.y[there], score[there]))
    return {source: round(auc, 3) for source, auc in found.items()}


def choose(task: str, rows: Rows) -> tuple[float, list[dict[str, Any]]]:
    """Return the regularization with the best transfer to a source that was left out, and figures.

    Answers to judge are from a source that was left out, too. A head of one source only is chosen
    by the questions that were left out.
    """
    lines = []
    for c in STRENGTHS:
        line = {"task": task, "c": c, "within": within(rows, c), "across": across(rows, c)}
        lines.append(line)
        print(json.dumps(line), flush=True)

    def mean(aucs: Mapping[str, float]) -> float:
        return float(np.mean([*aucs.values()]))

    alone = task == "helpful"  # its sources are made of the same answers
    best = max(lines, key=lambda line: mean(line["within" if alone else "across"]))
    return best["c"], lines


def main() -> None:
    """Choose, fit and save the heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--states", type=Path, required=True, help="where features are stored")
    arguments = parser.parse_args()
    rows = [
        row
        for row in examples(arguments.data)
        if (row.harmful, row.refused, row.helpful) != (None, None, None)
    ]
    x = seen(rows, arguments.states)

    heads: dict[str, Head] = {}
    result: dict[str, Any] = {"version": VERSION, "choice": [], "heads": []}
    for task in probe.TASKS:
        chosen = of_task(task, rows, x)
        c, lines = choose(task, chosen)
        heads[task] = fit(
            chosen.x, chosen.y.tolist(), chosen.question.tolist(), chosen.source.tolist(), c
        )
        counts = {
            source: [int(np.sum(chosen.source == source)), int(np.sum(chosen.y[there]))]
            for source in sorted(set(chosen.source))
            for there in [chosen.source == source]
        }
        result["choice"] += lines
        result["heads"].append({"task": task, "c": c, "n": len(chosen.y), "sources": counts})
        print(json.dumps(result["heads"][-1]), flush=True)
    licenses = ", ".join(f"{name} ({one.license})" for name, one in SETS.items())
    save(
        HEADS,
        heads,
        {
            "version": str(VERSION),
            "harmful": f"XSTest (CC BY 4.0), HH-RLHF (MIT), {licenses}, own answers (Apache-2.0)",
            "refused": "XSTest (CC BY 4.0), chatgpt-refusals (MIT), own answers (Apache-2.0)",
            "helpful": "setbacks' own answers (Apache-2.0), and worse ones made of them",
            "command": "python research/fit_probe.py",
        },
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {HEADS.relative_to(ROOT)}, {HEADS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
