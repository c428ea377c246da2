"""Which part of mistake distillation matters: the method beside controls that lack one part.

    python benchmarks/controls.py --out runs/controls

Runs `setbacks compare recipes/controls.yaml`, or resumes it, and compares the corrections that each
arm learned. Writes benchmarks/results/controls.json. Needs the data in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "controls.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "controls.json"
METHOD = "right_analyses"  # the arm that every control is compared with
RATES = ("harmless_rate", "compliance", "balanced_safety", "degenerate")


def main() -> None:
    """Run the comparison, and write the results."""
    parser = argparse.ArgumentParser(description="Compare mistake distillation with its controls.")
    parser.add_argument("--out", type=Path, default=Path("runs/controls"), help="folder")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each arm")
    arguments = parser.parse_args()
    words = ["compare", str(RECIPE), "--out", str(arguments.out), "--seeds", str(arguments.seeds)]
    subprocess.run([sys.executable, "-m", "setbacks", *words], check=True)
    findings = json.loads((arguments.out / "findings.json").read_text(encoding="utf-8"))
    results = {
        "command": f"setbacks compare recipes/controls.yaml --seeds {arguments.seeds}",
        "seeds": arguments.seeds,
        "arms": arms(findings["data"]["judges"]["probe"], findings["data"]["spent"]),
        "corrections": corrections(arguments.out / "arms"),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def arms(judged: dict[str, Any], spent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each arm's rates, tokens and difference from the method in balanced safety."""
    pairs = {(pair["arm"], pair["against"]): pair for pair in judged["pairs"]["balanced_safety"]}
    tokens = {row["arm"]: row["tokens"] for row in spent}
    rows = []
    for arm in judged["arms"]:
        name = arm["arm"]
        row = {"arm": name, "tokens": tokens.get(name)}
        row |= {rate: {key: arm[rate][key] for key in ("value", "low", "high")} for rate in RATES}
        if pair := pairs.get((name, METHOD)):
            row["against_method"] = {key: pair[key] for key in ("value", "low", "high", "p")}
        elif pair := pairs.get((METHOD, name)):  # this arm comes first in the table
            row["against_method"] = {
                "value": -pair["value"], "low": -pair["high"], "high": -pair["low"], "p": pair["p"]
            }  # fmt: skip
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
