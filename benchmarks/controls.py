"""Which settings and parts of mistake distillation matter: the default beside other arms.

    python benchmarks/controls.py --out runs/controls

Runs `setbacks compare recipes/controls.yaml`, or resumes it: every arm from one seed. Compares the
corrections that each arm learned, too. Writes benchmarks/results/controls.json. Needs the data in
../shared/data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "controls.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "controls.json"
METHOD = "default"  # the arm that every control is compared with
RATES = ("harmless_rate", "compliance", "balanced_safety", "degenerate")


def main() -> None:
    """Run the comparisons, and write the results."""
    parser = argparse.ArgumentParser(description="Compare mistake distillation with its controls.")
    parser.add_argument("--out", type=Path, default=Path("runs/controls"), help="folder")
    folder = parser.parse_args().out
    words = ["compare", RECIPE, "--seeds", "1", "--out", folder]
    subprocess.run([sys.executable, "-m", "setbacks", *map(str, words)], check=True)
    data = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["data"]
    judged = arms(data["judges"]["probe"], METHOD, RATES)
    results = {"arms": judged, "corrections": corrections(folder / "arms")}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def arms(judged: dict[str, Any], method: str, rates: Sequence[str]) -> list[dict[str, Any]]:
    """Return each arm's rates, and its difference from a method in balanced safety.

    Args:
        judged: one judge's results, from the findings of a comparison.
        method: the arm that the others are compared with.
        rates: the metrics to return.
    """
    pairs = {(pair["arm"], pair["against"]): pair for pair in judged["pairs"]["balanced_safety"]}
    rows = []
    for arm in judged["arms"]:
        name = arm["arm"]
        row: dict[str, Any] = {"arm": name}
        row |= {rate: {key: arm[rate][key] for key in ("value", "low", "high")} for rate in rates}
        if name != method:
            pair, sign = pairs.get((name, method)), 1
            if pair is None:  # this arm comes before the method
                pair, sign = pairs[method, name], -1
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            change = {"value": sign * pair["value"], "low": low, "high": high}
            row["against_method"] = change | {key: pair[key] for key in ("p", "p_holm")}
        rows.append(row)
    return rows


def corrections(folder: Path) -> list[dict[str, Any]]:
    """Return how many corrections each arm learned, and how many are those of the method."""

    def read(arm: Path) -> dict[tuple[str, str], dict[str, Any]]:
        lines = (arm / "corrections.jsonl").read_text(encoding="utf-8").splitlines()
        rows = map(json.loads, lines)
        return {(json.dumps(row["instruction"]), row["response"]): row for row in rows}

    own = read(folder / f"{METHOD}.0")
    rows = []
    for arm in sorted(folder.glob("*.0")):
        if not (arm / "corrections.jsonl").exists():
            continue
        written = read(arm)
        answers = {mistake: row["answer"] for mistake, row in written.items()}
        rows.append(
            {
                "arm": arm.stem,
                "mistakes": len(written),
                "learned": sum(row["outcome"] == "kept" for row in written.values()),
                "distinct": len(set(answers.values())),
                "as_method": sum(own[mistake]["answer"] == answers[mistake] for mistake in own),
            }
        )
    return rows


if __name__ == "__main__":
    main()
