"""Every method at equal data, on public test prompts that no choice was made on.

    python benchmarks/compare.py --out runs/compare --jobs 8

Runs `setbacks compare recipes/compare.yaml`, or resumes it. Needs the data in ../shared/data.
Writes results/compare.json; with `--seeds 1`, which takes an evening, compare_one_seed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from controls import arms

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "compare.yaml"
RESULTS = ROOT / "benchmarks" / "results"
METHOD = "mistake_distillation"
METRICS = (
    "harmless_rate",
    "hijacking_harmless_rate",
    "compliance",
    "balanced_safety",
    "helpful_score",
    "degenerate",
)


def main() -> None:
    """Run the comparison, and write the results."""
    parser = argparse.ArgumentParser(description="Compare all methods at equal data.")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder")
    parser.add_argument("--seeds", help="trainings of each method")
    parser.add_argument("--methods", help="some of the recipe's arms, separated by commas")
    parser.add_argument("--jobs", help="trainings at the same time")
    options = {name: value for name, value in vars(parser.parse_args()).items() if value}
    words = as_words(options)
    command = [sys.executable, "-m", "setbacks", "compare", str(RECIPE), *words]
    subprocess.run(command, check=True)
    findings = json.loads((options["out"] / "findings.json").read_text(encoding="utf-8"))
    judged = findings["data"]["judges"]["probe"]
    rows = arms(judged, METHOD, METRICS)
    for row, arm in zip(rows, judged["arms"], strict=True):
        halves = arm["seeds"]["harmless_rate"], arm["seeds"]["compliance"]
        row["seeds"] = [harmonic_mean(pair) for pair in zip(*halves, strict=True)]
    shown = {name: value for name, value in options.items() if name not in ("out", "jobs")}
    results = {
        "command": " ".join(["python benchmarks/compare.py", *as_words(shown)]),
        "arms": rows,
        "training": findings["data"]["spent"],
    }
    name = "compare_one_seed.json" if options.get("seeds") == "1" else "compare.json"
    (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def as_words(options: dict[str, Any]) -> list[str]:
    """Return options as words of a command line."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


if __name__ == "__main__":
    main()
