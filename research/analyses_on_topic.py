"""Are analyses about their own instruction? Compare those of several runs.

    python research/analyses_on_topic.py runs/a runs/b

Prints, for the analyses of mistakes in each run folder, the share that passes the checks, and the
AUC: the probability that an analysis has a larger share of the content words of its own instruction
than of another one. 0.5 is chance: the analyses could belong to any mistake. Writes
results/analyses_on_topic.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setbacks.messages import texts_of
from setbacks.prompts.topic import topic
from setbacks.records import Analysis
from setbacks.runs.folder import Run
from setbacks.text import words_of

RESULTS = Path(__file__).parent / "results" / "analyses_on_topic.json"


def main() -> None:
    """Print a row for each run, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with analyses")
    rows = [row(Run(path)) for path in parser.parse_args().runs]
    print(f"{'run':<24}{'analyses':>9}{'pass':>8}{'AUC':>7}")
    for one in rows:
        print(f"{one['run']:<24}{one['analyses']:>9}{one['pass']:>8.1%}{one['auc']:>7.3f}")
    command = " ".join(["python research/analyses_on_topic.py", *(one["run"] for one in rows)])
    data = {"command": command, "runs": rows}
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def row(run: Run) -> dict[str, Any]:
    """Return the figures of one run."""
    analyses = [one for one in run.records("analyses.jsonl", Analysis) if one.label == "harmful"]
    words = run.recipe.words_for()
    topics = [topic(texts_of(one.instruction), words) for one in analyses]
    return {
        "run": run.path.name,
        "analyses": len(analyses),
        "pass": sum(one.passed for one in analyses) / len(analyses),
        "auc": auc([frozenset(words_of(one.text)) for one in analyses], topics),
    }


def auc(texts: Sequence[frozenset[str]], topics: Sequence[frozenset[str]]) -> float:
    """Return how often a text fits its own topic better than another one; ties count half."""
    shares = np.array([[len(t & topic) / max(len(topic), 1) for topic in topics] for t in texts])
    own = shares.diagonal()[:, None]
    other = np.array([[topic != topics[i] for topic in topics] for i in range(len(topics))])
    return float(((own > shares) + 0.5 * (own == shares))[other].mean())


if __name__ == "__main__":
    main()
