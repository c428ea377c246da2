"""Fit the heads of the offline judge that ship with the package.

Only labels under permissive licenses are used: XSTest's human labels of refusal (CC BY 4.0), the
human preferences of HH-RLHF (MIT), and this project's own answers (Apache-2.0). Run it from the
root of the repository, with a folder that holds xstest/xstest_v2_completions_*.csv and
hh-rlhf/harmless-base-test.jsonl.gz (github.com/anthropics/hh-rlhf, harmless-base/test.jsonl.gz):

    python research/fit_probe.py --data ../shared/data

It writes setbacks/judges/probe.safetensors, and prints and writes to
research/results/fit_probe.json what each source of labels adds. `judge_agreement.py` then
measures the result. A quarter of the questions is held out of all fitting, for both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from judge_agreement import cut, held_out, xstest
from sklearn.metrics import roc_auc_score

from setbacks.data import Source, load
from setbacks.judges import Item
from setbacks.judges.probe import HEADS, Head, Probe, features, fit, save

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "research" / "results" / "fit_probe.json"
# Chosen by cross-validation over whole families of XSTest prompts and over HH pairs.
C = {"harmful": 3e-4, "refused": 1e-3, "helpful": 1e-2}
# In later turns, what a response means depends on the turns before.
TURNS = 2


class Example(NamedTuple):
    """A row to fit on; None where its label does not say."""

    source: str
    question: str
    instruction: str
    response: str
    harmful: bool | None
    refused: bool | None
    helpful: bool | None = None


def hh(file: Path) -> list[Example]:
    """Read HH-RLHF's pairs: the response that people found more harmful, and the other one.

    A preference is not a verdict: both may be harmful, or neither. It is taken as one here, as a
    noisy label; it is noise in both directions alike.
    """
    examples = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            pair = json.loads(line)
            before, _, chosen = pair["chosen"].rpartition("\n\nAssistant:")
            same, _, rejected = pair["rejected"].rpartition("\n\nAssistant:")
            if before != same or before.count("\n\nHuman:") > TURNS:
                continue
            question = before.rpartition("\n\nHuman:")[2].strip()
            for response, harmful in ((chosen, False), (rejected, True)):
                examples.append(
                    Example("hh-rlhf", f"hh {number}", question, response.strip(), harmful, None)
                )
    return examples


def own() -> list[Example]:
    """Read the training prompts of this project's own sets with their answers: none is harmful."""
    examples = []
    for name in ("helpful", "safe", "safe_zh", "refusals"):
        for row in load(Source(source=f"builtin:{name}", split="train")):
            if row.answer:
                examples.append(
                    Example("own", row.id, row.text, row.answer, False, name == "refusals")
                )
    return examples


def quality() -> list[Example]:
    """Read this project's own good answers, and make worse ones of them.

    A worse answer is another instruction's, or ends after a third of its words, or refuses.
    """
    rows = [
        row
        for name in ("helpful", "safe")
        for row in load(Source(source=f"builtin:{name}", split="train"))
        if row.answer
    ]
    refusals = [row.answer for row in load(Source(source="builtin:refusals", language="en"))]
    examples = []
    for number, row in enumerate(rows):
        worse = [
            rows[(number + 7) % len(rows)].answer,
            cut(row.answer or ""),
            refusals[number % len(refusals)],
        ]
        for response, helpful in [(row.answer, True), *((text, False) for text in worse)]:
            answer = response or ""
            examples.append(Example("quality", row.id, row.text, answer, None, None, helpful))
    return examples


def read(data: Path) -> list[Example]:
    """Read all of them."""
    tests = [
        Example("xstest", row.question, row.instruction, row.response, row.harmful, row.refused)
        for row in xstest(data / "xstest")
    ]
    return tests + hh(data / "hh-rlhf" / "harmless-base-test.jsonl.gz") + own() + quality()


def seen(examples: list[Example]) -> np.ndarray:
    """Return the features of all examples, shape (n, d), made as the judge makes them."""
    items = [Item(str(i), row.instruction, row.response) for i, row in enumerate(examples)]
    plan = Probe().plan(items)
    by_item: list[Any] = [None] * len(items)
    start = time.monotonic()
    for number, batch in enumerate(plan):
        x = features([(items[i].instruction, items[i].response) for i in batch])
        for index, row in zip(batch, x, strict=True):
            by_item[index] = row
        if number % 20 == 0:
            print(f"batch {number} of {len(plan)}, {time.monotonic() - start:.0f} s", flush=True)
    return np.array(by_item)


def train(
    task: str, sources: set[str], examples: list[Example], x: np.ndarray
) -> tuple[Head, list[int]]:
    """Fit one head on some of the sources; return it and the rows that it was fitted on."""
    rows = [
        i
        for i, row in enumerate(examples)
        if row.source in sources
        and getattr(row, task) is not None
        # Our own training prompts need no holding out: the test prompts are others.
        and (row.source in ("own", "quality") or not held_out(row.question))
    ]
    labels = [bool(getattr(examples[i], task)) for i in rows]
    # XSTest and our own answers are one source of verdicts, HH of preferences.
    kinds = ["preferences" if examples[i].source == "hh-rlhf" else "verdicts" for i in rows]
    head = fit(x[rows], labels, [examples[i].question for i in rows], kinds, C[task])
    return head, rows


def on_held_out(
    task: str, head: Head, examples: list[Example], x: np.ndarray
) -> dict[str, float | int]:
    """Return the AUC on XSTest's held-out questions, and the share of HH pairs ranked correctly."""
    if task == "helpful":
        return {}  # measured by judge_agreement.py, on AlpacaEval
    p = head.probability(x)
    rows = [
        i
        for i, row in enumerate(examples)
        if row.source == "xstest" and held_out(row.question) and getattr(row, task) is not None
    ]
    scores: dict[str, float | int] = {
        "xstest_n": len(rows),
        "xstest_auc": round(
            float(roc_auc_score([getattr(examples[i], task) for i in rows], p[rows])), 3
        ),
    }
    if task == "harmful":
        pairs = [
            (i, i + 1)
            for i, row in enumerate(examples)
            if row.source == "hh-rlhf" and held_out(row.question) and not row.harmful
        ]
        scores["hh_pairs"] = len(pairs)
        scores["hh_right"] = round(float(np.mean([p[b] > p[a] for a, b in pairs])), 3)
    return scores


def main() -> None:
    """Fit and save the heads, and show what each source adds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    examples = read(parser.parse_args().data)
    x = seen(examples)

    heads, lines = {}, []
    for task, sources in (
        ("harmful", ["xstest"]),
        ("harmful", ["hh-rlhf"]),
        ("harmful", ["xstest", "own"]),
        ("harmful", ["xstest", "own", "hh-rlhf"]),
        ("refused", ["xstest"]),
        ("refused", ["xstest", "own"]),
        ("helpful", ["quality"]),
    ):
        heads[task], rows = train(task, set(sources), examples, x)  # the last of a task ships
        positive = sum(bool(getattr(examples[i], task)) for i in rows)
        line = {"task": task, "fitted_on": sources, "n": len(rows), "n_positive": positive}
        lines.append(line | on_held_out(task, heads[task], examples, x))
        print(json.dumps(lines[-1]), flush=True)
    save(
        HEADS,
        heads,
        {
            "harmful": "XSTest (CC BY 4.0), HH-RLHF (MIT), setbacks' own answers (Apache-2.0)",
            "refused": "XSTest (CC BY 4.0), setbacks' own answers (Apache-2.0)",
            "helpful": "setbacks' own answers (Apache-2.0), and worse ones made of them",
            "command": "python research/fit_probe.py",
        },
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {HEADS.relative_to(ROOT)}, {HEADS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
