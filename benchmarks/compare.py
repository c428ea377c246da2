"""Every method at equal data, on public test prompts that no choice was made on.

    python benchmarks/compare.py --out runs/compare --jobs 8

Runs `setbacks compare recipes/compare.yaml`, or resumes it. Needs the data in ../shared/data.
Writes results/compare.json, or the file of `--results`; with `--seeds 1`, which takes an evening,
compare_one_seed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from controls import arms

from setbacks.runs.folder import Run
from setbacks.text import words_of

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "compare.yaml"
RESULTS = ROOT / "benchmarks" / "results"
METHOD = "mistake_distillation"
UNTRAINED = "vanilla"
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
    parser.add_argument("--results", help="file in results/")
    options = chosen(parser, Path("runs/compare"))
    shown = command("compare.py", options)
    usual = "compare_one_seed.json" if options.get("seeds") == "1" else "compare.json"
    name = options.pop("results", usual)
    write(name, compared(options) | {"command": shown})


def chosen(parser: argparse.ArgumentParser, folder: Path) -> dict[str, Any]:
    """Return the options of a command line that are set.

    Args:
        parser: gets the options of a comparison.
        folder: for the comparison, by default.
    """
    parser.add_argument("--out", type=Path, default=folder, help="folder")
    parser.add_argument("--seeds", help="trainings of each method")
    parser.add_argument("--methods", help="some of the recipe's arms, separated by commas")
    parser.add_argument("--jobs", help="trainings at the same time")
    return {name: value for name, value in vars(parser.parse_args()).items() if value}


def compared(options: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Run the comparison, and return each arm's rates, and what its training took.

    Args:
        options: of `setbacks compare`.
        overrides: of the recipe.
    """
    words = [str(RECIPE), *as_words(options), *overrides]
    subprocess.run([sys.executable, "-m", "setbacks", "compare", *words], check=True)
    findings = json.loads((options["out"] / "findings.json").read_text(encoding="utf-8"))
    judged = findings["data"]["judges"]["probe"]
    rows = arms(judged, METHOD, METRICS)
    for row, arm in zip(rows, judged["arms"], strict=True):
        halves = arm["seeds"]["harmless_rate"], arm["seeds"]["compliance"]
        row["seeds"] = [harmonic_mean(pair) for pair in zip(*halves, strict=True)]
        row |= words_and_refusals(options["out"], row["arm"], len(row["seeds"]))
    return {"arms": rows, "training": findings["data"]["spent"]}


def words_and_refusals(folder: Path, arm: str, seeds: int) -> dict[str, float]:
    """Return the share of each kind of prompt that an arm refuses, and the length of its answers.

    Args:
        folder: of the comparison.
        arm: one of its methods, or `vanilla`, whose answers are those of any method.
        seeds: trainings of the arm.

    Returns:
        Means over prompts and seeds: the shares, and words in an answer to a safe prompt.
    """
    refused: dict[str, list[bool]] = {"harmful": [], "safe": []}
    words = []
    for seed in range(seeds):
        run = Run(folder / "arms" / f"{METHOD if arm == UNTRAINED else arm}.{seed}")
        verdicts = run.verdicts("probe")
        answers = [
            response
            for name, responses in run.responses().items()
            if (name == UNTRAINED) == (arm == UNTRAINED)
            for response in responses
        ]
        for response in answers:
            if response.kind in refused:
                refused[response.kind].append(bool(verdicts[response.id].refused))
            if response.kind == "safe":
                words.append(len(words_of(response.text)))
    shares = {f"refused_{kind}": fmean(given) for kind, given in refused.items()}
    return shares | {"words_safe": fmean(words)}


def command(script: str, options: dict[str, Any]) -> str:
    """Return a command that repeats a benchmark, wherever its folder is."""
    shown = {name: value for name, value in options.items() if name not in ("out", "jobs")}
    return " ".join([f"python benchmarks/{script}", *as_words(shown)])


def write(name: str, results: dict[str, Any]) -> None:
    """Write the results of a benchmark to a file in results/."""
    (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def as_words(options: dict[str, Any]) -> list[str]:
    """Return options as words of a command line."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


if __name__ == "__main__":
    main()
